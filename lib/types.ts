/** Types that the signatures of the library name; `index.ts` hands them on, so that a program can name them too. */
export type { Target } from './adapters/config.js';
export type { BankAdapter, Factor, Role } from './adapters/factors.js';
export type { LayerRun } from './adapters/layers.js';
export type { AdapterMix, LayerBlock } from './adapters/mix.js';
export type { TaskType } from './adapters/peft-config.js';
export type { Place as TensorPlace } from './adapters/population.js';
export type { HedgeOptions } from './aggregation/game.js';
export type { Matrix } from './aggregation/regret.js';
export type { Regrets, SampleRule } from './aggregation/side-by-side.js';
export type { TrainedOptions } from './api/aggregate-trained.js';
export type { EvalOptions } from './api/eval.js';
export type { GeneratedSample, GenerateOptions as GenerateTextOptions, GenerateResult } from './api/generate.js';
export type { PolicyOptions } from './api/policies.js';
export type { ScoreRow } from './api/score.js';
export type { ResolvedRewardTerm } from './config/rollout-schema.js';
export type {
  LossType,
  ResolvedAdapter,
  ResolvedData,
  ResolvedEarlyStopping,
  ResolvedEm,
  ResolvedFeatures,
  ResolvedLoss,
  ResolvedTrain,
} from './config/schema.js';
export type { ResolvedSoups, ResolvedWish } from './config/soups-schema.js';
export type { Policy } from './data/pack.js';
export type { RecordOptions } from './data/readers.js';
export type { Posterior as TypePosterior } from './em/estep.js';
export type { Choice as TypesChoice } from './em/features/choose.js';
export type { Responsibility } from './em/files.js';
export type { TypeDescription } from './em/summary.js';
export type { Point as ObjectivePoint } from './evaluation/fronts.js';
export type { ReliabilityBin } from './evaluation/reliability.js';
export type { Objective } from './features/lbfgs.js';
export type { BatchOptions, Features, FitReport, Fitted } from './features/models/model.js';
export type { ScoreFeaturesOptions } from './features/run.js';
export type { Ties } from './features/ties.js';
export type { ExpertFolder } from './merge/expert.js';
export type { TensorReport } from './merge/tensor.js';
export type { RowOutcome } from './methods/objective.js';
export type { ModelConfig, ModelFamily } from './model/config.js';
export type { Json as JsonObject } from './model/folder.js';
export type { DownloadProgress } from './model/hub.js';
export type { Rope } from './model/rope.js';
export type { Tensor } from './model/safetensors.js';
export type { DType } from './native/addon.js';
export type { DeviceName } from './native/device.js';
export type { LogitMix } from './native/generation.js';
export type { AdaptedMetrics } from './training/adapt.js';
export type { SharedBase } from './training/shared-base.js';
export type { Stop, StopRequest } from './training/signals.js';
