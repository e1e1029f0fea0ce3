export { Bank, type CreateOptions, type StepOptions } from './adapters/bank.js';
export type { BankState } from './adapters/bank-state.js';
export { type AdapterConfig, adapterConfig, type Sharing } from './adapters/config.js';
export { loadPeft, type PeftAdapter, type SavePeftOptions, savePeft } from './adapters/peft.js';
export { AdapterPopulation, savePopulation } from './adapters/population.js';
export { type GameSolution, optimisticHedge, solveGame } from './aggregation/game.js';
export { regretMatrix, rewardMatrix, withZeroRow } from './aggregation/regret.js';
export { type Aggregate, type AggregateOptions, aggregate, type Rule } from './aggregation/rules.js';
export { type AggregatePoliciesOptions, aggregatePolicies, type RunAggregate } from './api/aggregate-run.js';
export { aggregateTrained } from './api/aggregate-trained.js';
export { evalCommand as evaluateModel } from './api/eval.js';
export { generateCommand as generateText } from './api/generate.js';
export { scoreCommand as scoreRows } from './api/score.js';
export { Random } from './base/random.js';
export { type Config, loadConfig, type ResolvedConfig, resolveConfig } from './config/index.js';
export * from './data/index.js';
export { type Forest, type Pack, type PackOptions, pack, packTrees, splitByTokens, type Tree } from './data/pack.js';
export { bic } from './em/criteria.js';
export { chooseTypes, collapsedTypes } from './em/features/choose.js';
export { fitMixture, type Mixture, type MixtureFit, type MixtureOptions } from './em/features/mixture.js';
export { assignTypes } from './em/features/posterior.js';
export { type MixtureProblem, mixtureProblem } from './em/features/problem.js';
export type { Criterion, EmSummary } from './em/summary.js';
export { type Interval, pairedBootstrap, worstDecile } from './evaluation/bootstrap.js';
export { type Comparison, compareEvaluations } from './evaluation/compare.js';
export { chord, chordMargin, controllability, hypervolume, nonDominated, simplexGrid } from './evaluation/fronts.js';
export { type Judge, judgeBy, type Verdict, verdict, type WinRate, winRate } from './evaluation/pairwise.js';
export { type Evaluation, type PreferenceMetrics, summarise } from './evaluation/preference.js';
export { adjustedRandIndex } from './evaluation/rand-index.js';
export * from './features/index.js';
export {
  type EngineOptions,
  type Generated,
  type GeneratedPart,
  generate as generateRequests,
  stream as streamRequests,
} from './generation/engine.js';
export { logpsUnder } from './generation/reference.js';
export type { LogitMixture, Sampling, SequenceRequest } from './generation/request.js';
export { completionText } from './generation/text.js';
export { EndpointJudge, type EndpointOptions, type JudgeCost } from './judges/index.js';
export * from './losses/index.js';
export { type LayerWeights, type MergeOptions, type MergeReport, mergeExperts } from './merge/index.js';
export { type GenerateOptions, type LoadOptions, Model, type ScoreOptions } from './model/model.js';
export { loadTokenizer, type Tokenizer } from './model/tokenizer.js';
export { exitCode, PluralignError } from './native/errors.js';
export { writeReport } from './report/index.js';
export { type RewardScale, Rewards, type RewardTerm, type Scored } from './rewards/compose.js';
export type { RewardFunction, Sample } from './rewards/types.js';
export { JointRuns } from './rl/joint-runs.js';
export { type AdaptVotersOptions, type AdaptVotersResult, adaptVoters } from './training/adapt.js';
export { type TrainOptions, type TrainSummary, train } from './training/train.js';
export type * from './types.js';
