#!/usr/bin/env node
/**
 * Turns UKPConvArg1 into preference rows: one row for each vote that prefers one of two arguments, with the voter's
 * name. Debates are held out whole (both stances), so that evaluation is on topics never trained on.
 *
 * usage: node convert.mjs --data DIR --output DIR [--eval 0.2] [--seed 0] [--max-rows N] [--min-votes N] [--ties]
 */
import { createHash } from 'node:crypto';
import { mkdir, readFile, rename, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { parse } from 'csv-parse/sync';

const usage =
  'usage: node convert.mjs --data DIR --output DIR [--eval SHARE] [--seed N] [--max-rows N] [--min-votes N] [--ties]\n' +
  '  --eval       share of the debates held out (default 0.2)\n' +
  '  --seed       which debates and, under --max-rows, which rows (default 0)\n' +
  '  --max-rows   at most N rows in each file\n' +
  '  --min-votes  leave out annotators with fewer decided votes than N\n' +
  '  --ties       keep votes for `equal`, as rows with "tie": true';

function fail(message) {
  console.error(`${message}\n${usage}`);
  process.exit(2);
}

function readOptions() {
  const text = { type: 'string' };
  try {
    const { values } = parseArgs({
      options: {
        data: text,
        output: text,
        eval: text,
        seed: text,
        'max-rows': text,
        'min-votes': text,
        ties: { type: 'boolean', default: false },
      },
    });
    const number = (name, fallback, valid, expected) => {
      const value = values[name] === undefined ? fallback : Number(values[name]);
      if (!valid(value)) fail(`--${name}: found ${values[name]}, expected ${expected}`);
      return value;
    };
    const count = (value) => Number.isSafeInteger(value) && value >= 0;
    if (!values.data || !values.output) fail('--data and --output are needed');
    return {
      data: values.data,
      output: values.output,
      share: number('eval', 0.2, (v) => v > 0 && v < 1, 'a share between 0 and 1'),
      seed: number('seed', 0, count, 'a whole number'),
      maxRows: number('max-rows', Infinity, (v) => v === Infinity || (count(v) && v > 0), 'a positive whole number'),
      minVotes: number('min-votes', 0, count, 'a whole number'),
      ties: values.ties,
    };
  } catch (error) {
    return fail(error.message);
  }
}

/** The same order on every machine: by a hash of seed and name. */
const hash = (seed, name) => createHash('sha256').update(`${seed}\n${name}`).digest('hex');
const byHash = (seed, name) => (a, b) => (hash(seed, name(a)) < hash(seed, name(b)) ? -1 : 1);

async function readTable(file) {
  return parse(await readFile(file, 'utf8'), { columns: true, bom: true, skip_empty_lines: true });
}

async function readArguments(file) {
  const lines = (await readFile(file, 'utf8')).split('\n').filter((line) => line.trim() !== '');
  return new Map(lines.map((line) => JSON.parse(line)).map((argument) => [argument.id, argument]));
}

const promptOf = ({ title, stance }) =>
  `Debate: ${title.trim()}\nWhich argument is more convincing for the position "${stance.trim()}"?\nArgument:`;

/** Every decided vote (and, where asked, every tie) as a row, with the debate it belongs to. */
function decidedRows(votes, pairs, argumentsById, keepTies) {
  const rows = [];
  let equal = 0;
  for (const [index, vote] of votes.entries()) {
    const at = `votes.csv: record ${index + 1}`;
    const pair = pairs.get(vote.pair_id);
    if (!pair) throw new Error(`${at}: pair_id ${vote.pair_id} is not in pairs.csv`);
    const tie = vote.value === 'equal';
    if (tie && !keepTies) {
      equal++;
      continue;
    }
    if (!tie && vote.value !== 'a1' && vote.value !== 'a2') {
      throw new Error(`${at}: value is ${JSON.stringify(vote.value)}, expected a1, a2 or equal`);
    }
    const [first, second] = [pair.arg1_id, pair.arg2_id].map((id) => argumentsById.get(id));
    if (!first || !second) throw new Error(`${at}: an argument of ${vote.pair_id} is not in arguments.jsonl`);
    const [chosen, rejected] = vote.value !== 'a2' ? [first, second] : [second, first];
    const row = {
      prompt: promptOf(first),
      chosen: ` ${chosen.text.trim()}`,
      rejected: ` ${rejected.text.trim()}`,
      annotator: vote.worker,
    };
    if (tie) row.tie = true;
    // The voter's own stance on the debate, where it is known: same, opposite or none.
    if (vote.worker_stance) row.group = vote.worker_stance;
    rows.push({ debate: first.title, key: `${vote.pair_id}\n${vote.worker}`, row });
  }
  return { rows, equal };
}

function tally(items, key) {
  const counts = new Map();
  for (const item of items) counts.set(key(item), (counts.get(key(item)) ?? 0) + 1);
  return counts;
}

/** At most `limit` of them, chosen by hash, in the order they came. */
function limited(rows, limit, seed) {
  if (rows.length <= limit) return rows;
  const kept = new Set([...rows].sort(byHash(seed, (r) => r.key)).slice(0, limit));
  return rows.filter((r) => kept.has(r));
}

async function writeRows(file, rows) {
  await writeFile(`${file}.part`, rows.map(({ row }) => `${JSON.stringify(row)}\n`).join(''));
  await rename(`${file}.part`, file);
}

/** Share of decided votes for the argument of more characters: what length alone gets right. */
function longerPreferred(rows) {
  const decided = rows.filter(({ row }) => !row.tie && row.chosen.length !== row.rejected.length);
  const longer = decided.filter(({ row }) => row.chosen.length > row.rejected.length).length;
  return Number((longer / decided.length).toFixed(3));
}

function summary(rows) {
  const counts = [...tally(rows, (r) => r.row.annotator).values()];
  return {
    rows: rows.length,
    debates: new Set(rows.map((r) => r.debate)).size,
    annotators: counts.length,
    annotators_with_50_votes: counts.filter((n) => n >= 50).length,
    longer_preferred: longerPreferred(rows),
  };
}

async function main() {
  const options = readOptions();
  const argumentsById = await readArguments(join(options.data, 'arguments.jsonl'));
  const pairs = new Map((await readTable(join(options.data, 'pairs.csv'))).map((pair) => [pair.pair_id, pair]));
  const votes = await readTable(join(options.data, 'votes.csv'));

  const { rows, equal } = decidedRows(votes, pairs, argumentsById, options.ties);
  const decided = rows.filter((r) => !r.row.tie);
  const perAnnotator = tally(decided, (r) => r.row.annotator);
  const kept = rows.filter((r) => (perAnnotator.get(r.row.annotator) ?? 0) >= options.minVotes);

  const debates = [...new Set([...argumentsById.values()].map((a) => a.title))].sort(byHash(options.seed, (d) => d));
  const heldOut = new Set(
    debates.slice(0, Math.min(debates.length - 1, Math.max(1, Math.round(debates.length * options.share)))),
  );
  const train = limited(
    kept.filter((r) => !heldOut.has(r.debate)),
    options.maxRows,
    options.seed,
  );
  const evaluation = limited(
    kept.filter((r) => heldOut.has(r.debate)),
    options.maxRows,
    options.seed,
  );

  await mkdir(options.output, { recursive: true });
  await writeRows(join(options.output, 'train.jsonl'), train);
  await writeRows(join(options.output, 'eval.jsonl'), evaluation);
  const counts = {
    votes: votes.length,
    left_out: {
      equal,
      few_votes: rows.length - kept.length,
      over_max_rows: kept.length - train.length - evaluation.length,
    },
    train: summary(train),
    eval: summary(evaluation),
    held_out_debates: [...heldOut].sort(),
  };
  console.log(JSON.stringify(counts, null, 2));
}

await main().catch((error) => {
  console.error(error.message);
  process.exit(2);
});
