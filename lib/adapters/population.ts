import { closeSync, fstatSync, openSync, readSync } from 'node:fs';
import { errnoOf, ioError } from '../base/files.js';
import { nearest } from '../config/nearest.js';
import { foldName } from '../data/identity.js';
import { type NamedTensor, safetensorsInfo, writeSafetensors } from '../model/safetensors.js';
import type { NativeModelConfig } from '../native/addon.js';
import { PluralignError } from '../native/errors.js';
import { Bank } from './bank.js';
import { type AdapterConfig, adapterConfig } from './config.js';
import { genericAdapter, voterAdapters } from './voters.js';

const format = 'pluralign-adapters';

/**
 * Writes the generic adapter and everyone's in one safetensors file: the shared factors under their own names, and `own`
 * [annotators + 1, P], a row of all that is one annotator's own (the generic adapter's first), so that one read finds it.
 * The index by annotator and the names and shapes within a row are JSON in the metadata.
 *
 * Throws `NON_FINITE` naming the first annotator with a value that is not finite, with nothing written.
 */
export async function savePopulation(path: string, bank: Bank, annotators: readonly string[]): Promise<void> {
  const names = voterAdapters(annotators);
  const rows = names.map((name) => bank.ownValues(bank.adapterIndex(name)));
  const layout = bank.own(bank.adapterIndex(genericAdapter)).map((factor) => {
    const { name, rows: height, cols } = bank.factors[factor];
    return { name: name.slice(0, name.length - genericAdapter.length - 1), shape: [height, cols] };
  });
  const shared = bank.shared.map((factor): NamedTensor => {
    const { name, rows: height, cols } = bank.factors[factor];
    return { name, shape: [height, cols], data: bank.values(factor) };
  });
  await writeRows(path, { annotators, layout, shared, rows, config: bank.adapters[0].config! });
}

interface Contents {
  annotators: readonly string[];
  layout: { name: string; shape: number[] }[];
  shared: readonly NamedTensor[];
  /** The generic adapter's, then each annotator's. */
  rows: readonly Float32Array[];
  config: AdapterConfig;
}

async function writeRows(path: string, { annotators, layout, shared, rows, config }: Contents): Promise<void> {
  const width = rows[0].length;
  const data = new Float32Array(rows.length * width);
  rows.forEach((row, u) => {
    if (!row.every(Number.isFinite)) {
      const whose = u === 0 ? 'the generic adapter' : `annotator ${JSON.stringify(annotators[u - 1])}`;
      throw new PluralignError('NON_FINITE', `${whose} has values that are not finite; nothing was written`);
    }
    data.set(row, u * width);
  });
  await writeSafetensors(path, [...shared, { name: 'own', shape: [rows.length, width], data }], {
    format,
    adapter: JSON.stringify(config),
    layout: JSON.stringify(layout),
    annotators: JSON.stringify(annotators),
  });
}

/** Where a tensor of the file lies. */
export interface Place {
  shape: number[];
  /** First byte in the file. */
  at: number;
}

/** A file that `savePopulation` wrote, read where it is asked: the index at once, an annotator's row when it is needed. */
export class AdapterPopulation {
  readonly index: ReadonlyMap<string, number>;

  private constructor(
    readonly path: string,
    readonly config: AdapterConfig,
    readonly annotators: readonly string[],
    readonly layout: { name: string; shape: number[] }[],
    readonly places: ReadonlyMap<string, Place>,
    private readonly stamp: string,
  ) {
    this.index = new Map(annotators.map((name, u) => [name, u + 1]));
  }

  /** Throws `NOT_FOUND`, `IO`, or `BAD_FILE` where the file is not one that `savePopulation` wrote. */
  static open(path: string): AdapterPopulation {
    const stamp = stampOf(path);
    const { metadata, tensors } = safetensorsInfo(path);
    const bad = (what: string) =>
      new PluralignError('BAD_FILE', `${path}: ${what}; expected the adapters by annotator that \`train\` wrote`);
    if (metadata.format !== format) throw bad('found other metadata');
    const parse = (key: string): unknown => {
      try {
        return JSON.parse(metadata[key]);
      } catch {
        throw bad(`its metadata has no JSON under "${key}"`);
      }
    };
    const annotators = parse('annotators');
    const layout = parse('layout') as { name: string; shape: number[] }[];
    if (!Array.isArray(annotators) || !annotators.every((name) => typeof name === 'string'))
      throw bad('its index of annotators is no list of names');
    if (new Set(annotators).size < annotators.length) throw bad('its index names an annotator twice');
    if (!Array.isArray(layout) || !layout.every((l) => typeof l?.name === 'string' && Array.isArray(l.shape)))
      throw bad('its layout is no list of names and shapes');
    const width = layout.reduce((sum, { shape }) => sum + shape.reduce((a, b) => a * b, 1), 0);
    const own = tensors.find(({ name }) => name === 'own');
    if (
      own?.dtype !== 'F32' ||
      own.shape.length !== 2 ||
      own.shape[0] !== annotators.length + 1 ||
      own.shape[1] !== width
    )
      throw bad(`"own" is [${own?.shape.join(', ') ?? ''}], expected [${annotators.length + 1}, ${width}]`);
    const other = tensors.find(({ dtype }) => dtype !== 'F32');
    if (other) throw bad(`${other.name} is ${other.dtype}, expected F32`);
    const config = adapterConfig(parse('adapter') as Partial<AdapterConfig>, `${path}: adapter`);
    return new AdapterPopulation(path, config, annotators as string[], layout, placesOf(path, stamp), stamp);
  }

  /** Throws `NOT_FOUND` where the annotator has no adapter here, with the name that is spelt most alike and some of all. */
  require(annotator: string): void {
    if (this.index.has(annotator)) return;
    const folded = foldName(annotator);
    const near = this.annotators.find((name) => foldName(name) === folded) ?? nearest(annotator, this.annotators);
    const hint = near === undefined ? '' : ` did you mean ${JSON.stringify(near)}?`;
    const some = this.annotators.slice(0, 10).map((name) => JSON.stringify(name));
    if (some.length < this.annotators.length) some.push('…');
    throw new PluralignError(
      'NOT_FOUND',
      `${this.path} has no annotator ${JSON.stringify(annotator)};${hint} it has ${this.annotators.length}: ${some.join(', ')}`,
    );
  }

  /** The generic adapter's own numbers (0) or an annotator's (`index`), [P]. */
  own(u: number): Float32Array {
    const { shape, at } = this.places.get('own')!;
    return this.#read(at + 4 * u * shape[1], shape[1]);
  }

  shared(name: string): Float32Array | null {
    const place = this.places.get(name);
    return place && name !== 'own' ? this.#read(place.at, place.shape[0] * place.shape[1]) : null;
  }

  /** Whether these are reward models. */
  get reward(): boolean {
    return this.places.has('score') || this.layout.some(({ name }) => name === 'score');
  }

  /**
   * A bank of the generic adapter and those of `annotators` that are known, in that order; only theirs is read. `fresh`
   * come behind them as copies of the generic one. Throws `BAD_FILE` where the file does not fit the model.
   */
  bank(
    model: NativeModelConfig,
    annotators: Iterable<string>,
    fresh: readonly string[] = [],
  ): { bank: Bank; known: string[] } {
    const known = [...new Set(annotators)].filter((name) => this.index.has(name));
    const bank = Bank.create(model, this.config, voterAdapters([...known, ...fresh]), {
      seed: 0,
      rewardHead: this.reward,
    });
    const bad = (what: string) =>
      new PluralignError('BAD_FILE', `${this.path}: ${what}; are these adapters of another base model?`);
    for (const factor of bank.shared) {
      const { name, rows, cols } = bank.factors[factor];
      const values = this.shared(name);
      if (values?.length !== rows * cols) throw bad(`${name} is not [${rows}, ${cols}]`);
      bank.values(factor).set(values);
    }
    [0, ...known.map((name) => this.index.get(name)!)].forEach((u, adapter) => {
      const row = this.own(u);
      let at = 0;
      for (const factor of bank.own(adapter)) {
        const values = bank.values(factor);
        if (at + values.length > row.length) throw bad('an annotator has too few numbers');
        values.set(row.subarray(at, at + values.length));
        at += values.length;
      }
      if (at !== row.length) throw bad('an annotator has too many numbers');
    });
    fresh.forEach((_, i) => {
      bank.copyOwn(0, 1 + known.length + i);
    });
    return { bank, known };
  }

  /** Writes the same file with more annotators (or some replaced); every other number keeps its bits. */
  async saveWith(path: string, added: ReadonlyMap<string, Float32Array>): Promise<void> {
    const annotators = [...this.annotators, ...[...added.keys()].filter((name) => !this.index.has(name))];
    const rows = ['', ...annotators].map((name, u) => (u > 0 && added.get(name)) || this.own(u));
    const shared = [...this.places]
      .filter(([name]) => name !== 'own')
      .map(([name, { shape }]) => ({ name, shape, data: this.shared(name)! }));
    await writeRows(path, { annotators, layout: this.layout, shared, rows, config: this.config });
  }

  #read(at: number, count: number): Float32Array {
    const bytes = read(this.path, at, 4 * count, this.stamp);
    return new Float32Array(bytes.buffer, bytes.byteOffset, count);
  }
}

/** Where each tensor's data stands; the header was checked by the addon. */
function placesOf(path: string, stamp: string): Map<string, Place> {
  const size = Number(Buffer.from(read(path, 0, 8, stamp)).readBigUInt64LE());
  const header = JSON.parse(Buffer.from(read(path, 8, size, stamp)).toString()) as Record<
    string,
    { shape: number[]; data_offsets: [number, number] }
  >;
  return new Map(
    Object.entries(header)
      .filter(([name]) => name !== '__metadata__')
      .map(([name, { shape, data_offsets }]) => [name, { shape, at: 8 + size + data_offsets[0] }]),
  );
}

function withFile<T>(path: string, work: (file: number) => T): T {
  let file: number | undefined;
  try {
    file = openSync(path, 'r');
    return work(file);
  } catch (error) {
    if (error instanceof PluralignError) throw error;
    throw errnoOf(error) === 'ENOENT'
      ? new PluralignError('NOT_FOUND', `${path}: no such file`, { cause: error })
      : ioError('read', path, error);
  } finally {
    if (file !== undefined) closeSync(file);
  }
}

/** Tells one version of a file from another. */
function stamped(file: number): string {
  const { ino, size, mtimeMs } = fstatSync(file);
  return `${ino} ${size} ${mtimeMs}`;
}

const stampOf = (path: string): string => withFile(path, stamped);

/** Throws `BAD_FILE` where the file was replaced since it was opened: the places of its rows have moved. */
function read(path: string, at: number, length: number, stamp: string): Uint8Array {
  return withFile(path, (file) => {
    if (stamped(file) !== stamp)
      throw new PluralignError('BAD_FILE', `${path} was written anew while it was in use; start again`);
    // An array of its own: pooled buffers start anywhere, and floats must be aligned.
    const bytes = new Uint8Array(length);
    for (let done = 0; done < length; ) {
      const got = readSync(file, bytes, done, length - done, at + done);
      if (got === 0) throw new PluralignError('BAD_FILE', `${path}: ends before its data does`);
      done += got;
    }
    return bytes;
  });
}
