// What the comparisons on real votes share: items with features, votes as arrays, models fitted and judged by voter.
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { embed, featureModel, itemTable, Population, readItems } from 'pluralign';
import { bootstrap, mean } from './planted.mjs';

/** Names of `statistics`. */
export const statisticNames = [
  'length',
  'words',
  'long words',
  'questions',
  'exclamations',
  'quotations',
  'lines',
  'digits',
  'men',
  'women',
  'I and you',
  'question and answer',
];

/** Numbers that a reader sees at a glance. */
export function statistics(text) {
  const words = text.split(/\s+/).filter(Boolean);
  const count = (pattern) => (text.match(pattern) ?? []).length;
  return [
    Math.log(text.length),
    words.length / 50,
    text.length / words.length,
    count(/\?/g),
    count(/!/g),
    count(/"/g) / 2,
    count(/\n/g),
    count(/\d/g),
    count(/\b(he|him|his|man|guy|boy|husband)\b/gi),
    count(/\b(she|her|woman|girl|wife|lady)\b/gi),
    count(/\b(I|you|we|my|your)\b/g),
    count(/^\s*[QA]:/gm),
  ];
}

/** Columns with mean 0 and variance 1/d, so that a reward of weights N(0, 1) has variance 1. */
function standardise(rows) {
  const d = rows[0].length;
  const out = new Float32Array(rows.length * d);
  for (let j = 0; j < d; j++) {
    const column = rows.map((row) => row[j]);
    const middle = mean(column);
    const sd = Math.sqrt(mean(column.map((x) => (x - middle) ** 2))) || 1;
    for (let i = 0; i < rows.length; i++) out[i * d + j] = (rows[i][j] - middle) / sd / Math.sqrt(d);
  }
  return { features: out, d };
}

/** Items [{ id, text }]: a language model's final hidden rows, their mean, beside simple statistics of the text. */
export async function textItems(items, model) {
  const temporary = await mkdtemp(join(tmpdir(), 'items-'));
  const [texts, file] = [join(temporary, 'texts.jsonl'), join(temporary, 'items.safetensors')];
  let hidden;
  try {
    await writeFile(texts, items.map(({ id, text }) => `${JSON.stringify({ id, text })}\n`).join(''));
    await embed({ model, data: [texts], output: file, pooling: 'mean', threads: 2 });
    hidden = await readItems(file);
  } finally {
    await rm(temporary, { recursive: true });
  }
  const rows = items.map(({ text }, i) => [
    ...hidden.features.subarray(i * hidden.d, (i + 1) * hidden.d),
    ...statistics(text),
  ]);
  const { features, d } = standardise(rows);
  return itemTable(
    'texts',
    items.map(({ id }) => `${id}`),
    features,
    d,
  );
}

/** Typed votes of [annotator, better item, worse item] rows. */
export function votesFrom(annotators, triples) {
  const m = triples.length;
  return {
    annotators,
    annotator: Int32Array.from(triples, (t) => t[0]),
    offsets: Int32Array.from({ length: m + 1 }, (_, v) => 2 * v),
    items: Int32Array.from(triples.flatMap((t) => [t[1], t[2]])),
    stages: new Int32Array(m).fill(1),
    weights: new Float64Array(m).fill(1),
    margins: new Float64Array(m),
    rows: Int32Array.from({ length: m }, (_, v) => v),
    m,
  };
}

export const label = ({ model, rank }) => (model === 'global' || model === 'local' ? model : `${model} ${rank}`);

export async function train(table, votes, { model, rank }, { l2, residual = l2 }, seed) {
  const made = featureModel(model, table.d, rank);
  const { parameters } = await made.fit(table, votes, { model, rank, l2, residual, seed });
  return new Population(made, rank, l2, votes.annotators, parameters);
}

/** Accuracy of every voter in a list of [annotator, better, worse]; NaN for one who has none. */
export function accuracies(scorer, triples, count, who = (u) => u) {
  const right = new Float64Array(count);
  const total = new Float64Array(count);
  for (const [u, better, worse] of triples) {
    right[u] += scorer(who(u), better) > scorer(who(u), worse) ? 1 : 0;
    total[u]++;
  }
  return [...right].map((r, u) => r / total[u]);
}

/** Mean log-likelihood, and the calibration of the probabilities: expected error over ten bins, Brier score. */
export function calibration(scorer, triples) {
  const bins = Array.from({ length: 10 }, () => [0, 0]);
  let [likelihood, brier] = [0, 0];
  for (const [u, better, worse] of triples) {
    const p = 1 / (1 + Math.exp(scorer(u, worse) - scorer(u, better)));
    const confidence = Math.max(p, 1 - p);
    const bin = bins[Math.min(9, Math.floor(20 * (confidence - 0.5)))];
    bin[0] += confidence;
    bin[1] += p > 0.5 ? 1 : 0;
    brier += (1 - p) ** 2;
    likelihood += Math.log(p);
  }
  const n = triples.length;
  const ece = bins.reduce((sum, [sure, right]) => sum + Math.abs(sure - right), 0) / n;
  return { likelihood: likelihood / n, ece, brier: brier / n };
}

/** Each model's strength of the priors: the likeliest on a draw that is not used again. */
export async function tuned(table, models, { train: votes, held }, strengths) {
  const out = [];
  for (const setting of models) {
    let best = null;
    for (const strength of strengths(setting)) {
      const { likelihood } = calibration((await train(table, votes, setting, strength, 0)).scorer(table), held);
      if (!best || likelihood > best.likelihood) best = { ...strength, likelihood };
    }
    out.push(best);
  }
  return out;
}

/** Priors to choose from: on everyone's own numbers, and for mixed (of the middle ones) on the remainder too. */
export const strengths =
  (l2s) =>
  ({ model }) => {
    if (model !== 'mixed') return l2s.map((l2) => ({ l2 }));
    return l2s.slice(1, 3).flatMap((l2) => l2s.slice(1).map((residual) => ({ l2, residual })));
  };

/** Without the voters who have no pair. */
export const there = (values) => values.filter((value) => !Number.isNaN(value));

export const show = (value, digits = 4) => value.toFixed(digits);
export const interval = ([low, high]) => `[${show(low)}, ${show(high)}]`;

/** Differences voter by voter between two models' accuracies, with the interval over voters and draws. */
export function difference(one, other) {
  const values = there(one.flatMap((list, draw) => list.map((a, u) => a - other[draw][u])));
  return `${show(mean(values))} ${interval(bootstrap(values, mean, 1000))}`;
}
