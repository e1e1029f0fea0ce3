import { fixture } from './runs.js';

/** The least that a run of soups needs, on prompts to train on and to be judged on; `soups`, `train` and `output` are the test's. */
export const tinySoups = (prompts: string) => ({
  method: 'soups' as const,
  model: fixture('mistral').model,
  data: { train: prompts, eval: prompts },
  adapter: { r: 2, alpha: 4 },
  rollout: { max_new_tokens: 6, reference_samples: 24 },
  rloo: { group_size: 2 },
});

/** Of its `train` block what all tests want. */
export const tinySteps = { batch_size: 3, dtype: 'float32', threads: 1 } as const;
