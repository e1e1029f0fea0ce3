// How many votes it takes: node examples/p-share-lora/complexity.mjs [vector|matrix] [seeds] [--figure FILE.svg]
// Errors against voters N, votes each N_p, rank k and dimensions, one at a time about a base; slopes on log axes.
import { writeFileSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { picture } from './picture.mjs';
import { bootstrap, chosen, errors, fit, mean, oracle, plant, subspaceDistance } from './planted.mjs';

const { values, positionals } = parseArgs({ allowPositionals: true, options: { figure: { type: 'string' } } });
const [what = 'vector', count = '5'] = positionals;
const seeds = Number(count);
// Theory, up to logs: (k d / N + k columns) / N_p. The first part is what not knowing V costs, the second the oracle's.
const names = { N: 'voters N', pairs: 'votes each N_p', k: 'rank k', d: 'dimension d', columns: 'columns' };
const theory = {
  excess: { N: -1, pairs: -1, k: 1, d: 1, columns: 0 },
  oracle: { N: 0, pairs: -1, k: 1, d: 0, columns: 1 },
};
const settings = {
  vector: {
    base: { N: 200, pairs: 80, k: 2, d: 32 },
    axes: { N: [50, 100, 200, 400, 800], pairs: [20, 40, 80, 160, 320], k: [1, 2, 4, 8], d: [16, 32, 64, 128] },
  },
  matrix: {
    base: { N: 200, pairs: 80, k: 2, d: 16, columns: 4 },
    axes: { N: [50, 100, 200, 400], pairs: [40, 80, 160, 320], k: [1, 2, 4], d: [8, 16, 32], columns: [1, 2, 4, 8] },
  },
};
const setting = settings[what];
if (!setting) {
  console.error(`expected ${Object.keys(settings).join(' or ')}, found ${what}`);
  process.exit(2);
}

/** Relative squared errors of one world; one for all and one for each with the prior that held-out votes choose. */
async function run(point, seed) {
  const world = plant({ ...point, seed });
  const shared = await fit(world, 'low-rank', { rank: point.k });
  const out = { shared: mean(errors(world, shared.weights)), oracle: mean(errors(world, oracle(world).weights)) };
  for (const model of ['local', 'global']) {
    const best = await chosen(
      world,
      [4, 16, 64].map((l2) => ({ model, l2 })),
    );
    out[model] = mean(errors(world, best.weights));
  }
  return { ...out, excess: out.shared - out.oracle, distance: subspaceDistance(world, shared.factor) };
}

const known = new Map();
async function runs(point) {
  const key = JSON.stringify(point);
  if (!known.has(key)) {
    const list = [];
    for (let seed = 0; seed < seeds; seed++) list.push(await run(point, seed));
    known.set(key, list);
  }
  return known.get(key);
}

/** Least-squares slope of the log of a mean over seeds on the log of the axis. */
function slopeOf(xs, series, of) {
  const [x, y] = [xs.map(Math.log), series.map((list) => Math.log(mean(list.map(of))))];
  const [mx, my] = [mean(x), mean(y)];
  return mean(x.map((xi, i) => (xi - mx) * (y[i] - my))) / mean(x.map((xi) => (xi - mx) ** 2));
}

const show = (value, digits = 3) => value.toFixed(digits);
const { base, axes } = setting;
console.log(
  `${what} rewards, base ${Object.entries(base)
    .map(([name, value]) => `${name} ${value}`)
    .join(', ')}; ${seeds} seeds`,
);
const panels = [];
for (const [axis, xs] of Object.entries(axes)) {
  const series = [];
  for (const x of xs) series.push(await runs({ ...base, [axis]: x }));
  console.log(`\n${names[axis].padEnd(14)} shared  local   global  oracle  shared - oracle  distance of subspaces`);
  for (const [i, x] of xs.entries()) {
    const of = (name) => show(mean(series[i].map((r) => r[name])));
    console.log(
      `${String(x).padEnd(14)} ${['shared', 'local', 'global', 'oracle'].map((name) => of(name).padEnd(7)).join(' ')} ${of('excess').padEnd(16)} ${of('distance')}`,
    );
  }
  const slopes = ['excess', 'oracle'].map((name) => {
    // Seeds are drawn again as wholes: one seed is one world at every point.
    const draws = Array.from({ length: seeds }, (_, s) => s);
    const value = (drawn) =>
      slopeOf(
        xs,
        series.map((list) => drawn.map((s) => list[s])),
        (r) => r[name],
      );
    const [low, high] = bootstrap(draws, value, 500);
    return { name, value: value(draws), low, high, theory: theory[name][axis] };
  });
  for (const { name, value, low, high, theory: expected } of slopes)
    console.log(
      `slope of ${name === 'excess' ? 'shared - oracle' : 'oracle'} ${show(value, 2)} [${show(low, 2)}, ${show(high, 2)}], theory ${expected}`,
    );
  panels.push({ title: names[axis], xs, series, slope: slopes[0] });
}
if (values.figure) writeFileSync(values.figure, picture(panels));
