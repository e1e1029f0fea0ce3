// Voters whose rewards share a low-rank subspace: node examples/p-share-lora/simulate.mjs [compare|slope|edges] [seeds]
import { bootstrap, chosen, errors, fit, mean, oracle, plant, subspaceDistance } from './planted.mjs';

const [what = 'compare', count] = process.argv.slice(2);
const show = (value, digits = 3) => value.toFixed(digits);
const interval = ([low, high]) => `[${show(low)}, ${show(high)}]`;
const l2s = [1, 4, 16, 64];

/** Shared against one for each, one for all and the true subspace; the baselines with the best l2 on held-out votes. */
function compare(seeds) {
  const setting = { N: 200, d: 64, k: 4, pairs: 40 };
  console.log(
    `N = ${setting.N} voters, d = ${setting.d}, k = ${setting.k}, ${setting.pairs} pairs a voter, ${seeds} seeds`,
  );
  const runs = [];
  for (let seed = 0; seed < seeds; seed++) {
    const world = plant({ ...setting, seed });
    const shared = fit(world, 'low-rank', { rank: setting.k });
    runs.push({
      shared: mean(errors(world, shared.weights)),
      local: mean(
        errors(
          world,
          chosen(
            world,
            'local',
            l2s.map((l2) => ({ l2 })),
          ).weights,
        ),
      ),
      global: mean(
        errors(
          world,
          chosen(
            world,
            'global',
            l2s.map((l2) => ({ l2 })),
          ).weights,
        ),
      ),
      oracle: mean(errors(world, oracle(world).weights)),
      distance: subspaceDistance(world, shared.factor),
    });
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
function slope(seeds) {
  const sizes = [100, 200, 400, 800];
  const runs = [];
  for (let seed = 0; seed < seeds; seed++) {
    runs.push(
      sizes.map((N) => {
        const world = plant({ N, d: 32, k: 2, pairs: 40, seed });
        return Math.log(subspaceDistance(world, fit(world, 'low-rank', { rank: 2 }).factor));
      }),
    );
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

/** Where sharing has nothing to give: rank chosen on held-out votes, with l2 = 1 for all, or with l2 chosen too. */
function edges(seeds) {
  for (const [title, planted, baseline] of [
    ['identical voters', { voters: 'identical' }, 'global'],
    ['voters who share nothing (k = d)', { k: 64 }, 'local'],
  ]) {
    for (const [how, shared, other] of [
      ['l2 = 1', [1], [1]],
      ['l2 chosen', [1, 16, 256], l2s],
    ]) {
      const pairs = [];
      for (let seed = 0; seed < seeds; seed++) {
        const world = plant({ seed, ...planted });
        const settings = [1, 2, 4].flatMap((rank) => shared.map((l2) => ({ rank, l2 })));
        const own = chosen(world, 'low-rank', settings);
        const base = chosen(
          world,
          baseline,
          other.map((l2) => ({ l2 })),
        );
        pairs.push([own, base].map(({ weights }) => mean(errors(world, weights))));
      }
      const [a, b] = [0, 1].map((i) => show(mean(pairs.map((p) => p[i]))));
      const differences = pairs.map(([one, two]) => one - two);
      const text = `difference ${show(mean(differences))} ${interval(bootstrap(differences, mean))}`;
      console.log(`${title}, ${how}: shared ${a}, ${baseline} ${b}, ${text}`);
    }
  }
}

const commands = { compare: [compare, 10], slope: [slope, 5], edges: [edges, 5] };
const [run, seeds] = commands[what] ?? [];
if (!run) {
  console.error(`expected one of ${Object.keys(commands).join(', ')}, found ${what}`);
  process.exit(2);
}
run(Number(count ?? seeds));
