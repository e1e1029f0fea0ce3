import type { Message } from '../data/types.js';

/** Text to token ids and back, and conversations to text. Made by `loadTokenizer`. */
export interface Tokenizer {
  /** Largest id + 1, added tokens included; must not exceed the rows of the embedding. */
  readonly vocabSize: number;
  /**
   * The token that belongs once in front of a text, or null where none does: the tokenizer defines no `bos_token` (Qwen),
   * or its configuration says `add_bos_token: false`.
   */
  readonly bosId: number | null;
  /** The token that closes a plain-text completion, or null where the tokenizer defines none. */
  readonly eosId: number | null;
  /** The text of `bos_token` as chat templates see it, also where `bosId` is null because it is not to be added. */
  readonly bosToken: string | null;
  readonly eosToken: string | null;
  readonly hasChatTemplate: boolean;
  /** Token ids; nothing is added in front or behind. Special tokens written out in the text are recognised. */
  encode(text: string): Int32Array;
  /** The same for text that a chat template made: the special tokens in it are recognised, none are added. */
  encodeRendered(text: string): Int32Array;
  /** Text of ids; ids without a token are left out. `skipSpecial` (default false) leaves special tokens out as well. */
  decode(ids: ArrayLike<number>, options?: { skipSpecial?: boolean }): string;
  /**
   * A conversation through the chat template. Throws `BAD_DATA` where there is no template or where the template refuses
   * the conversation, `BAD_FILE` where the template does not parse.
   */
  render(messages: Message[], options: { addGenerationPrompt: boolean }): string;
}
