import { PluralignError } from '../native/errors.js';

export type Decode = (ids: ArrayLike<number>) => string;

/** What of a text goes once the sequence has ended, and all that this may be. */
export interface Ending {
  spellings: readonly string[];
  text(ids: ArrayLike<number>, said: string): string;
}

/** What a decoder writes for bytes that are no whole character (yet). */
const incomplete = '\uFFFD';

/** Follows a sequence's text as tokens come, for stop strings and for streaming. Tokens need not end where characters do. */
export class TextWatch {
  readonly #stops: readonly string[];
  readonly #decode: Decode;
  readonly #ending: Ending;
  #text = '';
  #shown = 0;
  #stopped = false;

  constructor(
    decode: Decode,
    stops: readonly string[] = [],
    ending: Ending = { spellings: [], text: (_, said) => said },
  ) {
    if (stops.some((stop) => stop === '')) throw new PluralignError('BAD_ARGUMENT', 'a stop string is empty');
    this.#decode = decode;
    this.#stops = stops;
    this.#ending = ending;
  }

  /** The text so far, without a stop string and what came behind it. */
  get text(): string {
    return this.#text;
  }

  /** A stop string was met. */
  get stopped(): boolean {
    return this.#stopped;
  }

  /**
   * Takes the sequence's tokens, of which the first `known` were given before. Gives how many stay: all, or as many as it
   * took to complete the first stop string.
   */
  take(ids: readonly number[], known: number): number {
    if (this.#stopped) return known;
    const said = this.#decode(ids);
    if (this.#first(said) === -1) {
      this.#text = this.#ending.text(ids, said);
      return ids.length;
    }
    let count = known + 1;
    while (count < ids.length && this.#first(this.#decode(ids.slice(0, count))) === -1) count++;
    this.#text = this.#decode(ids.slice(0, count));
    this.#text = this.#text.slice(0, this.#first(this.#text));
    this.#stopped = true;
    return count;
  }

  /**
   * Text that was not shown yet and will not change: without a character that lacks bytes, and without what may become a
   * stop string or a spelled-out ending. With `last` all that is left.
   */
  show(last: boolean): string {
    let end = this.#text.length;
    if (!last && !this.#stopped) {
      while (end > 0 && this.#text[end - 1] === incomplete) end--;
      // Whole stop strings were cut already; a whole ending goes only if the sequence ends with it.
      const held = [...this.#stops.map((stop) => stop.slice(0, -1)), ...this.#ending.spellings];
      for (const text of held)
        for (let n = Math.min(text.length, end); n > 0; n--) {
          if (!this.#text.slice(0, end).endsWith(text.slice(0, n))) continue;
          end -= n;
          break;
        }
    }
    const fresh = this.#text.slice(this.#shown, end);
    this.#shown = Math.max(this.#shown, end);
    return fresh;
  }

  #first(text: string): number {
    const places = this.#stops.map((stop) => text.indexOf(stop)).filter((at) => at !== -1);
    return places.length === 0 ? -1 : Math.min(...places);
  }
}
