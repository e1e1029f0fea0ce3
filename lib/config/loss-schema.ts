import { z } from 'zod';
import { choice, flag, notNegative, number, positive, section, text } from './leaves.js';

/** Loss names; formulas and sources stand with the kernels in lib/losses. */
export const lossTypes = [
  'sigmoid',
  'robust',
  'hinge',
  'ipo',
  'exo_pair',
  'nca_pair',
  'bco_pair',
  'sppo_hard',
  'aot',
  'aot_unpaired',
  'apo_zero',
  'apo_down',
  'discopop',
  'sft',
  'sigmoid_norm',
  'simpo',
  'cpo',
  'orpo',
  'plackett_luce',
  'best',
  's_dpo',
  'lipo',
  'kto',
  'bco',
  'apo_zero_unpaired',
  'bradley_terry',
] as const;
export type LossType = (typeof lossTypes)[number];

const lossTerm = z.union([choice(lossTypes), section({ type: choice(lossTypes), weight: number().default(1) })], {
  error: 'the name of a loss or { type, weight }',
});

const lossKeys = {
  /** A name, or a weighted sum of several. Null: the method's own (dpo: sigmoid, reward: bradley_terry, else sft). */
  type: z
    .union([choice(lossTypes), z.array(lossTerm).min(1, { error: 'at least one loss' })], {
      error: `a loss (${lossTypes.join(', ')}) or a list of them, each a name or { type, weight }`,
    })
    .nullable()
    .default(null),
  /** β, how near to the reference policies stay (IPO's τ, ORPO's λ). */
  beta: positive().default(0.1),
  /** ε: the share of votes taken to be flipped (sigmoid, robust, exo_pair, aot, aot_unpaired, sigmoid_norm, simpo, cpo). */
  label_smoothing: z
    .number({ error: 'a number from 0 to below 0.5' })
    .min(0, { error: 'a number from 0 to below 0.5' })
    .lt(0.5, { error: 'a number from 0 to below 0.5' })
    .default(0),
  /** base: the model without adapter; init_from: the adapter training starts from, frozen; else a folder. */
  reference: text('base, init_from or a path').default('base'),
  /** Score every row under the reference once, when it is first met (disk: and keep it for later runs); off: in every epoch. */
  cache_reference: z.union([flag(), z.literal('disk')], { error: 'true, false or disk' }).default(true),
  /** In place of the reverse KL, in losses of a difference of log-ratios. */
  f_divergence: choice(['reverse_kl', 'forward_kl', 'js_divergence', 'alpha_divergence']).default('reverse_kl'),
  /** α of alpha_divergence. */
  f_alpha_divergence_coef: positive().default(0.5),
  /** Length desensitising: weight of the tokens beyond the shorter completion's length; null: off. */
  ld_alpha: z
    .number({ error: 'a number from 0 to 1' })
    .min(0, { error: 'a number from 0 to 1' })
    .max(1, { error: 'a number from 0 to 1' })
    .nullable()
    .default(null),
  /** WPO: weight rows by how likely the policy finds them. */
  use_weighting: flag().default(false),
  /** τ of discopop. */
  discopop_tau: positive().default(0.05),
  /** γ of simpo, its target margin. */
  simpo_gamma: notNegative().default(0.5),
  /** Weight of the chosen completion's negative log-likelihood in cpo. */
  cpo_alpha: notNegative().default(1),
  /** KTO's λ_D and λ_U. */
  desirable_weight: notNegative().default(1),
  undesirable_weight: notNegative().default(1),
  /** rows: every row counts as its weight says; annotators: every annotator counts alike. */
  balance: choice(['rows', 'annotators']).default('rows'),
  /** Rows with `tie: true`: left out and counted, or a likelihood that knows ties. */
  ties: choice(['drop', 'rao_kupper', 'davidson']).default('drop'),
  /** How common ties are (Rao–Kupper: above 1); null: from their share of the training rows. */
  tie_nu: positive().nullable().default(null),
  /** Bradley–Terry margin of pairs whose row has none of its own. */
  margin: number().default(0),
  /** c of c (r_w + r_l)², which keeps rewards around zero. */
  centring: notNegative().default(0),
  /** Train for the worst of the known groups (`group` in the rows); null: for the mean row. */
  group_robust: section({
    /** η of the exponentiated gradient on the groups' weights. */
    step_size: positive().default(0.01),
    /** c of c/√n_g, which pulls towards small groups. */
    adjustment: notNegative().default(0),
  })
    .nullable()
    .default(null),
  /** Multi-objective DPO: this wish's votes beside frozen rewards of other wishes; null: off. */
  modpo: section({
    /** w_0, of the votes. */
    weight: positive().default(0.5),
    /** Adapters with a reward head, or policies whose β log π/π_ref is the reward. */
    rewards: z
      .array(section({ adapter: text('a path'), weight: number() }), { error: 'a list of { adapter, weight }' })
      .min(1, { error: 'at least one { adapter, weight }' }),
  })
    .nullable()
    .default(null),
};
type LossKeys = typeof lossKeys;
export interface LossShape extends LossKeys {}

export const lossSchema = section<LossShape>(lossKeys);
