// Trains the demo model's tokenizer: byte-level BPE over the stories, in the form of Hugging Face's tokenizer.json.
// Deterministic: of equally frequent pairs the one that sorts first is merged.
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { corpus } from './stories.mjs';

const vocabSize = 512;
const specials = ['<|begin|>', '<|end|>'];

/** The pattern of the byte-level pre-tokenizer (GPT-2). */
const words = /'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+/gu;

/** A printable character for each of the 256 bytes: itself where it is one, else from U+0100 on (GPT-2). */
function byteCharacters() {
  let next = 256;
  return Array.from({ length: 256 }, (_, byte) => {
    const printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
    return String.fromCharCode(printable ? byte : next++);
  });
}

/** The `count` merges of byte-pair encoding over the texts, most frequent pair first. */
function trainMerges(texts, count) {
  const characters = byteCharacters();
  const frequencies = new Map();
  for (const text of texts) {
    for (const [word] of text.matchAll(words)) frequencies.set(word, (frequencies.get(word) ?? 0) + 1);
  }
  const entries = [...frequencies].map(([word, frequency]) => ({
    symbols: Array.from(Buffer.from(word), (byte) => characters[byte]),
    frequency,
  }));
  const merges = [];
  while (merges.length < count) {
    const pairs = new Map();
    for (const { symbols, frequency } of entries) {
      for (let i = 0; i + 1 < symbols.length; i++) {
        const pair = `${symbols[i]} ${symbols[i + 1]}`;
        pairs.set(pair, (pairs.get(pair) ?? 0) + frequency);
      }
    }
    let best = null;
    for (const [pair, frequency] of pairs) {
      if (best === null || frequency > best.frequency || (frequency === best.frequency && pair < best.pair)) {
        best = { pair, frequency };
      }
    }
    if (best === null) throw new Error(`the stories have only ${merges.length} pairs to merge, expected ${count}`);
    const [left, right] = best.pair.split(' ');
    merges.push([left, right]);
    for (const entry of entries) {
      const { symbols } = entry;
      const merged = [];
      for (let i = 0; i < symbols.length; i++) {
        if (symbols[i] === left && symbols[i + 1] === right) {
          merged.push(left + right);
          i++;
        } else merged.push(symbols[i]);
      }
      entry.symbols = merged;
    }
  }
  return { characters, merges };
}

function trainTokenizer(texts) {
  const { characters, merges } = trainMerges(texts, vocabSize - specials.length - 256);
  const tokens = [...specials, ...characters, ...merges.map(([left, right]) => left + right)];
  const added = { single_word: false, lstrip: false, rstrip: false, normalized: false, special: true };
  const byteLevel = { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: true };
  return {
    version: '1.0',
    truncation: null,
    padding: null,
    added_tokens: specials.map((content, id) => ({ id, content, ...added })),
    normalizer: null,
    pre_tokenizer: byteLevel,
    post_processor: {
      type: 'TemplateProcessing',
      single: [{ SpecialToken: { id: specials[0], type_id: 0 } }, { Sequence: { id: 'A', type_id: 0 } }],
      pair: [
        { SpecialToken: { id: specials[0], type_id: 0 } },
        { Sequence: { id: 'A', type_id: 0 } },
        { Sequence: { id: 'B', type_id: 1 } },
      ],
      special_tokens: { [specials[0]]: { id: specials[0], ids: [0], tokens: [specials[0]] } },
    },
    decoder: byteLevel,
    model: {
      type: 'BPE',
      dropout: null,
      unk_token: null,
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: false,
      byte_fallback: false,
      ignore_merges: false,
      vocab: Object.fromEntries(tokens.map((token, id) => [token, id])),
      merges,
    },
  };
}

const tokenizerConfig = {
  add_bos_token: true,
  bos_token: specials[0],
  clean_up_tokenization_spaces: false,
  eos_token: specials[1],
  model_max_length: 256,
  tokenizer_class: 'PreTrainedTokenizerFast',
};

/** Writes tokenizer.json and tokenizer_config.json, trained on all stories. */
export function writeTokenizer(folder) {
  mkdirSync(folder, { recursive: true });
  writeFileSync(join(folder, 'tokenizer.json'), `${JSON.stringify(trainTokenizer(corpus()), null, 1)}\n`);
  writeFileSync(join(folder, 'tokenizer_config.json'), `${JSON.stringify(tokenizerConfig, null, 2)}\n`);
}
