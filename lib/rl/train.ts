import type { Bank } from '../adapters/bank.js';
import { voterAdapters } from '../adapters/voters.js';
import { mix32 } from '../base/random.js';
import type { ResolvedConfig } from '../config/index.js';
import { packTokens } from '../data/pack.js';
import { policyMethod } from '../methods/policies.js';
import type { PolicyMethod } from '../methods/policy.js';
import type { Model } from '../model/model.js';
import type { Rewards } from '../rewards/compose.js';
import { openRewards } from '../rewards/open.js';
import { loadLatestCheckpoint, pruneCheckpoints } from '../training/checkpoint.js';
import { evaluationLine, runSteps, type SteppedRun } from '../training/loop.js';
import { totalSteps } from '../training/order.js';
import { noteTo } from '../training/progress.js';
import { openRunFolder, type RunFolder } from '../training/run-folder.js';
import { saveResult } from '../training/save.js';
import { learningRateFactor } from '../training/schedule.js';
import { adapterName, makeBank, openModel, openReference, referenceOf } from '../training/setup.js';
import { checkShared, type SharedBase } from '../training/shared-base.js';
import { stopOf } from '../training/signals.js';
import type { TrainOptions, TrainSummary } from '../training/train.js';
import { writeAdapterMap } from '../training/voter-map.js';
import { annotatorsOf, checkNamed, Voters } from '../training/voters.js';
import { type Answered, evaluatePolicy, type PolicyScores } from './evaluate.js';
import { type PreparedPrompts, type Prompt, preparePrompts } from './prompts.js';
import { makeRollout, rolloutMetrics, type Scorers } from './rollout.js';
import { type SampleFunction, type Speaker, sampler, samplesOf } from './sampling.js';
import { type Banks, freshRlState, loadRlState, promptsFingerprint, type RlState, saveRlState } from './state.js';
import { updateOn } from './update.js';

/** Samples that a report shows. */
const shown = 6;

/** A run in flight. */
class RlRun implements SteppedRun {
  state: RlState = freshRlState();
  stopped = false;
  before: Answered | null = null;
  after: Answered | null = null;
  private started = performance.now();
  private readonly fingerprint: string;
  /** Where every annotator has an adapter. */
  readonly voters: Voters | null;

  constructor(
    readonly config: ResolvedConfig,
    readonly folder: RunFolder,
    readonly model: Model,
    readonly banks: Banks & { policy: Bank },
    readonly method: PolicyMethod,
    readonly prompts: PreparedPrompts,
    readonly rewards: Rewards,
    readonly scorers: Scorers,
    annotators: readonly string[] | null,
    readonly quiet: boolean,
    readonly stop: Readonly<ReturnType<typeof stopOf>>,
    readonly note: (text: string) => void,
    /** Who samples, where not the run alone. */
    private readonly say?: SharedBase['generate'],
  ) {
    this.fingerprint = promptsFingerprint(prompts.train);
    this.voters =
      annotators && config.adapter !== 'full'
        ? new Voters(
            banks.policy,
            annotators,
            { ...config.adapter, seed: config.train.seed },
            prompts.train,
            this.steps,
          )
        : null;
  }

  get items(): number {
    return this.prompts.train.length;
  }

  get steps(): number {
    return totalSteps(this.prompts.train.length, this.config.train.batch_size, this.config.train);
  }

  /** Each prompt is answered by its annotator's policy, where there are any. */
  get policy(): Scorers['reference'] {
    return { model: this.model, bank: this.banks.policy, adapter: this.voters?.judging(this.state.step) ?? 0 };
  }

  async resume(): Promise<boolean> {
    if (!this.folder.resumed) return false;
    const checkpoint = await loadLatestCheckpoint(this.folder.dir, (problem) =>
      this.note(`passed over a damaged checkpoint: ${problem}`),
    );
    if (!checkpoint) return false;
    this.state = await loadRlState(checkpoint, this.banks, this.method, this.fingerprint);
    this.rewards.scale = this.state.scale;
    this.note(`resumed at step ${this.state.step}`);
    return true;
  }

  /** Mean and deviation of the rewards on answers of the reference to training prompts. */
  async fitRewards(): Promise<void> {
    if (!this.rewards.wantsScale) return;
    const { rollout, train } = this.config;
    const count = rollout!.reference_samples;
    const asked = Array.from({ length: count }, (_, i) => this.prompts.train[i % this.prompts.train.length]);
    const answers = await this.sampler(this.scorers.reference)(asked, mix32(train.seed + 0x5ca1e));
    this.state.scale = await this.rewards.fit(samplesOf(asked, answers, this.model));
  }

  async evaluate(): Promise<Answered | null> {
    const { eval: prompts } = this.prompts;
    if (prompts.length === 0) return null;
    const sample = this.sampler(this.policy);
    const compare = { policy: this.policy, reference: this.scorers.reference, options: this.scorers };
    const seed = mix32(this.config.train.seed + 0xe7a1);
    return evaluatePolicy(prompts, sample, seed, this.rewards, this.model, compare);
  }

  private sampler(speaker: Speaker): SampleFunction {
    return sampler(speaker, this.config.rollout!, this.scorers.abort, this.say);
  }

  /** One rollout and its updates. A step that fails or is stopped before its first update leaves the run as it was. */
  async step(at: readonly number[]): Promise<Record<string, number>> {
    const prompts = at.map((i) => this.prompts.train[i]);
    const { train, rollout } = this.config;
    const { step } = this.state;
    const before = this.method.state();
    const started = performance.now();
    const seed = mix32(mix32(train.seed + 0x9e37) + step);
    try {
      const { method, scorers } = this;
      this.voters?.begin(step);
      const adapter = this.voters?.training(step) ?? 0;
      const sample = this.sampler({ ...this.policy, adapter });
      const rolled = await makeRollout(
        prompts,
        method.groupSize,
        sample,
        seed,
        this.rewards,
        scorers,
        rollout!.missing_eos_penalty,
        adapter,
      );
      const estimate = method.estimate(rolled.rollout);
      const updated = await updateOn(rolled.rollout, estimate, method, {
        model: this.model,
        bank: this.banks.policy,
        adapters: rolled.adapters,
        critic: scorers.critic,
        temperature: scorers.temperature,
        maxTokens: scorers.maxTokens,
        checkpoint: train.gradient_checkpointing,
        longest: rollout!.max_new_tokens,
        kept: rolled.kept,
        step: (bank, at) =>
          this.optimise(
            bank,
            at.map((i) => prompts[i]),
            at.map((i) => rolled.adapters[i]),
          ),
        seed,
        abort: scorers.abort,
      });
      this.state.step++;
      this.state.samples += rolled.samples.length;
      this.state.tokens += rolled.rollout.old.length;
      this.state.stepSeconds += (performance.now() - started) / 1000;
      const metrics: Record<string, number> = {
        ...updated,
        ...rolloutMetrics(rolled, this.rewards),
        ...estimate.metrics,
      };
      this.state.means.addAll(metrics);
      return { reward: metrics.reward, kl: metrics.kl };
    } catch (error) {
      this.method.restore(before);
      throw error;
    }
  }

  /** One optimizer step on the policy (or the critic, which is one for all) for these prompts, under these adapters. */
  private optimise(bank: Bank, prompts: readonly Prompt[], adapters: readonly number[]): Promise<number> {
    const { beta1, beta2, eps, weight_decay: weightDecay, max_grad_norm: maxGradNorm } = this.config.train;
    const learningRate = this.learningRate(this.state.step);
    const options = { beta1, beta2, eps, weightDecay, maxGradNorm, learningRate };
    if (!this.voters || bank !== this.banks.policy) return bank.step(options);
    this.voters.pull(
      prompts,
      adapters,
      prompts.reduce((sum, { weight }) => sum + weight, 0),
    );
    return bank.step({ ...options, active: new Set(adapters) });
  }

  async look(): Promise<{ values: Record<string, number> | null }> {
    this.after = await this.evaluate();
    return { values: this.after && evaluationLine(this.after.scores) };
  }

  async complete(): Promise<void> {
    this.after ??= await this.evaluate();
  }

  learningRate(step: number): number {
    const { learning_rate, schedule: kind, warmup, min_learning_rate_ratio: minRatio } = this.config.train;
    const [at, of] = this.voters?.schedule(step, this.steps) ?? [step, this.steps];
    return learning_rate * learningRateFactor(at, of, { kind, warmup, minRatio });
  }

  seconds(): number {
    return this.state.seconds + (performance.now() - this.started) / 1000;
  }

  async save(): Promise<void> {
    const state = { ...this.state, seconds: this.seconds() };
    await saveRlState(this.folder.dir, state, this.banks, this.method, this.fingerprint);
    await pruneCheckpoints(this.folder.dir, this.config.train.keep_checkpoints, []);
  }
}

/**
 * Trains a policy on its own samples: `rloo`, `grpo`, `reinforce++` or `ppo`. Writes the run folder as `train` does.
 *
 * Throws as `train`; `BAD_ARGUMENT` or `NON_FINITE` naming a reward that throws, gives another length or no finite number,
 * `BAD_DATA` where a reward is the same for every sample of the reference.
 */
export async function trainPolicy(config: ResolvedConfig, options: TrainOptions = {}): Promise<TrainSummary> {
  const { quiet = false } = options;
  const note = noteTo(options);
  const stop = stopOf(options.stop);
  const folder = await openRunFolder(config, { resume: options.resume });
  let begun = false;
  try {
    const { beside } = options;
    if (beside) await checkShared(config, beside);
    using own = beside ? null : await openModel(config);
    const model = beside?.model ?? own!;
    const maxTokens = packTokens(config.train, { whole: true });
    const rewards = await openRewards(config.rewards!, model, {
      functions: options.rewards,
      maxTokens,
      abort: stop.flag,
      onWarning: note,
    });
    const prompts = await preparePrompts(config, model, stop.signal);
    for (const text of prompts.notes) note(text);
    const method = policyMethod(config);
    const annotators =
      config.adapter !== 'full' && config.adapter.per === 'annotator' ? annotatorsOf(prompts.train) : null;
    if (annotators) checkNamed(annotators, config.data.train);
    const policy = await makeBank(config, model, annotators ? voterAdapters(annotators) : [adapterName]);
    const critic = method.critic ? await makeCritic(config, model) : null;
    using reference = await openReference(referenceOf(config), model, maxTokens, false, config.train);
    const scorers: Scorers = {
      model,
      bank: policy,
      reference: reference.scorer,
      critic,
      temperature: config.rollout!.temperature,
      maxTokens,
      // One update on what was just sampled: its forward pass is the one that scored the samples.
      keep: method.epochs === 1 && method.minibatches === 1 && method.critic === null,
      checkpoint: config.train.gradient_checkpointing,
      abort: stop.flag,
    };
    const banks = { policy, ...(critic && { critic }) } as Banks & { policy: Bank };
    const run = new RlRun(
      config,
      folder,
      model,
      banks,
      method,
      prompts,
      rewards,
      scorers,
      annotators,
      quiet,
      stop,
      note,
      beside?.generate,
    );
    const resumed = await run.resume();
    if (!resumed) {
      if (options.rewardScale && rewards.takeScale(options.rewardScale)) run.state.scale = rewards.scale;
      await run.fitRewards();
      run.before = await run.evaluate();
      run.state.evalBefore = run.before?.scores ?? null;
    }
    begun = true;
    await runSteps(run);
    const summary = await finish(run);
    policy.dispose();
    critic?.dispose();
    return summary;
  } catch (error) {
    if (!begun) await folder.discard();
    throw error;
  } finally {
    await folder.release();
  }
}

/** An adapter of its own with a head that says 0 of everything. */
async function makeCritic(config: ResolvedConfig, model: Model): Promise<Bank> {
  const adapter = config.adapter === 'full' ? 'full' : { ...config.adapter, init_from: null };
  const critic = await makeBank({ ...config, adapter, method: 'reward', reward: { head_std: null } }, model, [
    adapterName,
  ]);
  critic.values(critic.adapters[0].head).fill(0);
  return critic;
}

async function finish(run: RlRun): Promise<TrainSummary> {
  const { config, state, folder, prompts } = run;
  const paths: TrainSummary['paths'] = { run: folder.dir };
  if (!run.stopped) Object.assign(paths, await saveResult(config, run.model, run.banks.policy, run.voters?.annotators));
  if (run.voters && !run.stopped) await writeAdapterMap(folder.dir, run.banks.policy, run.voters.annotators, []);
  const seconds = Math.max(state.stepSeconds, 1e-9);
  const overall = ({ annotators = {}, ...scores }: PolicyScores) =>
    ({ overall: scores, annotators }) as unknown as TrainSummary['eval'];
  const summary: TrainSummary & { samples?: unknown; rewards?: unknown } = {
    method: config.method,
    steps: state.step,
    finished: !run.stopped,
    seconds: run.seconds(),
    train: {
      ...state.last,
      samples_per_second: state.samples / seconds,
      tokens_per_second: state.tokens / seconds,
    },
    data: { ...prompts.reports },
    paths,
  };
  if (run.after) {
    summary.eval = overall(run.after.scores);
    summary.samples = run.after.samples.slice(0, shown).map(({ prompt, completion }, i) => ({
      prompt,
      ...(run.before && { before: run.before.samples[i].completion }),
      after: completion,
    }));
  }
  if (state.evalBefore) summary.eval_before = overall(state.evalBefore);
  if (state.scale)
    summary.rewards = Object.fromEntries(
      run.rewards.names.map((name, k) => [name, { mean: state.scale!.mean[k], deviation: state.scale!.deviation[k] }]),
    );
  await folder.writeSummary(summary);
  const { writeReport } = await import('../report/index.js');
  await writeReport(folder.dir);
  return summary;
}
