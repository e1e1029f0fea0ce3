export { type ConfigDifference, configDifferences, mayChangeOnResume } from './compare.js';
export { configToYaml, isRunConfig, loadConfig, resolveConfig, resolveLoss, runConfigPath } from './load.js';
export { editDistance, nearest } from './nearest.js';
export {
  type Config,
  type LossType,
  lossTypes,
  type Method,
  methods,
  type ResolvedAdapter,
  type ResolvedConfig,
  type ResolvedData,
  type ResolvedEarlyStopping,
  type ResolvedLoss,
  type ResolvedTrain,
} from './schema.js';
