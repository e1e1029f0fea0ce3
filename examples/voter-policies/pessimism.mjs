#!/usr/bin/env node
/**
 * When does pessimism help? True rewards known, votes of 24 people (60, 12, 6, 3, 2 or 1 each), answers chosen among many of
 * the base's by a learned reward, as it is or less z deviations of what the votes leave open: no policy is trained, so that
 * settings and seeds are cheap. What is crossed: which pairs are voted on (any two; two alike in one measure; two ordinary
 * ones), true rewards (linear as the learned ones, or falling again beyond a deviation), how rewards are learnt. z is chosen
 * on the even seeds, what it changes is measured on the odd ones. Stopped, it goes on.
 *
 * usage: node examples/voter-policies/pessimism.mjs --model DIR --text stories.txt --output DIR [--seeds 40]
 */
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { parseArgs } from 'node:util';
import { completionText, Model } from '../../dist/index.js';
import { writePrompts } from '../soups/settings.mjs';
import { fits, fitted, peoples, rewardsOf, tableOf, worthOfBest } from './choices.mjs';
import { tableOf as findingsOf } from './findings.mjs';
import { featuresBy, pairings, plantOn, truths, voteOn } from './planted.mjs';
import { checkChoice, holdTo } from './settings.mjs';

const { values } = parseArgs({
  options: {
    model: { type: 'string', default: '../shared/models/tinystories-656k' },
    text: { type: 'string', default: '../shared/text/tinystories_sample.txt' },
    output: { type: 'string', default: 'runs/pessimism' },
    seeds: { type: 'string', default: '40' },
    size: { type: 'string', default: 'full' },
  },
});
const sizes = { tiny: { prompts: 2, samples: 4, items: 4 }, full: { prompts: 24, samples: 128, items: 8 } };
checkChoice('size', values.size, Object.keys(sizes));
const size = sizes[values.size];
const output = resolve(values.output);
mkdirSync(output, { recursive: true });
holdTo(output, { model: resolve(values.model), text: resolve(values.text), size: values.size }, [
  'items.jsonl',
  'choices.jsonl',
]);
const data = writePrompts({ ...values, output });
const rowsOf = (path) =>
  readFileSync(path, 'utf8')
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line));

/** Answers of the base: some to training prompts, to vote on, and many to others, to choose among. */
async function answers(name, prompts, each, seed) {
  const path = join(output, `${name}.jsonl`);
  if (!existsSync(path)) {
    const model = await Model.load(resolve(values.model), { threads: 1 });
    const { tokenizer } = model;
    const asked = prompts.flatMap(({ prompt }) => Array.from({ length: each }, () => prompt));
    const start = tokenizer.bosId === null ? [] : [tokenizer.bosId];
    const ids = asked.map((text) => Int32Array.from([...start, ...tokenizer.encode(text)]));
    const said = await model.generate(ids, null, { temperature: 1, maxNewTokens: 48, seed });
    const rows = said.map((tokens, i) => ({ prompt: asked[i], completion: completionText(model, tokens) }));
    model.dispose();
    const told = rows.filter(({ completion }) => completion.trim() !== '');
    writeFileSync(path, told.map((row) => `${JSON.stringify(row)}\n`).join(''));
  }
  return rowsOf(path);
}
const items = await answers('items', rowsOf(data.train), size.items, 1);
const choices = await answers('choices', rowsOf(data.eval).slice(0, size.prompts), size.samples, 1e6);
const measure = featuresBy(items.map(({ completion }) => completion));
const [voted, open] = [items, choices].map((rows) => rows.map(({ completion }) => measure(completion)));
const grouped = (rows) => {
  const by = new Map();
  for (const [i, { prompt }] of rows.entries()) by.set(prompt, [...(by.get(prompt) ?? []), i]);
  return [...by.values()];
};
const [votedGroups, groups] = [grouped(items), grouped(choices)];
const [table, other] = [tableOf(voted), tableOf(open)];

/** One seed under one setting: by voter, what the oracle's choice is worth, the base's mean, and every reward's choice. */
async function measured(seed, truth, pairing, fit) {
  const reward = plantOn(peoples.length, seed, truths[truth]);
  const votes = voteOn(items, voted, reward, seed, { counts: peoples, pairing });
  const population = await fitted(table, votes, peoples.length, fit);
  return peoples.map((count, u) => {
    const true_ = Float64Array.from(open, (x) => reward(u, x));
    const mean = true_.reduce((a, b) => a + b, 0) / true_.length;
    const of = (choose) => ({
      oracle: choose(true_),
      ...Object.fromEntries(
        rewardsOf(
          population,
          table,
          votedGroups.filter((_, g) => g % 3 === 0),
          other,
          u,
        ).map(([name, by]) => [name, choose(by)]),
      ),
    });
    return { votes: count, base: mean, best: of((by) => worthOfBest(groups, by, true_)) };
  });
}

const settings = Object.keys(truths).flatMap((truth) =>
  Object.keys(pairings).flatMap((pairing) => Object.keys(fits).map((fit) => ({ truth, pairing, fit }))),
);
const runs = [];
for (let seed = 0; seed < Number(values.seeds); seed++) {
  const path = join(output, `seed-${seed}.json`);
  if (!existsSync(path)) {
    const found = [];
    for (const { truth, pairing, fit } of settings) found.push(await measured(seed, truth, pairing, fit));
    writeFileSync(path, JSON.stringify(found));
  }
  runs.push(JSON.parse(readFileSync(path, 'utf8')));
}
const lines = findingsOf(settings, runs);
console.log(lines.join('\n'));
writeFileSync(join(output, 'table.txt'), `${lines.join('\n')}\n`);
