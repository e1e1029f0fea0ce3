import { Random } from '../../base/random.js';
import { PluralignError } from '../../native/errors.js';
import { addon } from '../../native/loader.js';
import { type Ballots, ballotsOf } from '../ballots.js';
import { orthonormalise } from '../linalg.js';
import { fitThreads, strideOf } from '../native.js';
import type { Votes } from '../votes.js';
import { type BatchOptions, type Features, sharedPrecision } from './model.js';

/**
 * Mini-batches of the low-rank model: Adam (Kingma and Ba 2015) on the factor V, the mean w_0 and everyone's z_u, float32.
 * A step projects only the items that its votes name and moves only its voters. After a step the columns of V are made
 * orthonormal again (a retraction), so that the prior on z_u is that on V z_u.
 */
export class LowRankBatches {
  /** [k + 1, d]: the columns of V, then w_0. */
  readonly shared: Float32Array;
  /** [voters, stride]: z_u, then 1. */
  readonly users: Float32Array;
  readonly stride: number;
  readonly #ballots: Ballots;
  readonly #voterOf: Int32Array;
  readonly #random: Random;
  readonly #moments: Record<'shared' | 'mean' | 'users', { m: Float32Array; v: Float32Array; steps: Int32Array }>;
  /** Memory of a step, made once. */
  readonly #room: ReturnType<typeof roomFor>;

  constructor(
    readonly table: Features,
    votes: Votes,
    readonly k: number,
    readonly options: BatchOptions & { l2: number; seed: number },
    factor: Float64Array,
  ) {
    const { d } = table;
    const ballots = ballotsOf(votes);
    this.#ballots = ballots;
    this.stride = strideOf(k + 1, 4);
    this.#random = new Random(options.seed, 0xba7c);
    this.shared = new Float32Array((k + 1) * d);
    for (let j = 0; j < d; j++) for (let c = 0; c < k; c++) this.shared[c * d + j] = factor[j * k + c];
    this.users = new Float32Array(ballots.voters * this.stride);
    for (let u = 0; u < ballots.voters; u++) this.users[u * this.stride + k] = 1;
    this.#voterOf = new Int32Array(ballots.votes);
    for (let u = 0; u < ballots.voters; u++) {
      this.#voterOf.fill(u, ballots.voterStart[u], ballots.voterStart[u + 1]);
    }
    const moments = (size: number, rows: number) => ({
      m: new Float32Array(size),
      v: new Float32Array(size),
      steps: new Int32Array(rows),
    });
    this.#moments = {
      shared: moments(k * d, 1),
      mean: moments(d, 1),
      users: moments(this.users.length, ballots.voters),
    };
    this.#room = roomFor(
      table,
      Math.min(options.batch, ballots.votes),
      this.#longest(),
      this.stride,
      this.shared.length,
    );
  }

  /** Places in a batch, at most. */
  #longest(): number {
    const { voteStart, votes } = this.#ballots;
    let longest = 2;
    for (let v = 0; voteStart && v < votes; v++) longest = Math.max(longest, voteStart[v + 1] - voteStart[v]);
    return Math.min(this.options.batch, votes) * longest;
  }

  /** One pass over all votes in a new order; the mean loss of a vote, each taken before its own step. */
  epoch(rate = this.options.learningRate, signal?: AbortSignal): number {
    const ballots = this.#ballots;
    const { batch: size, order } = this.options;
    const dealt =
      order === 'blocks'
        ? dealByItems(ballots, this.table.n, size, this.#random)
        : deal(ballots.votes, size, this.#random);
    // What is read of a vote lies together in the batch's order: looking it up vote by vote would miss the caches.
    const pairs = ballots.voteStart ? undefined : new Int32Array(2 * ballots.votes);
    const voter = new Int32Array(ballots.votes);
    const next = Int32Array.from(dealt.starts);
    for (let v = 0; v < ballots.votes; v++) {
      const at = next[dealt.of[v]]++;
      dealt.votes[at] = v;
      voter[at] = this.#voterOf[v];
      if (!pairs) continue;
      pairs[2 * at] = ballots.places[2 * v];
      pairs[2 * at + 1] = ballots.places[2 * v + 1];
    }
    let loss = 0;
    for (const [from, to] of dealt.batches) {
      if (signal?.aborted) throw new PluralignError('ABORTED', 'stopped on request');
      loss += this.step(
        dealt.votes.subarray(from, to),
        voter.subarray(from, to),
        pairs?.subarray(2 * from, 2 * to),
        rate,
      );
    }
    return loss / Math.max(1, ballots.votes);
  }

  /** One step on some votes, ascending, their voters and, where all are pairs, their places; their loss before it. */
  step(batch: Int32Array, voter: Int32Array, pairs: Int32Array | undefined, rate: number): number {
    const { k, stride, shared, users, table } = this;
    const { bilinear } = addon();
    const threads = fitThreads();
    const { ballots, rows, voters } = this.#ballotsOf(batch, voter, pairs);
    const points = this.#room.points.subarray(0, rows.length * stride);
    const dPoints = this.#room.dPoints.subarray(0, rows.length * stride);
    const dUsers = this.#room.dUsers.subarray(0, voters.length * stride);
    const { gradient } = this.#room;
    const items = { x: table.features, d: table.d, rows, k: k + 1, stride, threads };
    bilinear.project({ ...items, v: shared, points });
    const loss = bilinear.loss({ ballots, points, users, voterRows: voters, stride, dPoints, dUsers, threads });
    if (!Number.isFinite(loss)) throw new PluralignError('NON_FINITE', `a batch has the loss ${loss}`);
    bilinear.projectBack({ ...items, v: gradient, points: dPoints });
    this.#move(gradient, dUsers, voters, ballots.voterStart, rate);
    return loss;
  }

  /** The batch's votes over its own items and voters, in their order. */
  #ballotsOf(batch: Int32Array, voterOf: Int32Array, pairs: Int32Array | undefined) {
    const { voteStart, stages, weights, margins, tie } = this.#ballots;
    const places = pairs ?? this.#ballots.places;
    const { local, rows, named, starts, voters, counts } = this.#room;
    let items = 0;
    let people = 0;
    let at = 0;
    for (let i = 0; i < batch.length; i++) {
      const from = voteStart ? voteStart[batch[i]] : 2 * i;
      const to = voteStart ? voteStart[batch[i] + 1] : from + 2;
      for (let p = from; p < to; p++) {
        const item = places[p];
        if (local[item] < 0) {
          local[item] = items;
          rows[items++] = item;
        }
        named[at++] = local[item];
      }
      starts[i + 1] = at;
      const voter = voterOf[i];
      if (people === 0 || voters[people - 1] !== voter) voters[people++] = voter;
      counts[people] = i + 1;
    }
    for (let i = 0; i < items; i++) local[rows[i]] = -1;
    return {
      ballots: {
        voterStart: counts.subarray(0, people + 1),
        voteStart: voteStart && starts.subarray(0, batch.length + 1),
        places: named.subarray(0, at),
        stages: stages && Int32Array.from(batch, (v) => stages[v]),
        weights: weights && Float64Array.from(batch, (v) => weights[v]),
        margins: margins && Float64Array.from(batch, (v) => margins[v]),
        tie,
      },
      rows: rows.subarray(0, items),
      voters: voters.subarray(0, people),
    };
  }

  #move(gradient: Float32Array, dUsers: Float32Array, voters: Int32Array, starts: Int32Array, rate: number): void {
    const { k, stride, shared, users, table } = this;
    const { d } = table;
    const { voterStart, votes, nameless } = this.#ballots;
    const { bilinear } = addon();
    const l2 = Math.max(this.options.l2, 1e-6);
    // The loss is that of the mean vote; a prior counts by the share of its votes that the batch has.
    const size = starts[starts.length - 1];
    const common = {
      learningRate: rate,
      beta1: 0.9,
      beta2: 0.999,
      eps: 1e-8,
      gradientScale: 1 / size,
      threads: fitThreads(),
    };
    const one = Int32Array.of(0);
    const part = (from: number, to: number) => ({
      parameters: shared.subarray(from, to),
      gradient: gradient.subarray(from, to),
    });
    const whole = { ...common, rows: one };
    bilinear.adam({ ...whole, ...part(0, k * d), ...this.#moments.shared, stride: k * d, free: k * d, l2: 0 });
    const prior = sharedPrecision(l2) / votes;
    bilinear.adam({ ...whole, ...part(k * d, (k + 1) * d), ...this.#moments.mean, stride: d, free: d, l2: prior });
    // Nobody has nothing of their own.
    const named =
      nameless > 0 && voters[voters.length - 1] === voterStart.length - 2 ? voters.length - 1 : voters.length;
    const share = this.#room.share.subarray(0, named);
    for (let i = 0; i < named; i++) {
      const u = voters[i];
      share[i] = (starts[i + 1] - starts[i]) / (voterStart[u + 1] - voterStart[u]) / size;
    }
    bilinear.adam({
      ...common,
      ...this.#moments.users,
      parameters: users,
      stride,
      free: k,
      rows: voters.subarray(0, named),
      gradient: dUsers.subarray(0, named * stride),
      share,
      l2,
    });
    retract(shared, k, d);
  }

  /** V [d, k], w_0 [d]. */
  parts(): { factor: Float64Array; mean: Float64Array } {
    const { k, shared } = this;
    const { d } = this.table;
    const factor = new Float64Array(d * k);
    for (let c = 0; c < k; c++) for (let j = 0; j < d; j++) factor[j * k + c] = shared[c * d + j];
    orthonormalise(factor, d, k);
    return { factor, mean: Float64Array.from(shared.subarray(k * d)) };
  }
}

function roomFor(table: Features, votes: number, places: number, stride: number, shared: number) {
  const items = Math.min(table.n, places);
  return {
    /** Row of an item in the batch, or −1. */
    local: new Int32Array(table.n).fill(-1),
    rows: new Int32Array(items),
    named: new Int32Array(places),
    starts: new Int32Array(votes + 1),
    voters: new Int32Array(votes),
    counts: new Int32Array(votes + 1),
    share: new Float32Array(votes),
    points: new Float32Array(items * stride),
    dPoints: new Float32Array(items * stride),
    dUsers: new Float32Array(votes * stride),
    gradient: new Float32Array(shared),
  };
}

/** Which batch of a pass each vote is in: a class [m], where the votes of a class begin, and the batches' ranges of them. */
interface Dealt {
  of: Int32Array;
  starts: Int32Array;
  /** [m] room for the votes in the order of their classes. */
  votes: Int32Array;
  batches: [number, number][];
}

function dealt(of: Int32Array, classes: number, size: number, random: Random): Dealt {
  const starts = new Int32Array(classes + 1);
  for (const c of of) starts[c + 1]++;
  for (let c = 0; c < classes; c++) starts[c + 1] += starts[c];
  const batches: [number, number][] = [];
  for (let c = 0; c < classes; c++) {
    const count = starts[c + 1] - starts[c];
    const parts = Math.ceil(count / size);
    const cut = (p: number) => starts[c] + Math.floor((count * p) / parts);
    for (let p = 0; p < parts; p++) batches.push([cut(p), cut(p + 1)]);
  }
  return { of, starts, votes: new Int32Array(of.length), batches: random.shuffle(batches) };
}

/**
 * Batches of at most `size` votes between two groups of items (those of a vote's first two places; two groups' own votes
 * share a batch). Groups and the order of the batches are drawn anew.
 */
export function dealByItems(ballots: Ballots, items: number, size: number, random: Random): Dealt {
  const { votes, voteStart, places } = ballots;
  // An even number of groups such that the votes between two of them fill a batch, with room for chance.
  const least = Math.sqrt((2 * votes) / Math.max(1, size - 4 * Math.sqrt(size)));
  const groups = Math.min(256, Math.max(2, 2 * Math.ceil(least / 2)));
  const group = random.shuffle(Uint8Array.from({ length: items }, (_, i) => i % groups));
  const of = new Int32Array(votes);
  for (let v = 0; v < votes; v++) {
    const at = voteStart ? voteStart[v] : 2 * v;
    const a = group[places[at]];
    const b = group[places[at + 1]];
    of[v] = a === b ? (a & ~1) * groups + (a & ~1) : Math.min(a, b) * groups + Math.max(a, b);
  }
  return dealt(of, groups * groups, size, random);
}

/**
 * Random batches of at most `size` of the votes 0 … m − 1: every run of as many neighbours as there are batches goes to
 * different ones, from a random one on in an order drawn anew. Votes stand by voter, so a batch has each in proportion.
 */
export function deal(m: number, size: number, random: Random): Dealt {
  const count = Math.max(1, Math.ceil(m / size));
  const order = random.shuffle(Int32Array.from({ length: count }, (_, i) => i));
  const of = new Int32Array(m);
  for (let from = 0; from < m; from += count) {
    let at = random.below(count);
    const to = Math.min(m, from + count);
    for (let v = from; v < to; v++) {
      of[v] = order[at];
      if (++at === count) at = 0;
    }
  }
  return dealt(of, count, size, random);
}

/** Rows [k, d] made orthonormal in place (modified Gram–Schmidt), each in the direction it has. */
function retract(rows: Float32Array, k: number, d: number): void {
  for (let c = 0; c < k; c++) {
    const own = rows.subarray(c * d, (c + 1) * d);
    for (let p = 0; p < c; p++) {
      const other = rows.subarray(p * d, (p + 1) * d);
      let dot = 0;
      for (let j = 0; j < d; j++) dot += own[j] * other[j];
      for (let j = 0; j < d; j++) own[j] -= dot * other[j];
    }
    let norm = 0;
    for (let j = 0; j < d; j++) norm += own[j] * own[j];
    const scale = norm > 0 ? 1 / Math.sqrt(norm) : 0;
    for (let j = 0; j < d; j++) own[j] *= scale;
  }
}
