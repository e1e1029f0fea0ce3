import { ioError, makeFolder } from '../../base/files.js';
import type { ResolvedConfig, ResolvedEm } from '../../config/schema.js';
import type { Group } from '../../data/types.js';
import { type EmState, emDpo, type Round, type TypedVotes } from '../../methods/em-dpo.js';
import { isAborted, PluralignError } from '../../native/errors.js';
import { loadLatestCheckpoint, pruneCheckpoints } from '../../training/checkpoint.js';
import { RunLog } from '../../training/run-log.js';
import { fingerprint, freshState, loadState, type RunState, saveState } from '../../training/state.js';
import { namedRows } from '../../training/step.js';
import { eStep } from '../estep.js';
import type { Annotators } from './annotators.js';
import { type BankStart, copyAdapter } from './bank.js';
import type { MStepGradient, TypePolicies } from './policies.js';
import { Rounds } from './rounds.js';
import { improving, type WholeRun } from './whole.js';

export interface FitOptions {
  config: ResolvedConfig;
  policies: TypePolicies;
  rows: readonly Group[];
  annotators: Annotators;
  /** Where EM starts: K arrays [annotators]. */
  gamma: Float64Array[];
  /** The bank as every type starts. */
  start: BankStart;
  /** Folder of checkpoints and metrics.jsonl. */
  dir: string;
  resume: boolean;
  /** What the bar calls it. */
  label: string;
  bar: WholeRun;
  abort?: Int32Array;
  note: (text: string) => void;
}

/** What a checkpoint keeps of EM; float64 goes through JSON unchanged. */
interface SavedState {
  round: number;
  batch: number;
  gamma: number[][];
  weights: number[];
  history: number[];
  reseeded: number;
  seen: number[][] | null;
  incremental: Fit['incremental'];
  skipped: { rows: number; all: number };
}

/** One start of EM over policies: the optimizer's side of both steps, its log and its checkpoints. */
export class Fit implements TypedVotes {
  readonly state: EmState;
  readonly of: Int32Array;
  run: RunState = freshState();
  /** Seconds in exact E-steps, since this process began. */
  eSeconds = 0;
  /** Incremental E-step: log p_k(V_j) as the M-step's forward passes saw it. */
  #seen: Float64Array[] | null = null;
  /** In the last round: exact E-step against incremental one, the largest difference of a responsibility and that of a vote's log-likelihood. */
  incremental: { responsibility: number; log_likelihood: number } | null = null;
  readonly #em: ResolvedEm;
  readonly #rows: string;
  readonly #rounds: Rounds;
  /** Share of each type over all rows in this M-step, [K]. */
  #shares: Float64Array = new Float64Array();
  #skipped = { rows: 0, all: 0 };
  #log: RunLog | null = null;

  constructor(readonly options: FitOptions) {
    const { config, policies, annotators, gamma } = options;
    this.#em = config.em!;
    this.of = annotators.of;
    this.#rounds = new Rounds(annotators, this.#em, config.train);
    this.#rows = fingerprint(options.rows);
    const weights = new Float64Array(policies.types).fill(1 / policies.types);
    this.state = { round: 0, batch: 0, step: 0, gamma, weights, history: [], reseeded: 0 };
    if (this.#em.e_step === 'incremental') this.#seen = gamma.map(() => new Float64Array(options.rows.length));
  }

  get types(): number {
    return this.options.policies.types;
  }

  get annotators(): number {
    return this.options.annotators.names.length;
  }

  /** Runs EM to its end, from the newest checkpoint where there is one. ABORTED: the state is saved. */
  async fit(): Promise<void> {
    const { dir, config, label, bar, rows } = this.options;
    await this.#resume();
    const done = { round: this.state.round, share: this.state.step / this.#rounds.steps };
    bar.begin(label, { types: this.types, rows: rows.length }, done);
    if (this.state.round >= this.#em.rounds) return bar.end();
    await makeFolder(dir).catch((error: unknown) => {
      throw ioError('make', dir, error);
    });
    const each = this.#rounds.batchesInEpoch(0);
    this.#log = await RunLog.open(dir, this.run, (step) => step / each, this.run.step > 0 ? this.run.step : undefined);
    const started = performance.now();
    const before = this.run.seconds;
    const clock = () => {
      this.run.seconds = before + (performance.now() - started) / 1000;
    };
    try {
      const temperature = this.#em.hard ? 0 : this.#em.temperature;
      const { rounds, weights, restart } = this.#em;
      await emDpo(
        this,
        this.state,
        { rounds, weights, temperature, restart },
        {
          step: async () => {
            clock();
            const { log_every, save_every } = config.train;
            if (this.state.step % log_every === 0) await this.#logStep();
            if (save_every !== null && this.state.step % save_every === 0) await this.save();
          },
          round: async (round) => {
            clock();
            await this.#logRound(round);
            await this.save();
          },
        },
      );
      bar.end();
    } catch (error) {
      if (isAborted(error)) {
        clock();
        await this.save();
      }
      throw error;
    } finally {
      await this.#log.close();
    }
  }

  batches(round: number): number {
    return this.#rounds.batches(round);
  }

  async improve(state: EmState): Promise<void> {
    const { config, policies, rows, abort } = this.options;
    const { train } = config;
    const { bank } = policies.options;
    if (abort && Atomics.load(abort, 0) !== 0) throw new PluralignError('ABORTED', 'stopped on request');
    const started = performance.now();
    const which = this.#rounds.batch(state.round, state.batch);
    const groups = Array.from(which, (row) => rows[row]);
    const gamma = state.gamma.map((own) => Float64Array.from(which, (row) => own[this.of[row]]));
    this.#shares = this.#rowShares(state.gamma);
    bank.zeroGrad();
    const outcome = await policies.gradient({
      groups,
      gamma,
      skipBelow: this.#em.skip_below,
      scoreAll: this.#seen !== null,
      // Types that share a factor must weigh in it as they do in the likelihood; apart, each is a mean over its own rows.
      shares: this.#apart ? this.#shares : new Float64Array(this.types).fill(1),
      checkpoint: train.gradient_checkpointing,
      dropoutSeed: (Math.imul(train.seed + 1, 0x9e3779b1) ^ Math.imul(state.step + 1, 0x85ebca6b)) >>> 0 || 1,
    });
    const norm = await this.#step(outcome, groups);
    this.#remember(which, outcome);
    this.run.stepSeconds += (performance.now() - started) / 1000;
    this.run.groups += groups.length;
    this.run.tokens += outcome.tokens;
    for (const own of gamma) {
      this.#skipped.all += own.length;
      this.#skipped.rows += own.reduce((n, g) => n + (g > 0 && g >= this.#em.skip_below ? 0 : 1), 0);
    }
    this.run.means.addAll({ loss: outcome.loss, grad_norm: norm });
    outcome.typeLosses.forEach((loss, k) => {
      const weight = gamma[k].reduce((a, b) => a + b, 0);
      if (!Number.isFinite(loss)) return;
      this.run.means.add(`type_${k + 1}/loss`, loss, weight);
      this.run.means.add(`type_${k + 1}/accuracy`, outcome.accuracies[k], weight);
    });
    const { loss, tokens } = outcome;
    this.options.bar.advance(improving * groups.length * this.types, { round: state.round + 1, loss, tokens });
  }

  /** Types that share no factor are trained apart: each has its own clipping, and rests where it has no row. */
  async #step(outcome: MStepGradient, groups: readonly Group[]): Promise<number> {
    const { policies, config } = this.options;
    const { train } = config;
    const { bank } = policies.options;
    const settings = {
      beta1: train.beta1,
      beta2: train.beta2,
      eps: train.eps,
      weightDecay: train.weight_decay,
      learningRate: this.#rounds.learningRate(this.state.step),
      maxGradNorm: train.max_grad_norm,
    };
    const parts = this.#apart ? outcome.active.map((type) => [type]) : [outcome.active];
    let squares = 0;
    for (const active of parts) {
      const norm = await bank.step({ ...settings, active }).catch((error: Error & { code?: unknown }) => {
        if (error.code !== 'NON_FINITE') throw error;
        const where = `step ${this.state.step + 1}, rows ${namedRows(groups)}`;
        throw new PluralignError('NON_FINITE', `${where}: ${error.message}`, { cause: error });
      });
      squares += norm * norm;
    }
    return Math.sqrt(squares);
  }

  /** No type shares a factor with another. */
  get #apart(): boolean {
    return this.options.policies.options.bank.factors.every((factor) => factor.owner !== -1);
  }

  #rowShares(gamma: readonly Float64Array[]): Float64Array {
    const { rows } = this.options;
    const total = rows.reduce((sum, row) => sum + row.weight, 0) || 1;
    return Float64Array.from(
      gamma,
      (own) => rows.reduce((sum, row, i) => sum + row.weight * own[this.of[i]], 0) / total,
    );
  }

  #remember(which: Int32Array, outcome: MStepGradient): void {
    if (!this.#seen) return;
    const { policies, rows } = this.options;
    which.forEach((row, i) => {
      outcome.rewards[i].forEach((own, k) => {
        if (own) this.#seen![k][row] = policies.logLikelihood(rows[row], own);
      });
    });
  }

  async likelihoods(round: number): Promise<{ values: Float64Array[]; used: Uint8Array }> {
    const { folds, rounds } = this.#em;
    const last = round === rounds - 1;
    const used = new Uint8Array(this.of.length).fill(1);
    // The last E-step says whose votes are whose, by all of them.
    if (folds > 1 && !last)
      for (let row = 0; row < used.length; row++) used[row] = this.#rounds.foldOf(row) === round % folds ? 1 : 0;
    if (this.#seen && !last) return { values: this.#seen.map((own) => own.slice()), used };
    const values = await this.exactLikelihoods(used);
    if (this.#seen) await this.#compare(this.#seen, values);
    return { values, used };
  }

  /** How far the incremental E-step is from the exact one, where both are at hand. */
  async #compare(seen: readonly Float64Array[], exact: readonly Float64Array[]): Promise<void> {
    const { weights } = this.state;
    const [near, far] = [seen, exact].map((values) => eStep(values, this.of, this.annotators, weights));
    let largest = 0;
    near.gamma.forEach((own, k) => {
      for (let u = 0; u < own.length; u++) largest = Math.max(largest, Math.abs(own[u] - far.gamma[k][u]));
    });
    const perVote = (far.logLikelihood - near.logLikelihood) / Math.max(1, this.of.length);
    this.incremental = { responsibility: largest, log_likelihood: perVote };
    this.options.note(
      `the incremental E-step of the last round differs from the exact one by at most ${largest.toFixed(4)} in a ` +
        `responsibility, and by ${perVote.toFixed(5)} in the log-likelihood of a vote`,
    );
  }

  /** The exact E-step's log p_k(V_j) of the rows that are used, 0 of others. */
  async exactLikelihoods(used: Uint8Array): Promise<Float64Array[]> {
    const { policies, rows } = this.options;
    const started = performance.now();
    const which = Array.from(rows.keys()).filter((row) => used[row] === 1);
    const values = this.state.gamma.map(() => new Float64Array(rows.length));
    let before = 0;
    const votes = await policies.votes(
      which.map((row) => rows[row]),
      (done) => {
        this.options.bar.advance((done - before) * this.types, { round: this.state.round + 1 });
        before = done;
      },
    );
    votes.forEach(({ group, rewards }, i) => {
      rewards.forEach((own, k) => {
        values[k][which[i]] = policies.logLikelihood(group, own);
      });
    });
    this.eSeconds += (performance.now() - started) / 1000;
    return values;
  }

  restart(): void {
    this.options.start.restore(this.options.policies.options.bank);
  }

  reseed(type: number, like: number): void {
    copyAdapter(this.options.policies.options.bank, like, type);
  }

  async #logStep(round: Record<string, number> = {}): Promise<void> {
    const { step } = this.state;
    await this.#log!.writeStep(step, this.#rounds.learningRate(step - 1), round);
  }

  async #logRound(round: Round): Promise<void> {
    const { note } = this.options;
    const { state } = this;
    const shown = state.history[state.history.length - 1];
    const before = state.history[state.history.length - 2];
    const certainty = meanCertainty(state.gamma);
    const line: Record<string, number> = {
      round: state.round,
      log_likelihood: shown,
      log_likelihood_per_annotator: round.logLikelihood / this.annotators,
      certainty,
      moved: round.moved,
      skipped: this.#skipped.all > 0 ? this.#skipped.rows / this.#skipped.all : 0,
    };
    for (const [k, weight] of state.weights.entries()) line[`weight_${k + 1}`] = weight;
    if (this.incremental) {
      line.incremental_difference = this.incremental.responsibility;
      line.incremental_log_likelihood_difference = this.incremental.log_likelihood;
    }
    if (round.reseeded >= 0) {
      line.reseeded = round.reseeded + 1;
      note(`type ${round.reseeded + 1} lost all annotators in round ${state.round} and was started again`);
    }
    if (before !== undefined && shown < before - 1e-9 && this.#em.folds === 1)
      note(
        `the log-likelihood of a vote fell from ${before.toFixed(5)} to ${shown.toFixed(5)} in round ${state.round}`,
      );
    this.#skipped = { rows: 0, all: 0 };
    await this.#logStep(line);
  }

  /** Lets go of the adapters. */
  dispose(): void {
    this.options.policies.options.bank.dispose();
  }

  async save(): Promise<void> {
    const { dir, config, policies } = this.options;
    this.run.step = this.state.step;
    await saveState(dir, { ...this.run }, policies.options.bank, this.#saved(), this.#rows);
    await pruneCheckpoints(dir, config.train.keep_checkpoints, []);
  }

  #saved() {
    const { round, batch, gamma, weights, history, reseeded } = this.state;
    const state: SavedState = {
      round,
      batch,
      gamma: gamma.map((own) => [...own]),
      weights: [...weights],
      history,
      reseeded,
      seen: this.#seen?.map((own) => [...own]) ?? null,
      incremental: this.incremental,
      skipped: { ...this.#skipped },
    };
    return {
      state: () => state,
      restore: (saved: unknown) => {
        const s = saved as SavedState;
        Object.assign(this.state, {
          round: s.round,
          batch: s.batch,
          gamma: s.gamma.map((own) => Float64Array.from(own)),
          weights: Float64Array.from(s.weights),
          history: s.history,
          reseeded: s.reseeded,
        });
        this.#seen = s.seen?.map((own) => Float64Array.from(own)) ?? null;
        this.incremental = s.incremental;
        this.#skipped = s.skipped;
      },
    };
  }

  async #resume(): Promise<void> {
    const { dir, resume, note, policies } = this.options;
    if (!resume) return;
    const checkpoint = await loadLatestCheckpoint(dir, (problem) =>
      note(`passed over a damaged checkpoint: ${problem}`),
    );
    if (!checkpoint) return;
    this.run = await loadState(checkpoint, policies.options.bank, this.#saved(), this.#rows);
    this.state.step = this.run.step;
    if (this.state.round < this.#em.rounds) note(`resumed at step ${this.run.step}, round ${this.state.round + 1}`);
  }
}

/** Mean over annotators of the largest responsibility. */
export function meanCertainty(gamma: readonly Float64Array[]): number {
  const n = gamma[0].length;
  let sum = 0;
  for (let u = 0; u < n; u++) sum += gamma.reduce((top, own) => Math.max(top, own[u]), 0);
  return n > 0 ? sum / n : 1;
}
