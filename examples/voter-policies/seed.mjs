#!/usr/bin/env node
/** One seed of run.mjs: people, votes, a reward for each, policies, and what those are truly worth. Stopped, it goes on. */
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { parseArgs } from 'node:util';
import {
  AdapterPopulation,
  Bank,
  completionText,
  Model,
  Population,
  pessimistic,
  readItems,
  train,
} from '../../dist/index.js';
import { tokenScores } from '../../dist/rl/rollout.js';
import { writePrompts } from '../soups/settings.mjs';
import { featuresBy, nameOf, pairings, plant, plantOn, truths, voteOn, votesOf } from './planted.mjs';
import { checkChoice, holdTo, options, policyNames, sizes } from './settings.mjs';

const { values } = parseArgs({ options: { ...options, seed: { type: 'string' } } });
const seed = Number(values.seed);
const wanted = values.policies.split(',');
for (const name of wanted) checkChoice('policies', name, policyNames);
checkChoice('truth', values.truth, Object.keys(truths));
checkChoice('pairs', values.pairs, Object.keys(pairings));
checkChoice('size', values.size, Object.keys(sizes));
const size = sizes[values.size];
const dir = join(resolve(values.output), `seed-${seed}`);
mkdirSync(dir, { recursive: true });
const modelDir = resolve(values.model);
const made = ['size', 'truth', 'pairs', 'reward', 'l2', 'rate', 'beta', 'lower'].map((name) => [name, values[name]]);
holdTo(dir, { model: modelDir, text: resolve(values.text), ...Object.fromEntries(made) }, [
  'items.jsonl',
  'worth.json',
]);
const data = writePrompts({ ...values, size: size.prompts, output: dir });
const rowsOf = (path) =>
  readFileSync(path, 'utf8')
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line));
const prompts = { train: rowsOf(data.train), eval: rowsOf(data.eval) };
const write = (name, rows) => {
  const path = join(dir, name);
  if (!existsSync(path)) writeFileSync(path, rows.map((row) => `${JSON.stringify(row)}\n`).join(''));
  return path;
};
const rollout = { max_new_tokens: 48, reference_samples: 256 };
const people = votesOf.map((_, u) => u);

/** Answers of the base to the training prompts: what people vote on. */
async function sampleItems() {
  const path = join(dir, 'items.jsonl');
  if (!existsSync(path)) {
    const model = await Model.load(modelDir, { threads: 1 });
    const asked = prompts.train.flatMap(({ prompt }) => Array.from({ length: size.items }, () => prompt));
    const said = await model.generate(
      asked.map((text) => encode(model, text)),
      null,
      {
        temperature: 1,
        maxNewTokens: rollout.max_new_tokens,
        seed: 1000 + 7919 * seed,
      },
    );
    model.dispose();
    const rows = said.map((ids, i) => ({
      id: `i${i}`,
      prompt: asked[i],
      completion: completionText(model, ids),
    }));
    write(
      'items.jsonl',
      rows.filter(({ completion }) => completion.trim() !== ''),
    );
  }
  return rowsOf(path);
}
const encode = ({ tokenizer }, text) =>
  Int32Array.from([...(tokenizer.bosId === null ? [] : [tokenizer.bosId]), ...tokenizer.encode(text)]);

const items = await sampleItems();
const features = featuresBy(items.map(({ completion }) => completion));
const truthOf = truths[values.truth];
const reward = plant(features, seed, truthOf);
const measured = items.map(({ completion }) => features(completion));
const votes = voteOn(items, measured, plantOn(votesOf.length, seed, truthOf), seed, { pairing: values.pairs });
const table = write(
  'features.jsonl',
  items.map(({ id, completion }) => ({ id, features: features(completion) })),
);

const finished = (run) =>
  existsSync(join(run, 'summary.json')) && JSON.parse(readFileSync(join(run, 'summary.json'), 'utf8')).finished;
async function trained(name, config, rewards) {
  const output = join(dir, name);
  if (!finished(output)) await train({ ...config, output }, { quiet: true, resume: true, rewards });
  return output;
}

// A reward for each from the votes, on the features.
const rewardRun = join(dir, 'rewards');
if (!existsSync(join(rewardRun, 'features.safetensors')))
  await train(
    {
      method: 'reward',
      model: 'features',
      data: {
        items: table,
        train: write(
          'votes.jsonl',
          votes.map(({ u, chosen, rejected }) => ({
            chosen: items[chosen].id,
            rejected: items[rejected].id,
            annotator: nameOf(u),
          })),
        ),
      },
      features: { model: values.reward, rank: 2, l2: Number(values.l2) },
      output: rewardRun,
    },
    { quiet: true },
  );

// Policies: of everyone by their true and their learned reward, by votes alone, and one for all.
const asked = write(
  'asked.jsonl',
  prompts.train.flatMap(({ prompt }) => people.map((u) => ({ prompt, annotator: nameOf(u) }))),
);
const training = (steps, batch) => ({
  steps,
  batch_size: batch,
  learning_rate: Number(values.rate),
  schedule: 'constant',
  seed,
  threads: 1,
  save_every: 50,
});
const own = { r: 8, alpha: 16, share: 'b', generic: 0 };
const base = {
  method: 'rloo',
  model: modelDir,
  data: { train: asked },
  rollout,
  rloo: { group_size: 4, beta: Number(values.beta) },
};
const rloo = { ...base, adapter: own, train: training(size.steps, size.batch) };
const population = Population.load(join(rewardRun, 'features.safetensors'));
const voted = await readItems(table);
/** Learned rewards of the voter who is named (or the generic one), less z standard deviations of what is open. */
function learned(z, named = true) {
  const rewardOf = pessimistic(population, voted, z);
  return (samples) => {
    const found = samples.flatMap(({ completion }) => features(completion));
    const of = rewardOf({ features: Float32Array.from(found), n: samples.length, d: voted.d });
    return samples.map(({ annotator }, i) => of(named ? (population.index.get(annotator) ?? -1) : -1, i));
  };
}
const index = new Map(people.map((u) => [nameOf(u), u]));
const truth = (samples) => samples.map((s) => reward(index.get(s.annotator), s.completion));
const pairs = write(
  'pairs.jsonl',
  votes.map(({ u, chosen, rejected }) => ({
    prompt: items[chosen].prompt,
    chosen: items[chosen].completion,
    rejected: items[rejected].completion,
    annotator: nameOf(u),
  })),
);
const dpo = { method: 'dpo', model: modelDir, data: { train: pairs }, loss: { beta: Number(values.beta) } };
const dpoTraining = { ...training(size.dpo, 24), learning_rate: 0.004 };
const one = { r: 8, alpha: 16 };
const by = (name) => [{ type: 'function', name }];
const makes = {
  oracle: () => trained('oracle', { ...rloo, rewards: by('truth') }, { truth }),
  learned: () => trained('learned', { ...rloo, rewards: by('learned') }, { learned: learned(0) }),
  pessimistic: () =>
    trained('pessimistic', { ...rloo, rewards: by('learned') }, { learned: learned(Number(values.lower)) }),
  'one for all': () =>
    trained(
      'one',
      { ...base, adapter: one, rewards: by('learned'), train: training(Math.ceil(size.steps / 2), 16) },
      { learned: learned(0, false) },
    ),
  dpo: () => trained('dpo', { ...dpo, adapter: own, train: dpoTraining }),
  'dpo for all': () => trained('dpo-one', { ...dpo, adapter: one, train: dpoTraining }),
};
const policies = {};
for (const name of wanted) policies[name] = await makes[name]();

/** What a policy's answers are truly worth to each of the people, and how far it is from the base. */
async function judge(model, run) {
  let [bank, adapter] = [null, () => -1];
  if (run && existsSync(join(run, 'population.safetensors'))) {
    const found = AdapterPopulation.open(join(run, 'population.safetensors')).bank(model.shape, people.map(nameOf));
    const known = new Map(found.known.map((name, i) => [name, i + 1]));
    [bank, adapter] = [found.bank, (u) => known.get(nameOf(u))];
  } else if (run) {
    bank = await Bank.fromPeft(model.shape, [{ name: 'one', dir: join(run, 'adapter'), trainable: false }]);
    adapter = () => 0;
  }
  const texts = prompts.eval.flatMap(({ prompt }) => Array.from({ length: size.samples }, () => encode(model, prompt)));
  const out = [];
  for (const u of people) {
    // Everyone draws the same numbers, so that differences are of policies.
    const said = await model.generate(texts, bank, {
      adapter: adapter(u),
      temperature: 1,
      maxNewTokens: rollout.max_new_tokens,
      seed: 77 + seed,
    });
    const worth = said.map((ids) => reward(u, completionText(model, ids)));
    const groups = said.map((ids, i) => ({ index: i, kind: 'text', prompt: texts[i], completions: [ids], weight: 1 }));
    const score = async (speaker) =>
      (await tokenScores(groups, speaker, 'logps', { temperature: 1, maxTokens: 8192 })).reduce((a, b) => a + b, 0);
    const kl = bank
      ? (await score({ model, bank, adapter: adapter(u) })) - (await score({ model, bank: null, adapter: -1 }))
      : 0;
    out.push({ u, votes: votesOf[u], worth: worth.reduce((a, b) => a + b, 0) / worth.length, kl: kl / said.length });
  }
  return out;
}

const result = join(dir, 'worth.json');
const worth = existsSync(result) ? JSON.parse(readFileSync(result, 'utf8')) : {};
const left = Object.entries({ base: null, ...policies }).filter(([name]) => !(name in worth));
if (left.length > 0) {
  const model = await Model.load(modelDir, { threads: 1 });
  for (const [name, run] of left) {
    worth[name] = await judge(model, run);
    writeFileSync(result, JSON.stringify(worth, null, 1));
  }
  model.dispose();
}
