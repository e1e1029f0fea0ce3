export { type AdaptOptions, type AdaptResult, adapt } from './adapt.js';
export { type BilinearGradient, bilinearLoss, type ItemSide } from './bilinear.js';
export { readVotes, type VoteData } from './data.js';
export { type EmbedOptions, type EmbedResult, embed } from './embed.js';
export { evaluateVotes } from './evaluate.js';
export { aggregateRewards, aggregateScorer, type RewardAggregateOptions } from './everyone.js';
export { type ItemTable, itemNotes, itemTable, readItems } from './items.js';
export { type LbfgsOptions, type LbfgsResult, lbfgs } from './lbfgs.js';
export {
  type FeatureModelName,
  type FeatureModelOptions,
  type FeatureRewardModel,
  featureModel,
  featureModels,
  type Parameters,
} from './models/index.js';
export { fitLinear, type LinearFit, type LinearProblem } from './newton.js';
export {
  bestOf,
  confidenceRadius,
  lowerConfidence,
  type PessimisticChoice,
  pessimistic,
  pessimisticPolicy,
} from './pessimism.js';
export { type Adapted, Population, type Scorer } from './population.js';
export { expectedInformation, nextQuestions, Posterior, type Question } from './posterior.js';
export { type Votes, type VotesOptions, votesByAnnotator, votesOf } from './votes.js';
