import { existsSync, readFileSync, statSync } from 'node:fs';
import { basename, join } from 'node:path';
import { PluralignError } from '../native/errors.js';

export type Json = Record<string, unknown>;

/** What a model folder needs besides weights and config.json. */
export const tokenizerFiles: readonly string[] = [
  'tokenizer.json',
  'tokenizer_config.json',
  'special_tokens_map.json',
  'chat_template.jinja',
  'generation_config.json',
];

/** True for `{…}`: no array, no null. */
export function isObject(value: unknown): value is Json {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/** What a value is, for messages: `a list`, `null`, `the text "x"` … */
export function describe(value: unknown): string {
  if (value === undefined) return 'nothing';
  if (value === null) return 'null';
  if (Array.isArray(value)) return 'a list';
  if (typeof value === 'string')
    return `the text ${JSON.stringify(value.length > 40 ? `${value.slice(0, 40)}…` : value)}`;
  if (typeof value === 'object') return 'an object';
  return String(value);
}

/** A JSON object from a file, or null where there is no such file. Throws `BAD_FILE` or `IO`, naming the path. */
export function readJsonIfThere(path: string): Json | null {
  let text: string;
  try {
    text = readFileSync(path, 'utf8');
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code;
    if (code === 'ENOENT' || code === 'ENOTDIR') return null;
    throw new PluralignError('IO', `${path}: cannot be read: ${(error as Error).message}`, { cause: error });
  }
  let value: unknown;
  try {
    value = JSON.parse(text.charCodeAt(0) === 0xfeff ? text.slice(1) : text);
  } catch (error) {
    throw new PluralignError('BAD_FILE', `${path}: not valid JSON: ${(error as Error).message}`, { cause: error });
  }
  if (!isObject(value))
    throw new PluralignError('BAD_FILE', `${path}: expected a JSON object, found ${describe(value)}`);
  return value;
}

const torchWeights = ['pytorch_model.bin', 'pytorch_model.bin.index.json', 'consolidated.00.pth', 'model.pth'];

/**
 * The safetensors files that hold a model folder's weights: `model.safetensors`, or the shards that
 * `model.safetensors.index.json` names, each once. Throws `NOT_FOUND` (naming the file that is missing), `BAD_FILE` for an
 * index that is malformed or points out of the folder, `UNSUPPORTED` where there are only PyTorch pickles.
 */
export function weightFiles(dir: string): string[] {
  const single = join(dir, 'model.safetensors');
  if (existsSync(single)) return [single];
  const indexPath = join(dir, 'model.safetensors.index.json');
  const index = readJsonIfThere(indexPath);
  if (index) return shards(dir, indexPath, index);
  const pickle = torchWeights.find((name) => existsSync(join(dir, name)));
  if (pickle !== undefined) {
    throw new PluralignError(
      'UNSUPPORTED',
      `${join(dir, pickle)}: PyTorch weights are not read, for unpickling runs code. Save them as safetensors: ` +
        'load the model in transformers and call model.save_pretrained(FOLDER)',
    );
  }
  throw new PluralignError(
    'NOT_FOUND',
    `${dir}: no weights: expected model.safetensors, or model.safetensors.index.json and its shards`,
  );
}

function shards(dir: string, indexPath: string, index: Json): string[] {
  const map = index.weight_map;
  if (!isObject(map) || Object.keys(map).length === 0) {
    throw new PluralignError('BAD_FILE', `${indexPath}: weight_map: expected an object of tensor name → file`);
  }
  const names = new Set<string>();
  for (const [tensor, name] of Object.entries(map)) {
    // A name with a folder in it could point anywhere on the disk.
    if (typeof name !== 'string' || name !== basename(name) || name.includes('\\') || !name.endsWith('.safetensors')) {
      throw new PluralignError(
        'BAD_FILE',
        `${indexPath}: weight_map["${tensor}"]: expected the name of a .safetensors file in the same folder, ` +
          `found ${describe(name)}`,
      );
    }
    names.add(name);
  }
  return [...names].map((name) => {
    const path = join(dir, name);
    if (!existsSync(path) || !statSync(path).isFile()) {
      throw new PluralignError(
        'NOT_FOUND',
        `${path}: this shard is missing; ${basename(indexPath)} names ${names.size} shards. Copy or download it again`,
      );
    }
    return path;
  });
}
