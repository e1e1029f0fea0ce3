import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Message } from '../lib/data/types.js';
import type { Tokenizer } from '../lib/model/tokenizer-types.js';

/** A folder of files that a test writes, removed at the end. */
export class Folder {
  readonly path = mkdtempSync(join(tmpdir(), 'pluralign-data-'));

  write(name: string, contents: string | Uint8Array): string {
    const path = join(this.path, name);
    writeFileSync(path, contents);
    return path;
  }

  remove(): void {
    rmSync(this.path, { recursive: true, force: true });
  }
}

export const jsonl = (...rows: unknown[]) => rows.map((row) => `${JSON.stringify(row)}\n`).join('');

interface WordOptions {
  bos?: boolean;
  eos?: boolean;
  template?: (messages: Message[], generate: boolean) => string;
}

/** Each character is its code, `<s>` is 1 and `</s>` is 2: what ids a text must have can be read off. */
export function characterTokenizer({ bos = true, eos = true, template }: WordOptions = {}): Tokenizer {
  const special: Record<string, number> = { '<s>': 1, '</s>': 2 };
  const encode = (text: string) =>
    Int32Array.from(text.match(/<s>|<\/s>|[\s\S]/g) ?? [], (piece) => special[piece] ?? piece.charCodeAt(0));
  return {
    vocabSize: 0x10000,
    bosId: bos ? 1 : null,
    eosId: eos ? 2 : null,
    bosToken: bos ? '<s>' : null,
    eosToken: eos ? '</s>' : null,
    hasChatTemplate: template !== undefined,
    encode,
    encodeRendered: encode,
    decode: (ids) => Array.from(ids, (id) => (id === 1 ? '<s>' : id === 2 ? '</s>' : String.fromCharCode(id))).join(''),
    render: (messages, { addGenerationPrompt }) => {
      if (!template) throw new Error('no template');
      return template(messages, addGenerationPrompt);
    },
  };
}

/** A template that only appends: `[user]text` … `[assistant]`. */
export const appending =
  (start = '', end = '') =>
  (messages: Message[], generate: boolean) =>
    start + messages.map(({ role, content }) => `[${role}]${content}${end}`).join('') + (generate ? '[assistant]' : '');
