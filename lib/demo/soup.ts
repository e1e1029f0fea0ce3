import { Bank } from '../adapters/bank.js';
import { writeFileAtomic } from '../base/files.js';
import type { Config } from '../config/index.js';
import { mergeExperts } from '../merge/index.js';
import type { RewardFunction } from '../rewards/types.js';
import { tellBeginnings } from './grammar.js';
import { base, longestEnding, sampleEndings } from './policies.js';
import { demoModel, type Session } from './session.js';
import { type SoupTable, soupTable, wishes } from './tables.js';

/** A wish's expert: RLOO on the base's own answers, rewarded by the wish's measure alone. */
function config(session: Session, wish: string, prompts: string): Config {
  const { rank, soup } = session.plan;
  return {
    method: 'rloo',
    model: demoModel,
    data: { train: prompts },
    adapter: { r: rank, alpha: 2 * rank },
    rewards: [{ type: 'function', name: wish, bound: 2 }],
    rollout: { max_new_tokens: longestEnding, reference_samples: 96 },
    rloo: { group_size: 4, beta: 0.05 },
    train: {
      ...session.runtime,
      steps: soup.steps,
      batch_size: soup.batchSize,
      learning_rate: 4e-3,
      schedule: 'constant',
    },
    output: session.path(wish),
  };
}

/**
 * An expert for each of two wishes, trained by itself; their updates mixed half and half without training (P-Soups, arXiv
 * 2310.11564); and what new stories of each are worth to both wishes, the same prompts and seeds for all.
 */
export async function makeSoup(session: Session): Promise<SoupTable> {
  const { plan, options } = session;
  const { stop } = options;
  const prompts = session.path('wishes.jsonl');
  const asked = tellBeginnings(plan.soup.prompts, plan.seed + 8);
  await writeFileAtomic(prompts, asked.map((prompt) => `${JSON.stringify({ prompt })}\n`).join(''));
  const names = Object.keys(wishes);
  for (const wish of names) {
    const reward: RewardFunction = (samples) => samples.map(({ completion }) => wishes[wish](completion));
    await session.train(`an expert for ${wish}`, config(session, wish, prompts), { [wish]: reward });
  }
  const experts = names.map((name) => ({ name, dir: session.path(`${name}/adapter`) }));
  await mergeExperts({ experts, method: 'cat', output: session.path('soup'), signal: stop.signal });

  using model = await session.open();
  const sources = [...experts, { name: 'soup', dir: session.path('soup') }];
  const bank = await Bank.fromPeft(
    model.shape,
    sources.map((source) => ({ ...source, trainable: false })),
  );
  const policies = ['base', ...sources.map(({ name }) => name)];
  const unseen = tellBeginnings(plan.stories, plan.seed + 9);
  const told = await session.withProgress(policies.length * unseen.length, 'write new stories', async (onProgress) => {
    const all: (string | null)[][] = [];
    for (const [i] of policies.entries())
      all.push(
        await sampleEndings(model, bank, base + i, unseen, {
          seed: (plan.seed + 10) * 2 ** 16,
          temperature: 1,
          abort: stop.flag,
          onProgress: (done) => onProgress(i * unseen.length + done),
        }),
      );
    return all;
  });
  bank.dispose();
  return soupTable(unseen, policies, told);
}
