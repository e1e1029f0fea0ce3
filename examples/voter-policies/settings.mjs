/** Options of run.mjs and seed.mjs, and how long what takes. */
export const options = {
  model: { type: 'string', default: '../shared/models/tinystories-656k' },
  text: { type: 'string', default: '../shared/text/tinystories_sample.txt' },
  output: { type: 'string', default: 'runs/voter-policies' },
  seeds: { type: 'string', default: '3' },
  size: { type: 'string', default: 'full' },
  jobs: { type: 'string', default: '2' },
  beta: { type: 'string', default: '0.1' },
  lower: { type: 'string', default: '1' },
  l2: { type: 'string', default: '1' },
  truth: { type: 'string', default: 'linear' },
  pairs: { type: 'string', default: 'random' },
  reward: { type: 'string', default: 'low-rank' },
  policies: { type: 'string', default: 'oracle,learned,pessimistic,one for all,dpo,dpo for all' },
  rate: { type: 'string', default: '0.004' },
};

/** items: answers to a prompt that are voted on; prompts: a size of examples/soups, which says how many are held out. */
export const sizes = {
  tiny: { steps: 2, batch: 12, items: 2, samples: 1, dpo: 2, prompts: 'tiny' },
  full: { steps: 120, batch: 24, items: 8, samples: 2, dpo: 60, prompts: 'full' },
};
