import { join } from 'node:path';
import type { Tokenizer as HubTokenizer } from '@huggingface/tokenizers';
import type { Message } from '../data/types.js';
import { PluralignError } from '../native/errors.js';
import { type ChatTemplate, readChatTemplate } from './chat.js';
import { type Json, readJsonIfThere } from './folder.js';
import { bosToken, eosToken, type SpecialToken, type TokenizerFiles, templateTokens } from './special-tokens.js';
import { buildTokenizer } from './tokenizer-library.js';
import { pipeline } from './tokenizer-pipeline.js';
import type { Tokenizer } from './tokenizer-types.js';

export type { Tokenizer } from './tokenizer-types.js';

/**
 * Loads a model folder's tokenizer: tokenizer.json, with what tokenizer_config.json, special_tokens_map.json,
 * chat_template.jinja and config.json say beside it. Ids agree with transformers 5 (`AutoTokenizer`,
 * `add_special_tokens=False`). Throws `NOT_FOUND` where there is no tokenizer.json, `BAD_FILE` where a file is malformed,
 * `UNSUPPORTED` naming a part that is not implemented.
 */
export async function loadTokenizer(dir: string): Promise<Tokenizer> {
  const path = join(dir, 'tokenizer.json');
  const tokenizer = readJsonIfThere(path);
  if (!tokenizer) {
    throw new PluralignError(
      'NOT_FOUND',
      `${path}: not there; expected the tokenizer of a Hugging Face model. One that is only in another form ` +
        '(tokenizer.model, vocab.json) is converted by AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)',
    );
  }
  return new FolderTokenizer({
    dir,
    tokenizer,
    tokenizerConfig: readJsonIfThere(join(dir, 'tokenizer_config.json')),
    specialTokensMap: readJsonIfThere(join(dir, 'special_tokens_map.json')),
    modelConfig: readJsonIfThere(join(dir, 'config.json')),
  });
}

class FolderTokenizer implements Tokenizer {
  readonly vocabSize: number;
  readonly bosId: number | null;
  readonly eosId: number | null;
  readonly bosToken: string | null;
  readonly eosToken: string | null;
  readonly #dir: string;
  readonly #inner: HubTokenizer;
  readonly #texts: Map<number, string>;
  readonly #special: Set<number>;
  readonly #chat: ChatTemplate | null;
  readonly #cleanUp: boolean;

  constructor(files: TokenizerFiles) {
    this.#dir = files.dir;
    const json = pipeline(files);
    this.#inner = buildTokenizer(json, `${files.dir}/tokenizer.json`);
    const vocabulary = this.#inner.get_vocab();
    this.#texts = new Map();
    const ids = new Map<string, number>();
    for (const [text, id] of vocabulary) {
      // The library's table has holes where ids are not contiguous.
      if (text === undefined) continue;
      ids.set(text, id);
      this.#texts.set(id, text);
    }
    this.vocabSize = [...this.#texts.keys()].reduce((most, id) => Math.max(most, id), -1) + 1;

    const bos = bosToken(files, ids);
    const eos = eosToken(files, ids);
    this.bosToken = bos?.text ?? null;
    this.eosToken = eos?.text ?? null;
    this.bosId = files.tokenizerConfig?.add_bos_token === false ? null : (bos?.id ?? null);
    this.eosId = eos?.id ?? null;
    const tokens = templateTokens(files);
    this.#special = specialIds(json, ids, [bos, eos], Object.values(tokens));
    this.#chat = readChatTemplate(files.dir, files.tokenizerConfig, {
      ...(bos && { bos_token: bos.text }),
      ...(eos && { eos_token: eos.text }),
      ...tokens,
    });
    // Undoing spaces before punctuation would corrupt the text of a BPE model; transformers 5 leaves it out there as well.
    this.#cleanUp =
      (json.model as Json).type === 'Unigram' && files.tokenizerConfig?.clean_up_tokenization_spaces === true;
  }

  get hasChatTemplate(): boolean {
    return this.#chat !== null;
  }

  encode(text: string): Int32Array {
    if (text === '') return new Int32Array(0);
    // Half of a surrogate pair has no UTF-8 form.
    const { ids } = this.#inner.encode(text.replace(/\p{Surrogate}/gu, '\uFFFD'), { add_special_tokens: false });
    return Int32Array.from(ids);
  }

  encodeRendered(text: string): Int32Array {
    return this.encode(text);
  }

  decode(ids: ArrayLike<number>, options: { skipSpecial?: boolean } = {}): string {
    const kept: number[] = [];
    for (let i = 0; i < ids.length; i++) {
      if (!this.#texts.has(ids[i]) || (options.skipSpecial && this.#special.has(ids[i]))) continue;
      kept.push(ids[i]);
    }
    if (kept.length === 0) return '';
    return this.#inner.decode(kept, { skip_special_tokens: false, clean_up_tokenization_spaces: this.#cleanUp });
  }

  render(messages: Message[], options: { addGenerationPrompt: boolean }): string {
    if (!this.#chat) {
      throw new PluralignError(
        'BAD_DATA',
        `${this.#dir}: conversations need a chat template and this tokenizer has none: add chat_template.jinja to the ` +
          'folder, or give prompts and completions as plain text',
      );
    }
    return this.#chat.render(messages, options);
  }
}

/** Ids that `skipSpecial` leaves out: added tokens marked special, and the named ones (bos, eos, pad, unk …). */
function specialIds(
  json: Json,
  ids: Map<string, number>,
  tokens: (SpecialToken | null)[],
  texts: string[],
): Set<number> {
  const special = new Set<number>();
  for (const token of json.added_tokens as { id: number; special?: boolean }[])
    if (token.special) special.add(token.id);
  for (const token of tokens) if (token) special.add(token.id);
  for (const text of texts) {
    const id = ids.get(text);
    if (id !== undefined) special.add(id);
  }
  return special;
}
