// A policy for each annotator by their own samples, and voters' learned rewards as rewards.
import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { AdapterPopulation } from '../lib/adapters/population.js';
import { generateCommand } from '../lib/api/generate.js';
import type { Config } from '../lib/config/index.js';
import { rewardTermSchema } from '../lib/config/rollout-schema.js';
import { embed } from '../lib/features/embed.js';
import { readItems } from '../lib/features/items.js';
import { scoreFeatures } from '../lib/features/run.js';
import { Model } from '../lib/model/model.js';
import { openRewards } from '../lib/rewards/open.js';
import type { RewardFunction, Sample } from '../lib/rewards/types.js';
import { adaptVoters } from '../lib/training/adapt.js';
import { type TrainOptions, train } from '../lib/training/train.js';
import { fixture, scratch, writeRows } from './support/runs.js';

const { path } = scratch();
const f = fixture('mistral');
let count = 0;
const next = () => path(`run-${count++}`);
const people = ['odd', 'even'];
const prompts = writeRows(
  path('prompts.jsonl'),
  f.rows.flatMap(({ prompt }) => people.map((annotator) => ({ prompt, annotator }))),
);
const share = (ids: ArrayLike<number>, parity: number) =>
  Array.from(ids).reduce((n, id) => n + (id % 2 === parity ? 1 : 0), 0) / ids.length;
/** Opposite tastes: one likes odd tokens, the other even ones. */
const taste: RewardFunction = (samples) =>
  samples.map(({ ids, annotator }) => share(ids, people.indexOf(annotator!) === 0 ? 1 : 0));
const config = (changes: Partial<Config> = {}): Config => ({
  method: 'rloo',
  model: f.model,
  data: { train: prompts, eval: prompts },
  adapter: { r: 4, alpha: 8, share: 'b', generic: 0 },
  rewards: [{ type: 'function', name: 'taste' }],
  rollout: { max_new_tokens: 8, reference_samples: 16 },
  rloo: { group_size: 3, beta: 0.01 },
  output: next(),
  ...changes,
  train: {
    steps: 4,
    batch_size: 4,
    learning_rate: 0.02,
    schedule: 'constant',
    dtype: 'float32',
    threads: 1,
    log_every: 1,
    save_every: 2,
    ...changes.train,
  },
});
const quiet = (given: Config, options: TrainOptions = {}) =>
  train(given, { quiet: true, rewards: { taste }, ...options });
const population = (run: string) => AdapterPopulation.open(`${run}/population.safetensors`);

describe('a policy for each annotator', () => {
  it.each(['b', 'core', 'none'] as const)('opposite tastes are served at once (share %s)', async (kind) => {
    const given = config({
      adapter: { r: 4, alpha: 8, share: kind, per: 'annotator', generic: 0 },
      // Enough samples to a prompt that every seed learns: the last bits of kernels decide where a run ends up.
      rloo: { group_size: 8, beta: 0.01 },
      train: { steps: 60, batch_size: 6, learning_rate: kind === 'core' ? 0.12 : 0.03 },
    });
    const { eval: after, eval_before: before } = await quiet(given);
    const gains = people.map((name) => {
      const [now, was] = [after, before].map((e) => e!.annotators[name] as unknown as { reward: number; rows: number });
      expect(now.rows).toBe(f.rows.length);
      return now.reward - was.reward;
    });
    expect(Math.min(...gains), `${gains}`).toBeGreaterThan(0.1);
    expect(gains[0] + gains[1], `${gains}`).toBeGreaterThan(0.7);
    // Spoken with another's policy the answers are worth less.
    const said = async (annotator: string) => {
      const texts: Int32Array[] = [];
      using model = await Model.load(f.model, { dtype: 'float32', threads: 1 });
      const { bank } = population(given.output!).bank(model.shape, [annotator]);
      const asked = Array.from({ length: 60 }, () => Int32Array.of(1, 5));
      texts.push(...(await model.generate(asked, bank, { adapter: 1, maxNewTokens: 8, seed: 3 })));
      return texts.reduce((sum, ids) => sum + share(ids, 1), 0) / texts.length;
    };
    expect(await said('odd')).toBeGreaterThan((await said('even')) + 0.1);
  });

  it.each([
    ['rloo', {}],
    ['ppo', { method: 'ppo', rloo: null, ppo: { epochs: 2, minibatches: 2 } }],
  ] as [string, Partial<Config>][])('%s goes on to the bit after a stop, its warm-up included', async (_, changes) => {
    const adapter: Config['adapter'] = {
      ...{ r: 4, alpha: 8, share: 'b', generic: 0.3, penalty: 0.1 },
      ...{ init: 'warm-up', init_share: 0.5 },
    };
    const whole = config({ ...changes, adapter });
    await quiet(whole);
    const parts = config({ ...changes, adapter });
    for (let wait = 20; ; wait += 10) {
      try {
        if ((await quiet(parts, { stop: AbortSignal.timeout(wait), resume: true })).finished) break;
      } catch (error) {
        expect(error).toMatchObject({ code: 'ABORTED' });
      }
    }
    for (const file of ['population.safetensors', 'metrics.jsonl'])
      expect(readFileSync(`${parts.output}/${file}`).equals(readFileSync(`${whole.output}/${file}`)), file).toBe(true);
  });

  it('does not go on with prompts that others gave, nor take votes; draws a map', async () => {
    const write = (names: string[]) =>
      writeRows(
        path('own.jsonl'),
        f.rows.flatMap(({ prompt }) => names.map((annotator) => ({ prompt, annotator }))),
      );
    const given = config({ data: { train: write(people), eval: prompts } });
    const stop = new AbortController();
    let calls = 0;
    const stopping: RewardFunction = (samples) => {
      if (++calls === 4) stop.abort();
      return taste(samples);
    };
    await quiet(given, { rewards: { taste: stopping }, stop: stop.signal });
    write([...people].reverse());
    await expect(quiet(given, { resume: true })).rejects.toThrow(/--resume: the prompts/);
    write(people);
    expect((await quiet(given, { resume: true })).finished).toBe(true);
    expect(JSON.parse(readFileSync(`${given.output}/voters.json`, 'utf8')).kind).toBe('adapters');
    const votes = writeRows(path('votes.jsonl'), [{ ...f.rows[0], annotator: 'new' }]);
    await expect(adaptVoters({ run: given.output!, votes: [votes], quiet: true })).rejects.toThrow(
      /rloo learns from rewards/,
    );
  });

  it('a step moves what is shared and those whose prompts were in it', async () => {
    const one = config({ adapter: { r: 4, alpha: 8, share: 'b', generic: 0 }, train: { steps: 1, batch_size: 1 } });
    await quiet(one);
    const people = population(one.output!);
    // B was zero at the start, so that in the first step only it has a gradient; weight decay is off.
    const [generic, ...own] = ['', 'even', 'odd'].map((name) => people.own(people.index.get(name) ?? 0));
    expect(own.every((row) => row.length === generic.length)).toBe(true);
    const two = config({ adapter: { r: 4, alpha: 8, share: 'b', generic: 0 }, train: { steps: 2, batch_size: 1 } });
    await quiet(two);
    const later = population(two.output!);
    const moved = ['', 'even', 'odd'].map((name) => {
      const [a, b] = [people, later].map((p) => p.own(p.index.get(name) ?? 0));
      return a.some((value, i) => value !== b[i]);
    });
    expect(moved[0]).toBe(false);
    expect(moved.filter(Boolean)).toHaveLength(1);
  });

  it('speaks as one of them, and refuses prompts that name nobody', async () => {
    const given = config();
    await quiet(given);
    const say = (annotator?: string) =>
      generateCommand({
        run: given.output!,
        prompt: f.rows[0].prompt,
        maxNewTokens: 4,
        ...(annotator && { annotator }),
      });
    expect((await say('odd')).samples).toHaveLength(1);
    const nobody = writeRows(path('nobody.jsonl'), [{ prompt: 'x y' }]);
    await expect(quiet(config({ data: { train: nobody } }))).rejects.toThrow(/no row names an annotator/);
  });
});

describe('voters’ rewards on features', () => {
  const term = (given: object) => {
    const parsed = rewardTermSchema.parse({ type: 'model', normalise: false, bound: null, ...given });
    return { ...parsed, name: 'learnt' };
  };
  const items = f.rows.map(({ prompt, chosen }, i) => ({ id: `i${i}`, prompt, completion: chosen }));
  async function rewards(pooling: 'mean' | 'last') {
    const dir = next();
    const table = path(`${pooling}.safetensors`);
    const data = [writeRows(path(`${pooling}.jsonl`), items)];
    await embed({ model: f.model, data, output: table, pooling, dtype: 'float32', threads: 1 });
    const votes = people.flatMap((annotator, u) =>
      items.slice(1).map(({ id }, i) => ({
        ...{ chosen: u ? id : items[i].id, rejected: u ? items[i].id : id },
        annotator,
      })),
    );
    const train = { train: writeRows(path(`${pooling}-votes.jsonl`), votes), items: table };
    await quiet({
      method: 'reward',
      model: 'features',
      data: train,
      features: { model: 'low-rank', rank: 2 },
      output: dir,
    });
    return { dir, table, rows: path(`${pooling}-votes.jsonl`), votes };
  }
  /** The items as if they had been sampled. */
  const samplesOf = (model: Model, annotator: string): Sample[] =>
    items.map(({ prompt, completion }) => ({
      prompt,
      completion,
      promptIds: Int32Array.from([model.tokenizer.bosId!, ...model.tokenizer.encode(prompt)]),
      ids: Int32Array.from([...model.tokenizer.encode(completion), model.config.eosIds[0]]),
      ended: true,
      annotator,
    }));

  it.each([
    'mean',
    'last',
  ] as const)('are what score says of the same texts, less what is open (%s)', async (pooling) => {
    const { dir, table, rows, votes } = await rewards(pooling);
    using model = await Model.load(f.model, { dtype: 'float32', threads: 1 });
    const index = (await readItems(table)).index;
    const said = await scoreFeatures(dir, [rows], { lower: 1.5 });
    for (const annotator of people) {
      const open = async (given: object) => {
        const own = await openRewards([term({ adapter: dir, ...given })], model, { maxTokens: 40 });
        return (await own.score(samplesOf(model, annotator))).raw[0];
      };
      const [plain, lower, named] = [
        await open({ per: 'annotator' }),
        await open({ per: 'annotator', lower: 1.5 }),
        await open({ annotator, lower: 1.5 }),
      ];
      expect(named).toEqual(lower);
      for (const [v, vote] of votes.entries()) {
        if (vote.annotator !== annotator) continue;
        const at = index.get(vote.chosen)!;
        expect(plain[at]).toBeCloseTo(said.rows[v].rewards.features[0], 4);
        expect(lower[at]).toBeCloseTo(said.rows[v].rewards.lower[0], 4);
        expect(lower[at]).toBeLessThan(plain[at]);
      }
    }
    // Nobody in particular is judged by the generic reward.
    const generic = await openRewards([term({ adapter: dir })], model, { maxTokens: 40 });
    const [a, b] = [samplesOf(model, 'odd'), samplesOf(model, 'even')];
    expect((await generic.score(a)).raw[0]).toEqual((await generic.score(b)).raw[0]);
  });

  it('refuses items of another making, unknown people and a bound where there is none', async () => {
    using model = await Model.load(f.model, { dtype: 'float32', threads: 1 });
    const open = (given: object) => openRewards([term(given)], model, { maxTokens: 40 });
    const { dir } = await rewards('mean');
    await expect(open({ adapter: dir, annotator: 'none' })).rejects.toThrow(/has no annotator "none"/);
    await expect(open({ adapter: f.adapter, lower: 1 })).rejects.toThrow(/lower needs a run of rewards on features/);
    const plain = writeRows(
      path('plain.jsonl'),
      items.map(({ id }, i) => ({ id, features: [i, 1, i * i] })),
    );
    const votes = writeRows(path('plain-votes.jsonl'), [{ chosen: 'i1', rejected: 'i0', annotator: 'a' }]);
    const other = next();
    await quiet({ method: 'reward', model: 'features', data: { train: votes, items: plain }, output: other });
    await expect(open({ adapter: other })).rejects.toThrow(/were not made by pluralign embed/);
    await expect(quiet(config({ rewards: [{ type: 'length', per: 'annotator' }] }))).rejects.toThrow(
      /rewards\[0\]\.per: belongs to type model/,
    );
  });
});
