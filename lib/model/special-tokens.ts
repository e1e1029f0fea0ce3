import { PluralignError } from '../native/errors.js';
import { describe, isObject, type Json } from './folder.js';

export interface SpecialToken {
  text: string;
  id: number;
}

/** The JSON files of a tokenizer's folder; null where a file is absent. */
export interface TokenizerFiles {
  /** The folder, for messages. */
  dir: string;
  tokenizer: Json;
  tokenizerConfig: Json | null;
  specialTokensMap: Json | null;
  modelConfig: Json | null;
}

/** True where transformers builds a LlamaTokenizer, which has its own pipeline and default special tokens. */
export function isLlamaClass(files: TokenizerFiles): boolean {
  const name = files.tokenizerConfig?.tokenizer_class ?? files.modelConfig?.tokenizer_class;
  return name === 'LlamaTokenizer' || name === 'LlamaTokenizerFast';
}

/**
 * The token that begins a text: `bos_token` of tokenizer_config.json or special_tokens_map.json; config.json's
 * `bos_token_id` only where there is neither file, since Qwen's names a token that its tokenizer does not use.
 */
export function bosToken(files: TokenizerFiles, ids: Map<string, number>): SpecialToken | null {
  return named(files, 'bos', ids, '<s>', !files.tokenizerConfig && !files.specialTokensMap);
}

/** The token that ends a text: `eos_token`, else the first `eos_token_id` of config.json. */
export function eosToken(files: TokenizerFiles, ids: Map<string, number>): SpecialToken | null {
  return named(files, 'eos', ids, '</s>', true);
}

function named(
  files: TokenizerFiles,
  name: 'bos' | 'eos',
  ids: Map<string, number>,
  llamaDefault: string,
  byId: boolean,
): SpecialToken | null {
  const key = `${name}_token`;
  const source = [files.tokenizerConfig, files.specialTokensMap].find((file) => file && key in file);
  if (source) {
    const file = source === files.tokenizerConfig ? 'tokenizer_config.json' : 'special_tokens_map.json';
    const text = tokenText(source[key], `${files.dir}/${file}: ${key}`);
    if (text === null) return null;
    const id = ids.get(text);
    if (id !== undefined) return { text, id };
    throw new PluralignError(
      'BAD_FILE',
      `${files.dir}/${file}: ${key}: ${JSON.stringify(text)} is not in the vocabulary of tokenizer.json; ` +
        'add it there or set it to null',
    );
  }
  if (isLlamaClass(files) && ids.has(llamaDefault)) return { text: llamaDefault, id: ids.get(llamaDefault) as number };
  const listed = byId ? files.modelConfig?.[`${name}_token_id`] : null;
  const id = Array.isArray(listed) ? listed[0] : listed;
  for (const [text, candidate] of ids) if (candidate === id) return { text, id: candidate };
  return null;
}

/** `"<s>"`, `{"content":"<s>"}` or null. */
function tokenText(value: unknown, where: string): string | null {
  if (value == null) return null;
  if (typeof value === 'string') return value;
  if (isObject(value) && typeof value.content === 'string') return value.content;
  throw new PluralignError(
    'BAD_FILE',
    `${where}: expected text, an object with "content", or null, found ${describe(value)}`,
  );
}

/** The special tokens by name (`bos_token`, `pad_token` …) that chat templates may use. */
export function templateTokens(files: TokenizerFiles): Record<string, string> {
  const tokens: Record<string, string> = {};
  for (const [file, json] of [
    ['special_tokens_map.json', files.specialTokensMap],
    ['tokenizer_config.json', files.tokenizerConfig],
  ] as const) {
    for (const [key, value] of Object.entries(json ?? {})) {
      if (!/^[a-z]+_token$/.test(key) || typeof value === 'boolean') continue;
      const text = tokenText(value, `${files.dir}/${file}: ${key}`);
      if (text === null) delete tokens[key];
      else tokens[key] = text;
    }
  }
  return tokens;
}
