// Personal rewards on arguments: node examples/ukp/features.mjs [seeds] [--data DIR] [--model DIR]
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { parse } from 'csv-parse/sync';
import {
  accuracies,
  calibration,
  difference,
  interval,
  label,
  show,
  strengths,
  textItems,
  there,
  train,
  tuned,
  votesFrom,
} from '../p-share-lora/people.mjs';
import { bootstrap, generator, mean } from '../p-share-lora/planted.mjs';

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    data: { type: 'string', default: '../shared/data/ukp' },
    model: { type: 'string', default: '../shared/models/tinystories-656k' },
  },
});
const seeds = Number(positionals[0] ?? 5);
const models = [
  { model: 'global', rank: 1 },
  { model: 'local', rank: 1 },
  { model: 'low-rank', rank: 1 },
  { model: 'low-rank', rank: 4 },
  { model: 'mixed', rank: 1 },
  { model: 'lore', rank: 4 },
  { model: 'pal', rank: 4 },
  { model: 'heads', rank: 4 },
];

const lines = (await readFile(join(values.data, 'arguments.jsonl'), 'utf8')).split('\n').filter((line) => line.trim());
const table = await textItems(
  lines.map((line) => JSON.parse(line)),
  values.model,
);
const read = async (name) =>
  parse(await readFile(join(values.data, name), 'utf8'), { columns: true, bom: true, skip_empty_lines: true });
const pairs = new Map((await read('pairs.csv')).map((pair) => [pair.pair_id, pair]));
const byVoter = new Map();
for (const { pair_id: id, worker, value } of await read('votes.csv')) {
  if (value === 'equal') continue;
  const { arg1_id: first, arg2_id: second } = pairs.get(id);
  const [better, worse] = (value === 'a1' ? [first, second] : [second, first]).map((name) => table.index.get(name));
  if (!byVoter.has(worker)) byVoter.set(worker, []);
  byVoter.get(worker).push([better, worse]);
}
const voters = [...byVoter].filter(([, votes]) => votes.length >= 10).sort(([a], [b]) => (a < b ? -1 : 1));

/** Three tenths of each voter's votes held out. */
function draw(seed) {
  const random = generator(seed + 5);
  const [kept, held] = [[], []];
  for (const [u, [, votes]] of voters.entries()) {
    const order = votes.map((vote) => ({ vote, at: random.uniform() })).sort((a, b) => a.at - b.at);
    const cut = Math.round(0.3 * votes.length);
    for (const [i, { vote }] of order.entries()) (i < cut ? held : kept).push([u, ...vote]);
  }
  const names = voters.map(([name]) => name);
  return { train: votesFrom(names, kept), held };
}

const chosen = await tuned(table, models, draw(1000), strengths([0.3, 1, 3, 10]));
const results = models.map(() => []);
for (let seed = 0; seed < seeds; seed++) {
  const data = draw(seed);
  for (const [s, setting] of models.entries()) {
    const scorer = (await train(table, data.train, setting, chosen[s], seed)).scorer(table);
    results[s].push({ held: accuracies(scorer, data.held, voters.length), ...calibration(scorer, data.held) });
  }
}

const first = draw(0);
console.log(
  `${voters.length} voters with 10 decided votes or more, ${first.train.m} training votes, ${first.held.length} held out; ` +
    `${seeds} draws, ${table.d} features of ${table.n} arguments`,
);
console.log('model       l2 (own)   accuracy by voter        worst tenth  likelihood ece    brier');
for (const [s, setting] of models.entries()) {
  const runs = results[s];
  const all = there(runs.flatMap((r) => r.held));
  const worst = [...all].sort((a, b) => a - b).slice(0, all.length / 10);
  const { l2, residual } = chosen[s];
  const columns = [label(setting).padEnd(11), `${l2}${residual ? ` (${residual})` : ''}`.padEnd(10)];
  columns.push(`${show(mean(all))} ${interval(bootstrap(all, mean, 500))}`, `${show(mean(worst))}      `);
  columns.push(show(mean(runs.map((r) => r.likelihood))).padEnd(10));
  columns.push(show(mean(runs.map((r) => r.ece))), show(mean(runs.map((r) => r.brier))));
  console.log(columns.join(' '));
}
const lists = (s) => results[s].map((r) => r.held);
for (const [s, { model }] of models.entries()) {
  if (!['low-rank', 'mixed'].includes(model)) continue;
  for (const other of [0, 1])
    console.log(`${label(models[s])} − ${label(models[other])}: ${difference(lists(s), lists(other))}`);
}
