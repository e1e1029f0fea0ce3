/** murmur3's finaliser: spreads every bit of a word over all of it. */
export function mix32(value: number): number {
  let x = value | 0;
  x = Math.imul(x ^ (x >>> 16), 0x85ebca6b);
  x = Math.imul(x ^ (x >>> 13), 0xc2b2ae35);
  return (x ^ (x >>> 16)) >>> 0;
}

/**
 * Small counter-based chaotic generator sfc32 (C. Doty-Humphrey, PractRand): 128 bits of state, 32-bit arithmetic only,
 * so that a stream is the same on every machine. The stream depends on every one of `seeds` and on their order.
 */
export class Random {
  #a = 0;
  #b = 0;
  #c = 0;
  #counter = 1;

  constructor(...seeds: number[]) {
    for (const seed of seeds) {
      // Seeds beyond 32 bits count in full: low word, then high word.
      for (const word of [seed >>> 0, Math.floor(seed / 2 ** 32) >>> 0]) {
        this.#a = mix32(this.#a ^ word);
        this.#b = mix32((this.#b + this.#a + 0x9e3779b9) | 0);
        this.#c = mix32(this.#c ^ (this.#b + word));
      }
    }
    for (let i = 0; i < 15; i++) this.next();
  }

  /** A uniform 32-bit word. */
  next(): number {
    const out = (((this.#a + this.#b) | 0) + this.#counter) | 0;
    this.#counter = (this.#counter + 1) | 0;
    this.#a = this.#b ^ (this.#b >>> 9);
    this.#b = (this.#c + (this.#c << 3)) | 0;
    this.#c = (((this.#c << 21) | (this.#c >>> 11)) + out) | 0;
    return out >>> 0;
  }

  /** Uniform in [0, 1), 53 bits. */
  uniform(): number {
    const high = this.next() >>> 5;
    return (high * 2 ** 26 + (this.next() >>> 6)) / 2 ** 53;
  }

  /** Uniform integer in [0, n) without bias, 1 ≤ n ≤ 2^32. */
  below(n: number): number {
    const limit = 2 ** 32 - (2 ** 32 % n);
    let word = this.next();
    while (word >= limit) word = this.next();
    return word % n;
  }

  /** Puts a list into an order drawn uniformly (Fisher and Yates), in place, and gives it back. */
  shuffle<T extends { readonly length: number; [i: number]: unknown }>(list: T): T {
    for (let i = list.length - 1; i > 0; i--) {
      const j = this.below(i + 1);
      const held = list[i];
      list[i] = list[j];
      list[j] = held;
    }
    return list;
  }

  /** Standard normal (Box–Muller, one of the pair). */
  normal(): number {
    const radius = Math.sqrt(-2 * Math.log(1 - this.uniform()));
    return radius * Math.cos(2 * Math.PI * this.uniform());
  }
}
