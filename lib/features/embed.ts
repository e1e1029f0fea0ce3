import { type Row, readRecords, rowFields } from '../data/index.js';
import { pack, splitByTokens, tokensAPass } from '../data/pack.js';
import { parseRow } from '../data/rows.js';
import { groupsOf } from '../data/tokenize.js';
import type { Group } from '../data/types.js';
import { badData, describe } from '../data/where.js';
import { type LoadOptions, Model } from '../model/model.js';
import { writeSafetensors } from '../model/safetensors.js';
import { PluralignError } from '../native/errors.js';
import { progress } from '../training/progress.js';
import { itemTable } from './items.js';

export interface EmbedOptions extends LoadOptions {
  model: string;
  /** Items: `id` with `text`, `messages`, or `prompt` and `completion`. */
  data: readonly string[];
  /** A .safetensors file. */
  output: string;
  /** `last`: the last token's row (the closing EOS where one belongs); `mean`: over the completion's tokens. */
  pooling?: 'last' | 'mean';
  stop?: { signal: AbortSignal; flag: Int32Array };
}

export interface EmbedResult {
  items: number;
  features: number;
  pooling: 'last' | 'mean';
  paths: { items: string };
}

/**
 * Features of items: a language model's final hidden rows (after the last norm), pooled to one row of `hidden_size` for
 * each item. Writes an item table, `features` [n, d] float32 and the ids in the metadata.
 *
 * @throws PluralignError `BAD_DATA` naming file and line: no id, one that came before, nothing to read, or more tokens
 * than the model takes
 */
export async function embed(options: EmbedOptions): Promise<EmbedResult> {
  const { output, pooling = 'last', stop } = options;
  if (!output.endsWith('.safetensors')) {
    throw new PluralignError('BAD_ARGUMENT', `--output: found ${output}, expected a name that ends with .safetensors`);
  }
  const { ids, rows } = await readTexts(options.data, stop?.signal);
  using model = await Model.load(options.model, options);
  const { groups } = await groupsOf(rows, model.tokenizer, {
    maxLength: model.config.maxPositions,
    overLength: 'error',
    signal: stop?.signal,
  });
  if (groups.length !== rows.length) throw new PluralignError('BAD_DATA', 'some item has no token at all');
  const d = model.shape.hiddenSize;
  const features = new Float32Array(groups.length * d);
  const bar = progress(groups.length, 'embed');
  let done = 0;
  try {
    for (const part of splitByTokens(groups, 1, tokensAPass)) {
      await poolHidden(model, part, pooling, features.subarray(done * d, (done + part.length) * d), stop?.flag);
      done += part.length;
      bar.update(done);
    }
  } finally {
    bar.stop();
  }
  const table = itemTable(output, ids, features, d);
  await writeSafetensors(output, [{ name: 'features', shape: [table.n, d], data: features }], {
    ids: JSON.stringify(ids),
    pooling,
  });
  return { items: table.n, features: d, pooling, paths: { items: output } };
}

/** The base's final hidden rows, pooled: one for each completion of the groups in turn, [completions, d]. */
export async function poolHidden(
  model: Model,
  groups: readonly Group[],
  pooling: 'last' | 'mean',
  out: Float32Array,
  abort: Int32Array | undefined,
): Promise<void> {
  const { native } = pack(groups, { policies: [{ adapter: -1, grad: false }], read: 'reward' });
  const rows: number[] = [];
  const ends = [0];
  for (let s = 0; s < native.parents.length; s++) {
    if (native.parents[s] < 0) continue;
    const last = native.segmentStarts[s + 1] - 1;
    for (let row = pooling === 'last' ? last : native.segmentStarts[s]; row <= last; row++) rows.push(row);
    ends.push(rows.length);
  }
  const d = model.shape.hiddenSize;
  const hidden = new Float32Array(rows.length * d);
  const read = { ...native, rows: Int32Array.from(rows), targets: new Int32Array(rows.length) };
  await model.native.hidden(read, null, hidden, abort);
  for (let c = 0; c + 1 < ends.length; c++) {
    const count = ends[c + 1] - ends[c];
    for (let j = 0; j < d; j++) {
      let sum = 0;
      for (let row = ends[c]; row < ends[c + 1]; row++) sum += hidden[row * d + j];
      out[c * d + j] = sum / count;
    }
  }
}

async function readTexts(paths: readonly string[], signal?: AbortSignal): Promise<{ ids: string[]; rows: Row[] }> {
  const ids: string[] = [];
  const seen = new Set<string>();
  const rows: Row[] = [];
  for await (const record of readRecords(paths, { fields: new Set([...rowFields, 'id']) })) {
    if (signal?.aborted) throw new PluralignError('ABORTED', 'reading the items was stopped');
    const { row } = parseRow(record, rows.length);
    const given = (record.value as { id?: unknown }).id;
    const named = typeof given === 'string' || typeof given === 'number' || typeof given === 'bigint';
    if (!named || String(given).trim() === '') {
      throw badData(record.origin, `field "id": found ${describe(given)}, expected a name`);
    }
    const id = String(given);
    if (seen.has(id)) throw badData(record.origin, `found the id ${JSON.stringify(id)} a second time`);
    if (row.kind !== 'text') {
      throw badData(record.origin, 'expected an item: "id" with "text", "messages", or "prompt" and "completion"');
    }
    seen.add(id);
    ids.push(id);
    rows.push(row);
  }
  if (rows.length === 0) throw new PluralignError('BAD_DATA', `${paths.join(', ')}: found no items`);
  return { ids, rows };
}
