import { tieModels } from '../losses/ties.js';
import { type NamedTensor, readSafetensors, writeSafetensors } from '../model/safetensors.js';
import { PluralignError } from '../native/errors.js';
import { partOf } from './lazy.js';
import { lbfgs } from './lbfgs.js';
import type { FeatureModelName, FeatureRewardModel, Features, Parameters } from './models/index.js';
import { featureModel, featureModels, sizeOf } from './models/index.js';
import { jointObjective } from './models/joint.js';
import { newtonNative } from './native.js';
import { fitLinear } from './newton.js';
import { Posterior, packLower, posteriorSize, unpackLower } from './posterior.js';
import { fitRidge } from './ridge.js';
import { fitInSpan } from './span.js';
import { type Ties, withTies } from './ties.js';
import { subTable, subVotes, type Votes, votesByAnnotator, votesOfSome } from './votes.js';

/** Says the reward of an item for an annotator (an index into the population, or −1 for whoever is unknown). */
export type Scorer = (annotator: number, item: number) => number;

export interface Adapted {
  /** Own numbers of the annotator. */
  own: Float64Array;
  /** Newton or L-BFGS steps. */
  steps: number;
  milliseconds: number;
  /** Lower Cholesky factor [own, own] of the posterior's precision, where the model keeps posteriors. */
  factor?: Float64Array;
}

/** A trained model of rewards on features with everyone it knows. */
export class Population {
  readonly index: Map<string, number>;

  constructor(
    readonly model: FeatureRewardModel,
    readonly rank: number,
    readonly l2: number,
    readonly annotators: string[],
    readonly parameters: Parameters,
    /** The likelihood of ties that it was fitted with; null: ties say nothing. */
    readonly ties: Ties | null = null,
  ) {
    this.index = new Map(annotators.map((name, u) => [name, u]));
  }

  /** What an annotator's votes leave open; the prior for −1. Null where the run keeps no posteriors. */
  posterior(u: number): Posterior | null {
    const { own: k, convex } = this.model;
    if (k === 0 || k > posteriorSize || !convex) return null;
    if (u < 0) {
      const factor = new Float64Array(k * k);
      for (let i = 0; i < k; i++) factor[i * k + i] = Math.sqrt(Math.max(this.l2, 1e-6));
      return new Posterior(factor, k);
    }
    const size = (k * (k + 1)) / 2;
    const packed = this.parameters.posterior?.subarray(u * size, (u + 1) * size);
    return packed ? new Posterior(unpackLower(packed, k), k) : null;
  }

  /** As many as take 2^27 bytes. */
  get #factorsAtOnce(): number {
    return Math.max(1, Math.floor(2 ** 24 / this.model.own ** 2));
  }

  /**
   * With everyone's posteriors, from the votes that they were fitted to; as it was where the model keeps none.
   *
   * @param atOnce voters whose whole factors [own, own] are held at a time; what is kept is their lower triangles
   */
  withPosteriors(table: Features, votes: Votes, atOnce = this.#factorsAtOnce): Population {
    const { own: k } = this.model;
    if (!this.posterior(-1)) return this;
    const side = this.model.items(table, this.parameters.shared);
    const count = this.annotators.length;
    const size = (k * (k + 1)) / 2;
    const posterior = new Float64Array(count * size);
    const by = count > atOnce ? votesByAnnotator(votes) : null;
    for (let first = 0; first < count; first += atOnce) {
      const last = Math.min(count, first + atOnce);
      const factors = new Float64Array((last - first) * k * k);
      const of = by ? votesOfSome(votes, by, first, last) : votes;
      const own = this.parameters.own.slice(first * k, last * k);
      newtonNative(of, side, own, k, Math.max(this.l2, 1e-6), 1e-12, factors);
      for (let u = first; u < last; u++) {
        const at = (u - first) * k * k;
        packLower(factors.subarray(at, at + k * k), k, posterior.subarray(u * size, (u + 1) * size));
      }
    }
    const { shared, own } = this.parameters;
    return new Population(this.model, this.rank, this.l2, this.annotators, { shared, own, posterior }, this.ties);
  }

  /** An annotator's own numbers; −1: those of whoever is unknown. */
  own(u: number): Float64Array {
    const { own } = this.model;
    if (u >= 0) return this.parameters.own.subarray(u * own, (u + 1) * own);
    return this.model.generic?.(this.parameters.shared) ?? new Float64Array(own);
  }

  /** c_u [k], by which the points of items are weighed. */
  coordinates(u: number): Float64Array {
    const c = new Float64Array(this.model.k);
    this.model.user(this.parameters.shared, this.own(u), c);
    return c;
  }

  /** The annotator's reward as weights on the features, or null where it is not linear in them. */
  weights(u: number): Float64Array | null {
    return this.model.weights?.(this.parameters.shared, this.coordinates(u)) ?? null;
  }

  /** Projects the items once; every reward then costs k multiplications. */
  scorer(table: Features): Scorer {
    if (table.d !== this.model.d) throw wrongWidth(table, this.model.d);
    const { k } = this.model;
    const { base, points } = this.model.items(table, this.parameters.shared);
    const known = new Map<number, Float64Array>();
    return (u, item) => {
      let c = known.get(u);
      if (!c) {
        c = this.coordinates(u);
        known.set(u, c);
      }
      let reward = base[item];
      for (let j = 0; j < k; j++) reward += points[item * k + j] * c[j];
      return reward;
    };
  }

  /**
   * The own numbers of an annotator with the votes at `which`, everything shared held fixed: exact Newton where rewards
   * are linear in them, else L-BFGS from whoever is unknown. Nothing is changed.
   *
   * @throws PluralignError `UNSUPPORTED` for a model of one reward for all
   */
  fitOwn(table: Features, given: Votes, which: Int32Array): Adapted {
    const { model, l2 } = this;
    const votes = this.ties ? withTies(subVotes(given, which), this.ties) : given;
    if (this.ties) which = Int32Array.from({ length: votes.m }, (_, v) => v);
    if (table.d !== model.d) throw wrongWidth(table, model.d);
    if (model.own === 0) {
      throw new PluralignError(
        'UNSUPPORTED',
        'one reward for all (features.model: global) has nothing of an annotator',
      );
    }
    const started = performance.now();
    const done = (own: Float64Array, steps: number) => ({ own, steps, milliseconds: performance.now() - started });
    if (model.name === 'local' && !this.posterior(-1)) {
      const { w, steps } = fitRidge(table, votes, { l2, which });
      return done(w, steps);
    }
    const part = subTable(table, votes, which);
    if (this.posterior(-1)) {
      const side = model.items(part.table, this.parameters.shared);
      const problem = { votes: part.votes, ...side, k: model.k, l2: Math.max(l2, 1e-6) };
      const { z, steps, factor } = fitLinear(problem, undefined, 1e-14);
      return { ...done(z, steps), factor };
    }
    if (model.convex) {
      const { base, points } = model.items(part.table, this.parameters.shared);
      const { z, steps } = fitInSpan({ votes: part.votes, base, points, k: model.k, l2: Math.max(l2, 1e-6) });
      return done(z, steps);
    }
    const alone: Votes = { ...part.votes, annotators: ['new'], annotator: new Int32Array(part.votes.m) };
    const size = this.parameters.shared.length;
    const x = new Float64Array(size + model.own);
    x.set(this.parameters.shared);
    const full = new Float64Array(x.length);
    const own = new Float64Array(model.own);
    const { steps } = lbfgs((at, gradient) => {
      x.set(at, size);
      const value = jointObjective(model, part.table, alone, Math.max(l2, 1e-6), x, full, 0);
      gradient.set(full.subarray(size));
      return value;
    }, own);
    return done(own, steps);
  }

  /** With one annotator more (or one replaced); the numbers of all others are the same bits. */
  with(name: string, own: Float64Array, factor?: Float64Array): Population {
    const at = this.index.get(name) ?? this.annotators.length;
    const all = new Float64Array(Math.max(this.parameters.own.length, (at + 1) * this.model.own));
    all.set(this.parameters.own);
    all.set(own, at * this.model.own);
    const annotators = at === this.annotators.length ? [...this.annotators, name] : this.annotators;
    const parameters: Parameters = { shared: this.parameters.shared, own: all };
    const { own: k } = this.model;
    const size = (k * (k + 1)) / 2;
    if (this.parameters.posterior && factor) {
      const posterior = new Float64Array(Math.max(this.parameters.posterior.length, (at + 1) * size));
      posterior.set(this.parameters.posterior);
      packLower(factor, k, posterior.subarray(at * size, (at + 1) * size));
      parameters.posterior = posterior;
    }
    return new Population(this.model, this.rank, this.l2, annotators, parameters, this.ties);
  }

  /** Writes the whole population into one safetensors file; the index by annotator is a JSON array in its metadata. */
  async save(path: string): Promise<void> {
    const tensors: NamedTensor[] = [];
    let at = 0;
    for (const { name, shape } of this.model.layout) {
      const count = sizeOf([{ name, shape }]);
      tensors.push({
        name: `shared.${name}`,
        shape,
        data: Float32Array.from(this.parameters.shared.subarray(at, at + count)),
      });
      at += count;
    }
    const { own } = this.model;
    if (own > 0) {
      tensors.push({
        name: 'own',
        shape: [this.annotators.length, own],
        data: Float32Array.from(this.parameters.own),
      });
    }
    const { posterior } = this.parameters;
    if (posterior) {
      const shape = [this.annotators.length, (own * (own + 1)) / 2];
      tensors.push({ name: 'posterior', shape, data: Float32Array.from(posterior) });
    }
    await writeSafetensors(path, tensors, {
      format: 'pluralign-features',
      model: this.model.name,
      features: String(this.model.d),
      rank: String(this.rank),
      ...(this.model.columns && this.model.columns > 1 ? { columns: String(this.model.columns) } : {}),
      l2: String(this.l2),
      ...(this.ties ? { ties: this.ties.type, tie_nu: String(this.ties.nu) } : {}),
      annotators: JSON.stringify(this.annotators),
    });
  }

  /**
   * @param names read only what is theirs, of those whom the file knows: a file of millions then costs what they do
   *
   * Throws `NOT_FOUND`, `IO`, or `BAD_FILE` where the file is not one that `save` wrote.
   */
  static load(path: string, names?: Iterable<string>): Population {
    const { metadata, tensors } = names ? partOf(path, names) : readSafetensors(path);
    const bad = (what: string) =>
      new PluralignError('BAD_FILE', `${path}: ${what}; expected a population that \`train\` wrote (model: features)`);
    const name = metadata.model as FeatureModelName;
    if (metadata.format !== 'pluralign-features' || !featureModels.includes(name)) throw bad('found other metadata');
    const [d, rank] = [Number(metadata.features), Number(metadata.rank)];
    const columns = Number(metadata.columns ?? 1);
    let annotators: unknown;
    try {
      annotators = JSON.parse(metadata.annotators);
    } catch {
      throw bad('its index of annotators is no JSON');
    }
    if (!Array.isArray(annotators) || !(d >= 1) || !(rank >= 1) || !(d % columns === 0))
      throw bad('found incomplete metadata');
    const model = featureModel(name, d, rank, columns);
    const part = (tensor: string, count: number) => {
      const data = tensors.get(tensor)?.data;
      if (data?.length !== count) throw bad(`tensor "${tensor}" has ${data?.length ?? 'no'} values, expected ${count}`);
      return data;
    };
    const shared = new Float64Array(sizeOf(model.layout));
    let at = 0;
    for (const { name: tensor, shape } of model.layout) {
      const count = sizeOf([{ name: tensor, shape }]);
      shared.set(part(`shared.${tensor}`, count), at);
      at += count;
    }
    const own = Float64Array.from(model.own > 0 ? part('own', annotators.length * model.own) : []);
    const parameters: Parameters = { shared, own };
    if (tensors.has('posterior')) {
      parameters.posterior = Float64Array.from(
        part('posterior', (annotators.length * model.own * (model.own + 1)) / 2),
      );
    }
    const type = tieModels.find((name) => name === metadata.ties);
    const ties = type ? { type, nu: Number(metadata.tie_nu) } : null;
    return new Population(model, rank, Number(metadata.l2), annotators as string[], parameters, ties);
  }
}

function wrongWidth(table: { d: number; file?: string }, d: number): PluralignError {
  return new PluralignError(
    'BAD_SHAPE',
    `${table.file ?? 'the items'}: found ${table.d} features an item, expected ${d}, with which the run was trained`,
  );
}
