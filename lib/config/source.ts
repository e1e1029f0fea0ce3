import { isAlias, isMap, isScalar, isSeq, LineCounter, parseDocument } from 'yaml';
import { PluralignError } from '../native/errors.js';

export type Path = readonly PropertyKey[];

/** Configuration as read: plain values, and where each of them was written. */
export interface Source {
  value: unknown;
  /** `file:line` of a key, `--set key=value`, or a name for the whole. */
  locate(path: Path): string;
}

/** Parses YAML 1.2 (core schema). Broken YAML, doubled keys and unknown tags: BAD_CONFIG with the line. */
export function parseYaml(text: string, file: string): Source {
  const lines = new LineCounter();
  const document = parseDocument(text, { lineCounter: lines, prettyErrors: false });
  const trouble = [...document.errors, ...document.warnings][0];
  if (trouble !== undefined) {
    const { line, col } = lines.linePos(trouble.pos[0]);
    throw new PluralignError('BAD_CONFIG', `${file}:${line}:${col}: not valid YAML: ${trouble.message}`);
  }
  let value: unknown;
  try {
    value = document.toJS();
  } catch (error) {
    throw new PluralignError('BAD_CONFIG', `${file}: not valid YAML: ${(error as Error).message}`);
  }
  const locate = (path: Path) => {
    let node: unknown = document.contents;
    let offset: number | undefined;
    for (const key of path) {
      if (isAlias(node)) node = node.resolve(document);
      if (isMap(node)) {
        const pair = node.items.find((item) => String(isScalar(item.key) ? item.key.value : item.key) === String(key));
        if (pair === undefined) break;
        offset = (pair.key as { range?: number[] } | null)?.range?.[0] ?? offset;
        node = pair.value;
      } else if (isSeq(node)) {
        node = node.items[Number(key)];
        offset = (node as { range?: number[] } | undefined)?.range?.[0] ?? offset;
      } else break;
    }
    return offset === undefined ? file : `${file}:${lines.linePos(offset).line}`;
  };
  return { value, locate };
}

type Mapping = Record<string, unknown>;
const isMapping = (value: unknown): value is Mapping =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

/** Keys of which only one may be given: a `--set` of one takes the place of the other in the file. */
const exclusive = [
  ['train.epochs', 'train.steps'],
  ['data.eval', 'data.split'],
];

/** Lays `--set key.path=value` over a source; values are YAML. */
export function applySets(source: Source, sets: readonly string[]): Source {
  const value = structuredClone(source.value ?? {});
  if (!isMapping(value)) return source;
  const written = new Map<string, string>();
  for (const set of sets) {
    const where = `--set ${set}`;
    const at = set.indexOf('=');
    const keys = set.slice(0, at).split('.');
    if (at < 1 || keys.some((key) => key.trim() === '')) {
      throw new PluralignError('BAD_CONFIG', `${where}: expected key.path=value, for example train.steps=100`);
    }
    if (keys.includes('__proto__')) throw new PluralignError('BAD_CONFIG', `${where}: unknown key __proto__`);
    const parsed = parseYaml(set.slice(at + 1), where).value;
    let target = value;
    for (const [depth, key] of keys.slice(0, -1).entries()) {
      const next = Object.hasOwn(target, key) ? target[key] : undefined;
      if (next !== undefined && next !== null && !isMapping(next)) {
        const path = keys.slice(0, depth + 1).join('.');
        throw new PluralignError(
          'BAD_CONFIG',
          `${where}: ${path} is ${JSON.stringify(next)}, which has no keys; set ${path} itself`,
        );
      }
      target[key] = next ?? {};
      target = target[key] as Mapping;
    }
    target[keys[keys.length - 1]] = parsed;
    written.set(keys.join('.'), where);
  }
  for (const pair of exclusive) {
    for (const [one, other] of [pair, [...pair].reverse()]) {
      if (!written.has(one) || written.has(other)) continue;
      const [outer, inner] = one.split('.');
      const holder = value[outer] as Mapping;
      if (holder[inner] !== null) delete holder[other.split('.')[1]];
    }
  }
  const locate = (path: Path) => {
    for (let length = path.length; length > 0; length--) {
      const set = written.get(path.slice(0, length).join('.'));
      if (set !== undefined) return set;
    }
    // A whole section may exist only through what was set inside it.
    return source.locate(path);
  };
  return { value, locate };
}
