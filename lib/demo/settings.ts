/** The sizes of a demo. The same plan gives the same numbers on the same machine. */
export interface DemoPlan {
  seed: number;
  /** Beginnings for training votes, and others for held-out votes. */
  prompts: number;
  heldPrompts: number;
  /** Endings that the model writes for each beginning. */
  endings: number;
  /** Votes of each annotator. */
  votes: number;
  heldVotes: number;
  /** DPO; a policy for everyone has more rows, hence more steps. */
  epochs: number;
  batchSize: number;
  learningRate: number;
  rank: number;
  beta: number;
  /** Weight of the chosen ending's negative log-likelihood, which keeps the policies' text well formed. */
  likelihood: number;
  /** New stories of each policy, to see what it writes now, and how many of them are printed. */
  stories: number;
  shown: number;
  /** The experts for wishes: beginnings that they answer, and RLOO's steps and prompts of each (four answers to a prompt). */
  soup: { prompts: number; steps: number; batchSize: number };
}

export const defaultPlan: DemoPlan = {
  seed: 7,
  prompts: 96,
  heldPrompts: 48,
  endings: 4,
  votes: 40,
  heldVotes: 40,
  epochs: 4,
  batchSize: 16,
  learningRate: 2e-3,
  rank: 8,
  beta: 0.5,
  likelihood: 1,
  stories: 48,
  shown: 2,
  soup: { prompts: 192, steps: 20, batchSize: 12 },
};
