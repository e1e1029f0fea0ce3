import { globalModel } from './global.js';
import { headsModel } from './heads.js';
import { localModel } from './local.js';
import { loreModel } from './lore.js';
import { lowRankModel } from './low-rank.js';
import { mixedModel } from './mixed.js';
import type { FeatureModelName, FeatureRewardModel } from './model.js';
import { palModel } from './pal.js';

export * from './model.js';

/** The model of a name for items of d features; low-rank: in so many columns, which divide d. */
export function featureModel(name: FeatureModelName, d: number, rank: number, columns = 1): FeatureRewardModel {
  switch (name) {
    case 'global':
      return globalModel(d);
    case 'local':
      return localModel(d);
    case 'low-rank':
      return lowRankModel(d, rank, columns);
    case 'mixed':
      return mixedModel(d, rank);
    case 'lore':
      return loreModel(d, rank);
    case 'pal':
      return palModel(d, rank);
    case 'heads':
      return headsModel(d, rank);
  }
}
