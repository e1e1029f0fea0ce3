import type { TrainSummary } from '../training/train.js';

/** One line of the choice of K. */
export interface Criterion {
  types: number;
  /** A vote, on average. */
  log_likelihood: number;
  /** Free numbers; of policies, an estimate (`effectiveParameters`). */
  parameters: number;
  bic: number;
  /** A vote of annotators who were left out of the fit, on average. */
  held_out_log_likelihood: number;
  /** Its standard error over those annotators. */
  held_out_error?: number;
  /** Adjusted Rand index of the types of annotators in the fit with and without those held out. */
  stability?: number;
}

/** What sets a type apart. */
export interface TypeDescription {
  type: number;
  weight: number;
  /** Annotators whose most probable type it is. */
  annotators: number;
  /** Items with the highest and the lowest reward; of policies, words that its annotators choose and leave more than others. */
  likes: string[];
  dislikes: string[];
  /** Features in which it differs most from the mean of the types, in reward per standard deviation; none for plain items. */
  features: { feature: number; difference: number }[];
  /** Rows that this type finds likely and some other does not, by the difference of their log-likelihoods. */
  rows: {
    row: number;
    file: string;
    line: number;
    difference: number;
    prompt?: string;
    preferred?: string;
    other?: string;
  }[];
}

/** summary.json of a run over types: what EM found, beside the usual. */
export interface EmSummary extends TrainSummary {
  em: {
    types: number;
    weights: number[];
    /** A vote, on average; and of one type for all, where one was fitted. */
    log_likelihood: number;
    one_type_log_likelihood?: number;
    bic?: number;
    one_type_bic?: number;
    /** Absent where nothing was held out to tell by. */
    one_type_is_enough?: boolean;
    /** Pairs of types that have become one, from 1. */
    collapsed: [number, number][];
    mean_certainty: number;
    /** Agreement of annotators' types with the groups that rows name. */
    adjusted_rand_index?: number;
    responsibility_ece?: number;
    starts: {
      log_likelihood: number;
      rounds: number;
      converged?: boolean;
      reseeded: number;
      weights: number[];
      kept: boolean;
    }[];
    criteria?: Criterion[];
    description: TypeDescription[];
  };
}
