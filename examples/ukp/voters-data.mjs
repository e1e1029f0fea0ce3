// Rows of a few voters each with a few votes, for voters.mjs and new-voters.mjs: minutes on two cores.
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

/** Voters who are trained, rows of each, and characters of a row's two arguments at most. */
const sizes = { voters: 30, newcomers: 20, train: 40, eval: 20, characters: 600 };

export const percent = (x) => (100 * x).toFixed(1);
export const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;
export const deviation = (values) =>
  Math.sqrt(values.reduce((sum, x) => sum + (x - mean(values)) ** 2, 0) / Math.max(1, values.length - 1));

const readRows = (file) =>
  readFileSync(file, 'utf8')
    .split('\n')
    .filter(Boolean)
    .map((line) => JSON.parse(line));

function writeRows(file, rows) {
  writeFileSync(`${file}.part`, rows.map((row) => `${JSON.stringify(row)}\n`).join(''));
  renameSync(`${file}.part`, file);
}

/** Every row of the debates to train on and of three others, which depend on the seed. */
function convert(data, dir, seed) {
  const script = fileURLToPath(new URL('convert.mjs', import.meta.url));
  const argv = [script, '--data', data, '--output', dir, '--seed', String(seed), '--min-votes', '100'];
  const { status, stderr } = spawnSync(process.execPath, argv, { encoding: 'utf8' });
  if (status !== 0) throw new Error(stderr);
  return { train: readRows(join(dir, 'train.jsonl')), eval: readRows(join(dir, 'eval.jsonl')) };
}

/** Voters with the most rows to train on, most first. */
function byVotes(rows) {
  const counts = new Map();
  for (const { annotator } of rows) counts.set(annotator, (counts.get(annotator) ?? 0) + 1);
  return [...counts].sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1)).map(([name]) => name);
}

/** Of each of `voters` at most `count` short rows, chosen by a hash of seed and row. */
function take(rows, voters, count, seed) {
  const key = (row) =>
    createHash('sha256')
      .update(`${seed}${JSON.stringify(row)}`)
      .digest('hex');
  const chosen = new Set(voters);
  const seen = new Map();
  return rows
    .filter((row) => chosen.has(row.annotator) && row.chosen.length + row.rejected.length < sizes.characters)
    .sort((a, b) => (key(a) < key(b) ? -1 : 1))
    .filter(({ annotator }) => {
      seen.set(annotator, (seen.get(annotator) ?? 0) + 1);
      return seen.get(annotator) <= count;
    });
}

function prepare(data, dir, seed, files, first, voters, votes) {
  if (!existsSync(files.train) || !existsSync(files.eval)) {
    const rows = convert(data, dir, seed);
    const names = byVotes(rows.train).slice(first, first + voters);
    writeRows(files.eval, take(rows.eval, names, sizes.eval, seed));
    writeRows(files.train, take(rows.train, names, votes, seed));
  }
  return files;
}

/** The voters with the most votes. */
export function prepareVoters(data, dir, seed) {
  const files = { train: join(dir, 'voters-train.jsonl'), eval: join(dir, 'voters-eval.jsonl') };
  return prepare(data, dir, seed, files, 0, sizes.voters, sizes.train);
}

/** Those who come next, with few votes each. */
export function prepareNewcomers(data, dir, seed, votes) {
  const files = { train: join(dir, `new-${votes}-train.jsonl`), eval: join(dir, 'new-eval.jsonl') };
  return prepare(data, dir, seed, files, sizes.voters, sizes.newcomers, votes);
}
