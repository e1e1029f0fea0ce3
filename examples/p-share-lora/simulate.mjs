// Voters whose rewards share a low-rank subspace: node examples/p-share-lora/simulate.mjs [compare|slope|edges|questions] [seeds]
import { featureModel, nextQuestions, Population } from 'pluralign';
import { votesFrom } from './people.mjs';
import {
  bootstrap,
  chosen,
  errors,
  fit,
  generator,
  leftBy,
  mean,
  oracle,
  plant,
  subspaceDistance,
} from './planted.mjs';

const [what = 'compare', count] = process.argv.slice(2);
const show = (value, digits = 3) => value.toFixed(digits);
const interval = ([low, high]) => `[${show(low)}, ${show(high)}]`;
const l2s = [1, 4, 16, 64];

/** Shared against one for each, one for all and the true subspace; the baselines with the best l2 on held-out votes. */
async function compare(seeds) {
  const setting = { N: 200, d: 64, k: 4, pairs: 40 };
  console.log(
    `N = ${setting.N} voters, d = ${setting.d}, k = ${setting.k}, ${setting.pairs} pairs a voter, ${seeds} seeds`,
  );
  const runs = [];
  for (let seed = 0; seed < seeds; seed++) {
    const world = plant({ ...setting, seed });
    const shared = await fit(world, 'low-rank', { rank: setting.k });
    const run = { shared: mean(errors(world, shared.weights)), distance: subspaceDistance(world, shared.factor) };
    for (const model of ['local', 'global']) {
      const best = await chosen(
        world,
        l2s.map((l2) => ({ model, l2 })),
      );
      run[model] = mean(errors(world, best.weights));
    }
    runs.push({ ...run, oracle: mean(errors(world, oracle(world).weights)) });
  }
  console.log('model    relative squared error of w_u, 95 % interval over seeds');
  for (const name of ['shared', 'local', 'global', 'oracle']) {
    const values = runs.map((run) => run[name]);
    console.log(`${name.padEnd(8)} ${show(mean(values))} ${interval(bootstrap(values, mean))}`);
  }
  const ratio = (list) =>
    mean(list.map((r) => r.shared)) / Math.min(mean(list.map((r) => r.local)), mean(list.map((r) => r.global)));
  console.log(
    `subspace distance ${show(mean(runs.map((run) => run.distance)))} of at most ${show(Math.sqrt(setting.k))}`,
  );
  console.log(`shared / better of local and global: ${show(ratio(runs))} ${interval(bootstrap(runs, ratio))}`);
}

/** Slope of log subspace distance on log N; theory: −1/2. */
async function slope(seeds) {
  const sizes = [100, 200, 400, 800];
  const runs = [];
  for (let seed = 0; seed < seeds; seed++) {
    const distances = [];
    for (const N of sizes) {
      const world = plant({ N, d: 32, k: 2, pairs: 40, seed });
      distances.push(Math.log(subspaceDistance(world, (await fit(world, 'low-rank', { rank: 2 })).factor)));
    }
    runs.push(distances);
  }
  const x = sizes.map((N) => Math.log(N));
  const line = (list) => {
    const y = x.map((_, i) => mean(list.map((run) => run[i])));
    return (
      x.reduce((sum, xi, i) => sum + (xi - mean(x)) * (y[i] - mean(y)), 0) /
      x.reduce((sum, xi) => sum + (xi - mean(x)) ** 2, 0)
    );
  };
  console.log(`d = 32, k = 2, 40 pairs a voter, ${seeds} seeds`);
  for (const [i, N] of sizes.entries())
    console.log(`N ${String(N).padEnd(4)} distance ${show(Math.exp(mean(runs.map((r) => r[i]))))}`);
  console.log(`slope ${show(line(runs))} ${interval(bootstrap(runs, line))}, theory -0.5`);
}

/**
 * Where sharing has nothing to give: everything is chosen on held-out votes, the rank from 1, 2, 4. `low-rank` has no
 * more than its rank; `mixed` may give everyone a remainder of their own as well.
 */
async function edges(seeds) {
  const ranks = [1, 2, 4];
  const lowRank = ranks.flatMap((rank) => [1, 16, 256].map((l2) => ({ model: 'low-rank', rank, l2 })));
  const mixed = ranks.flatMap((rank) =>
    [16, 64].flatMap((residual) => [1, 16, 256].map((l2) => ({ model: 'mixed', rank, l2, residual }))),
  );
  for (const [title, planted, baseline] of [
    ['identical voters', { voters: 'identical' }, 'global'],
    ['voters who share nothing (k = d)', { k: 64 }, 'local'],
  ]) {
    const runs = [];
    for (let seed = 0; seed < seeds; seed++) {
      const world = plant({ seed, ...planted });
      const base = await chosen(
        world,
        l2s.map((l2) => ({ model: baseline, l2 })),
      );
      const low = await chosen(world, lowRank);
      const rest = await chosen(world, mixed);
      const both = rest.value > low.value ? rest : low;
      const run = Object.entries({ base, low, both }).map(([name, { weights }]) => [
        name,
        mean(errors(world, weights)),
      ]);
      runs.push({ ...Object.fromEntries(run), chose: both.model, left: leftBy(world, Math.max(...ranks)) });
    }
    const share = runs.filter((run) => run.chose === 'mixed').length;
    console.log(`${title}: ${baseline} ${show(mean(runs.map((run) => run.base)))}`);
    console.log(`  left by the best ${Math.max(...ranks)} directions: ${show(mean(runs.map((run) => run.left)))}`);
    for (const [name, text] of [
      ['low', 'low-rank alone'],
      ['both', `low-rank or mixed (mixed in ${share} of ${seeds})`],
    ]) {
      const differences = runs.map((run) => run[name] - run.base);
      console.log(
        `  ${text}: ${show(mean(runs.map((run) => run[name])))}, difference ${show(mean(differences))} ${interval(bootstrap(differences, mean))}`,
      );
    }
  }
}

/** New voters who are asked the question that is expected to tell most, or any: the error of w_u by answers. */
async function questions(seeds) {
  const counts = [2, 5, 10, 20];
  const arms = { chosen: [], random: [] };
  for (let seed = 0; seed < seeds; seed++) {
    const world = plant({ N: 200, d: 64, k: 4, pairs: 40, seed });
    const { table, V, d, k } = world;
    const made = featureModel('low-rank', d, k);
    const { parameters } = await made.fit(table, world.votes, { model: 'low-rank', rank: k, l2: 1, seed: 0 });
    const people = new Population(made, k, 1, world.votes.annotators, parameters).withPosteriors(table, world.votes);
    const random = generator(seed + 77);
    for (let voter = 0; voter < 40; voter++) {
      const w = new Float64Array(d);
      for (let c = 0; c < k; c++) {
        const z = (2 / Math.sqrt(k)) * random.normal();
        for (let j = 0; j < d; j++) w[j] += V[j * k + c] * z;
      }
      const pool = Array.from({ length: 300 }, () => [random.below(table.n), random.below(table.n)]);
      const answer = ([a, b]) => {
        let x = 0;
        for (let j = 0; j < d; j++) x += w[j] * (table.features[a * d + j] - table.features[b * d + j]);
        return random.uniform() < 1 / (1 + Math.exp(-x)) ? [0, a, b] : [0, b, a];
      };
      for (const arm of Object.keys(arms)) {
        const left = new Map(pool.map((pair) => [`${table.ids[pair[0]]} ${table.ids[pair[1]]}`, pair]));
        const answers = [];
        const errorsBy = [];
        let known = people;
        while (answers.length < counts.at(-1)) {
          const pairs = [...left.values()];
          const asked =
            arm === 'random'
              ? pairs[0]
              : left.get(nextQuestions(known, table, known.index.get('new') ?? -1, 1, pairs)[0].items.join(' '));
          left.delete(`${table.ids[asked[0]]} ${table.ids[asked[1]]}`);
          answers.push(answer(asked));
          const votes = votesFrom(['new'], answers);
          const which = Int32Array.from(votes.rows);
          const { own, factor } = people.fitOwn(table, votes, which);
          known = people.with('new', own, factor);
          if (!counts.includes(answers.length)) continue;
          const found = known.weights(known.index.get('new'));
          errorsBy.push(found.reduce((sum, x, j) => sum + (x - w[j]) ** 2, 0) / 4);
        }
        arms[arm].push(errorsBy);
      }
    }
  }
  console.log(
    `${40 * seeds} new voters, d = 64, k = 4: error of w_u by answers to questions chosen from 300 pairs, or any`,
  );
  for (const [i, count] of counts.entries()) {
    const [chose, any] = Object.values(arms).map((list) => list.map((by) => by[i]));
    const differences = chose.map((value, v) => value - any[v]);
    console.log(
      `${String(count).padStart(2)} answers  chosen ${show(mean(chose))}  any ${show(mean(any))}  difference ${show(mean(differences))} ${interval(bootstrap(differences, mean))}`,
    );
  }
}

const commands = { questions: [questions, 2], compare: [compare, 10], slope: [slope, 5], edges: [edges, 5] };
const [run, seeds] = commands[what] ?? [];
if (!run) {
  console.error(`expected one of ${Object.keys(commands).join(', ')}, found ${what}`);
  process.exit(2);
}
await run(Number(count ?? seeds));
