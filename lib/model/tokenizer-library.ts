import { Tokenizer } from '@huggingface/tokenizers';
import { PluralignError } from '../native/errors.js';
import { PairMerger } from './bpe.js';
import type { Json } from './folder.js';

/**
 * The library's tokenizer for a tokenizer.json, with two of its parts replaced: byte-pair merging (its own takes ten times
 * as long on long words) and the text of byte tokens (its own drops a byte order mark). `where` is named in errors.
 */
export function buildTokenizer(json: Json, where: string): Tokenizer {
  const tokenizer = construct(json, where);
  const model = json.model as Json & { vocab: Record<string, number>; merges: [string, string][] };
  if (model.type === 'BPE' && !model.end_of_word_suffix) {
    const merger = new PairMerger(model.vocab, model.merges);
    (tokenizer.model as unknown as { bpe(word: string): string[] }).bpe = (word) => merger.split(word);
  }
  replaceByteText(tokenizer.decoder);
  return tokenizer;
}

function construct(json: Json, where: string): Tokenizer {
  try {
    return new Tokenizer(json, {});
  } catch (error) {
    const { message } = error as Error;
    const unknown = /^Unknown (\w+) type: (.*)$/.exec(message);
    if (unknown) throw new PluralignError('UNSUPPORTED', `${where}: ${unknown[1]} ${unknown[2]} is not implemented`);
    throw new PluralignError('BAD_FILE', `${where}: ${message}`, { cause: error });
  }
}

interface ByteDecoder {
  config?: { type?: string };
  decoders?: unknown[];
  text_decoder?: { decode(bytes: Uint8Array): string };
}

function replaceByteText(decoder: unknown): void {
  const part = decoder as ByteDecoder | null;
  if (part?.config?.type === 'ByteFallback') part.text_decoder = { decode: byteText };
  for (const inner of part?.decoders ?? []) replaceByteText(inner);
}

const utf8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });

/** A run of byte tokens as the tokenizers crate writes it: UTF-8, or one replacement character for every byte of the run. */
function byteText(bytes: Uint8Array): string {
  try {
    return utf8.decode(bytes);
  } catch {
    return '\ufffd'.repeat(bytes.length);
  }
}
