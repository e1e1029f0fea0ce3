/** Longer words (whole texts, where a tokenizer does not split at spaces) are not worth remembering. */
const cachedLength = 64;
const cachedWords = 50_000;

/**
 * Byte-pair merging of one word: the pair of lowest rank is merged first, the leftmost of equals, until none is left.
 * O(n log n) with a heap of (rank, position), so that a text of a megabyte that is one word takes about a second.
 */
export class PairMerger {
  readonly #ids: Map<string, number>;
  readonly #texts: string[];
  /** left × vocabulary + right → rank. */
  readonly #ranks = new Map<number, number>();
  /** Id of what each rank's pair becomes. */
  readonly #merged: Int32Array;
  readonly #size: number;
  readonly #cache = new Map<string, string[]>();

  /** `merges` in order of rank; every token in them is in `vocab`. */
  constructor(vocab: Record<string, number>, merges: readonly (readonly [string, string])[]) {
    this.#ids = new Map(Object.entries(vocab));
    this.#texts = [];
    this.#size = 1;
    for (const [text, id] of this.#ids) {
      this.#texts[id] = text;
      this.#size = Math.max(this.#size, id + 1);
    }
    this.#merged = new Int32Array(merges.length);
    merges.forEach(([left, right], rank) => {
      this.#ranks.set(this.#pair(this.#id(left), this.#id(right)), rank);
      this.#merged[rank] = this.#id(left + right);
    });
  }

  /** The word's tokens as text; a character outside the vocabulary stays as it is. */
  split(word: string): string[] {
    const cached = this.#cache.get(word);
    if (cached) return cached;
    const tokens = this.#merge(Array.from(word));
    if (word.length <= cachedLength) {
      if (this.#cache.size >= cachedWords) this.#cache.clear();
      this.#cache.set(word, tokens);
    }
    return tokens;
  }

  #id(text: string): number {
    return this.#ids.get(text) ?? -1;
  }

  #pair(left: number, right: number): number {
    return left * this.#size + right;
  }

  #rank(left: number, right: number): number {
    return left < 0 || right < 0 ? -1 : (this.#ranks.get(this.#pair(left, right)) ?? -1);
  }

  #merge(characters: string[]): string[] {
    const n = characters.length;
    if (n < 2) return characters;
    // A linked list over positions; −2 marks a symbol that went into its left neighbour.
    const ids = Int32Array.from(characters, (character) => this.#id(character));
    const next = Int32Array.from(ids, (_, i) => (i + 1 < n ? i + 1 : -1));
    const previous = Int32Array.from(ids, (_, i) => i - 1);
    const heap = new RankHeap();
    const offer = (at: number) => {
      const rank = at < 0 || next[at] < 0 ? -1 : this.#rank(ids[at], ids[next[at]]);
      if (rank >= 0) heap.push(rank, at);
    };
    for (let i = 0; i < n - 1; i++) offer(i);
    while (heap.pop()) {
      const at = heap.position;
      const right = ids[at] === -2 ? -1 : next[at];
      // What was offered may have been merged away since.
      if (right < 0 || this.#rank(ids[at], ids[right]) !== heap.rank) continue;
      ids[at] = this.#merged[heap.rank];
      ids[right] = -2;
      next[at] = next[right];
      if (next[at] >= 0) previous[next[at]] = at;
      offer(previous[at]);
      offer(at);
    }
    const tokens: string[] = [];
    for (let i = 0; i >= 0; i = next[i]) tokens.push(ids[i] < 0 ? characters[i] : this.#texts[ids[i]]);
    return tokens;
  }
}

const positions = 2 ** 31;

/** Binary heap of (rank, position), lowest first, both packed into one float64 (rank < 2^22, position < 2^31). */
class RankHeap {
  readonly #keys: number[] = [];
  rank = 0;
  position = 0;

  push(rank: number, position: number): void {
    const keys = this.#keys;
    const key = rank * positions + position;
    let i = keys.length;
    keys.push(key);
    while (i > 0) {
      const parent = (i - 1) >> 1;
      if (keys[parent] <= key) break;
      keys[i] = keys[parent];
      i = parent;
    }
    keys[i] = key;
  }

  /** Takes the lowest into `rank` and `position`; false where there is none. */
  pop(): boolean {
    const keys = this.#keys;
    if (keys.length === 0) return false;
    const top = keys[0];
    const last = keys.pop() as number;
    const n = keys.length;
    if (n > 0) {
      let i = 0;
      for (;;) {
        let child = 2 * i + 1;
        if (child >= n) break;
        if (child + 1 < n && keys[child + 1] < keys[child]) child++;
        if (keys[child] >= last) break;
        keys[i] = keys[child];
        i = child;
      }
      keys[i] = last;
    }
    this.rank = Math.floor(top / positions);
    this.position = top % positions;
    return true;
  }
}
