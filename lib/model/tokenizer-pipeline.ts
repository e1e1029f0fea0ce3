import { PluralignError } from '../native/errors.js';
import { describe, isObject, type Json } from './folder.js';
import { isLlamaClass, type TokenizerFiles } from './special-tokens.js';

/** The pattern of the byte-level pre-tokenizer (GPT-2), as the tokenizers crate has it. */
const byteLevelPattern = "'(?:[sdmt]|ll|ve|re)| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

/**
 * A tokenizer.json checked and rewritten so that the JavaScript library gives the ids that transformers gives:
 *
 * - no post-processor: special tokens are never added here;
 * - LlamaTokenizer models get the pipeline that transformers 5 builds for that class whatever the file says;
 * - pre-tokenizers whose JavaScript version differs are replaced by ones that agree.
 *
 * Throws `BAD_FILE` for what is malformed, `UNSUPPORTED` for parts that would give other ids here.
 */
export function pipeline(files: TokenizerFiles): Json {
  const where = `${files.dir}/tokenizer.json`;
  const { tokenizer } = files;
  const model = tokenizer.model;
  if (!isObject(model)) return bad(where, 'model', 'an object', model);
  const result: Json = {
    ...tokenizer,
    model: checkedModel(model, where),
    added_tokens: addedTokens(files, where),
    normalizer: tokenizer.normalizer ?? null,
    pre_tokenizer: preTokenizer(tokenizer.pre_tokenizer ?? null, `${where}: pre_tokenizer`),
    post_processor: null,
    decoder: tokenizer.decoder ?? null,
  };
  return isLlamaClass(files) && isSentencePiece(tokenizer) ? asLlama(result, files) : result;
}

function bad(where: string, key: string, expected: string, found: unknown): never {
  throw new PluralignError('BAD_FILE', `${where}: ${key}: expected ${expected}, found ${describe(found)}`);
}

function refuse(where: string, what: string): never {
  throw new PluralignError('UNSUPPORTED', `${where}: ${what} is not implemented`);
}

function checkedModel(model: Json, where: string): Json {
  const type = model.type ?? (Array.isArray(model.vocab) ? 'Unigram' : model.merges ? 'BPE' : undefined);
  if (type === 'Unigram') {
    if (!Array.isArray(model.vocab) || model.vocab.length === 0)
      bad(where, 'model.vocab', 'a list of pieces', model.vocab);
    const vocab = model.vocab as unknown[];
    for (const [i, piece] of vocab.entries()) {
      if (!Array.isArray(piece) || typeof piece[0] !== 'string' || typeof piece[1] !== 'number') {
        bad(where, `model.vocab[${i}]`, '[text, score]', piece);
      }
    }
    if (model.byte_fallback === true) refuse(where, 'model: Unigram with byte_fallback');
    const unk = model.unk_id;
    if (typeof unk !== 'number' || !(unk in vocab)) bad(where, 'model.unk_id', 'the index of a piece', unk);
    return { ...model, type };
  }
  if (type !== 'BPE') refuse(where, `model.type ${String(type)} (supported are BPE and Unigram)`);
  const vocab = model.vocab;
  if (!isObject(vocab) || Object.keys(vocab).length === 0)
    return bad(where, 'model.vocab', 'an object of token → id', vocab);
  const seen = new Set<unknown>();
  for (const [token, id] of Object.entries(vocab)) {
    checkId(id, where, `model.vocab[${JSON.stringify(token)}]`);
    if (seen.has(id)) bad(where, `model.vocab[${JSON.stringify(token)}]`, 'an id of its own', id);
    seen.add(id);
  }
  if (typeof model.dropout === 'number' && model.dropout > 0) refuse(where, 'model.dropout');
  if (model.continuing_subword_prefix) refuse(where, 'model.continuing_subword_prefix');
  return { ...model, type, merges: merges(model, vocab, where) };
}

function checkId(id: unknown, where: string, key: string): asserts id is number {
  if (typeof id !== 'number' || !Number.isInteger(id) || id < 0 || id >= 2 ** 31)
    bad(where, key, 'an id from 0 to 2^31 − 1', id);
}

function merges(model: Json, vocab: Json, where: string): [string, string][] {
  if (!Array.isArray(model.merges)) return bad(where, 'model.merges', 'a list', model.merges);
  // Old files write "a b", new ones ["a", "b"]; a mixture would be read by the first one's form.
  return model.merges.map((merge, i) => {
    const pair = typeof merge === 'string' ? merge.split(' ') : merge;
    if (!Array.isArray(pair) || pair.length !== 2 || pair.some((part) => typeof part !== 'string')) {
      return bad(where, `model.merges[${i}]`, 'two tokens', merge);
    }
    for (const token of [pair[0], pair[1], pair[0] + pair[1]]) {
      if (!Object.hasOwn(vocab, token)) bad(where, `model.merges[${i}]`, 'tokens of the vocabulary', token);
    }
    return pair as [string, string];
  });
}

/** Those of tokenizer.json, then those that only tokenizer_config.json's `added_tokens_decoder` has. */
function addedTokens(files: TokenizerFiles, where: string): Json[] {
  const listed = files.tokenizer.added_tokens ?? [];
  if (!Array.isArray(listed)) return bad(where, 'added_tokens', 'a list', listed);
  const tokens = listed.map((token, i) => checkAdded(token, where, `added_tokens[${i}]`));
  const decoder = files.tokenizerConfig?.added_tokens_decoder;
  if (isObject(decoder)) {
    const known = new Set(tokens.map((token) => token.content));
    for (const [id, token] of Object.entries(decoder)) {
      if (!isObject(token) || known.has(token.content)) continue;
      const config = `${files.dir}/tokenizer_config.json`;
      tokens.push(checkAdded({ ...token, id: Number(id) }, config, `added_tokens_decoder[${id}]`));
    }
  }
  return tokens;
}

function checkAdded(token: unknown, where: string, key: string): Json {
  if (!isObject(token)) return bad(where, key, 'an object', token);
  if (typeof token.content !== 'string' || token.content === '') bad(where, `${key}.content`, 'text', token.content);
  checkId(token.id, where, `${key}.id`);
  if (token.single_word === true) refuse(where, `${key}.single_word`);
  return token;
}

const split = (pattern: string) => ({
  type: 'Split',
  pattern: { Regex: pattern },
  behavior: 'Isolated',
  invert: false,
});

function preTokenizer(config: unknown, where: string): Json | null {
  if (config === null) return null;
  if (!isObject(config)) return bad(where, 'type', 'an object', config);
  switch (config.type) {
    case 'Sequence': {
      if (!Array.isArray(config.pretokenizers)) return bad(where, 'pretokenizers', 'a list', config.pretokenizers);
      return { ...config, pretokenizers: config.pretokenizers.map((part, i) => preTokenizer(part, `${where}[${i}]`)) };
    }
    case 'ByteLevel':
      // The library's own pattern takes JavaScript's white space, which is not Unicode's. A prefix space goes in front of
      // the first word only, so it cannot come after the split.
      if (config.use_regex === false || config.add_prefix_space === true) return config;
      return { type: 'Sequence', pretokenizers: [split(byteLevelPattern), { ...config, use_regex: false }] };
    case 'Digits':
      return split(config.individual_digits === true ? '\\p{N}' : '\\p{N}+');
    case 'Metaspace': {
      // `add_prefix_space` is the older key.
      const scheme = config.prepend_scheme ?? (config.add_prefix_space === false ? 'never' : 'always');
      return { ...config, prepend_scheme: scheme };
    }
    case 'Split': {
      const removed = config.behavior === 'Removed';
      if (!removed && (config.behavior !== 'Isolated' || config.invert === true)) {
        refuse(where, `Split with behavior ${String(config.behavior)}${config.invert === true ? ', inverted' : ''}`);
      }
      return config;
    }
    default:
      return config;
  }
}

/** A pipeline that writes a space as ▁, as against one on bytes (some of which name LlamaTokenizer as well). */
function isSentencePiece(tokenizer: Json): boolean {
  const parts = JSON.stringify([tokenizer.normalizer ?? null, tokenizer.pre_tokenizer ?? null]);
  return isObject(tokenizer.model) && tokenizer.model.byte_fallback === true && parts.includes('▁');
}

/**
 * transformers 5 takes only vocabulary, merges and added tokens of such a file and builds the rest: no normaliser, ▁ in
 * front of the text (`legacy: false`) or of every part between special tokens unless there is one, unknown characters
 * dropped where the vocabulary has no byte tokens. For model_type mistral it takes the file as it is.
 */
function asLlama(tokenizer: Json, files: TokenizerFiles): Json {
  if (files.modelConfig && files.modelConfig.model_type !== 'llama') return tokenizer;
  const prefix = files.tokenizerConfig?.add_prefix_space ?? true;
  const legacy = files.tokenizerConfig?.legacy ?? false;
  return {
    ...tokenizer,
    normalizer: null,
    pre_tokenizer: {
      type: 'Metaspace',
      replacement: '▁',
      prepend_scheme: prefix ? (legacy ? 'always' : 'first') : 'never',
      split: false,
    },
    decoder: {
      type: 'Sequence',
      decoders: [
        { type: 'Replace', pattern: { String: '▁' }, content: ' ' },
        { type: 'ByteFallback' },
        { type: 'Fuse' },
        ...(prefix ? [{ type: 'Strip', content: ' ', start: 1, stop: 0 }] : []),
      ],
    },
    model: { ...(tokenizer.model as Json), unk_token: null, fuse_unk: true, byte_fallback: true, ignore_merges: false },
  };
}
