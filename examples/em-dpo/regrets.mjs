// One policy for all tastes: what every aggregator costs each type, on the runs of run.mjs.
//   node examples/em-dpo/regrets.mjs --runs FOLDER [--seeds 0,1,2,3,4] [--samples 8]
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { aggregatePolicies, aggregateTrained, loadConfig, train } from '../../dist/index.js';

const { values: given } = parseArgs({
  options: {
    runs: { type: 'string' },
    seeds: { type: 'string', default: '0,1,2,3,4' },
    samples: { type: 'string', default: '8' },
  },
});
if (!given.runs) throw new Error('give --runs, the folder that run.mjs wrote');
const sampling = { samples: Number(given.samples), maxNewTokens: 100, quiet: true };

/** DPO for the worst of the tastes, which it is told. */
async function groupRobust(dir) {
  const output = join(dir, 'group-robust');
  if (existsSync(join(output, 'adapter'))) return join(output, 'adapter');
  // As plain DPO was trained, with the tastes' names in the rows' `group`.
  const config = loadConfig(join(dir, 'dpo', 'config.yaml'));
  const loss = { ...config.loss, group_robust: { step_size: 0.05, adjustment: 0 } };
  await train({ ...config, loss, output }, { quiet: true });
  return join(output, 'adapter');
}

const found = new Map();
for (const seed of given.seeds.split(',')) {
  const dir = join(given.runs, `seed-${seed}`);
  const compare = [
    { name: 'plain DPO', dir: join(dir, 'dpo', 'adapter') },
    { name: 'group-robust DPO', dir: await groupRobust(dir) },
  ];
  const run = join(dir, 'em');
  const all = { run, compare, ...sampling, rule: 'min-max-regret' };
  const made = await aggregateTrained({ ...all, output: join(dir, 'trained'), rounds: 20, steps: 10 });
  await aggregatePolicies({ ...all, output: join(dir, 'mixture') });
  console.log(
    `seed ${seed}: shares ${made.types.join(', ')}; ${made.sampling.prompts} prompts × ${made.sampling.per_prompt}`,
  );
  for (const row of [...made.rules.map((rule) => ({ name: rule.rule, ...rule })), ...made.others]) {
    const [low, high] = row.worst_regret_interval;
    console.log(
      `  ${row.name.padEnd(18)}${row.regrets.map((r) => r.toFixed(2).padStart(7)).join('')}   worst ${row.worst_regret.toFixed(2)} ` +
        `[${low.toFixed(2)}, ${high.toFixed(2)}]${row.weights ? `   weights ${row.weights.map((w) => w.toFixed(2)).join(' ')}` : ''}`,
    );
    if (!found.has(row.name)) found.set(row.name, []);
    found.get(row.name).push(row);
  }
}

console.log('\nmean over seeds          regret of each type     worst');
const mean = (numbers) => numbers.reduce((a, b) => a + b, 0) / numbers.length;
const lines = [...found].map(([name, rows]) => ({
  name,
  regrets: rows[0].regrets.map((_, k) => mean(rows.map((row) => row.regrets[k]))),
  worst: mean(rows.map((row) => row.worst_regret)),
}));
for (const { name, regrets, worst } of lines.sort((a, b) => a.worst - b.worst))
  console.log(
    `${name.padEnd(20)}${regrets.map((r) => r.toFixed(2).padStart(8)).join('')}  ${worst.toFixed(2).padStart(8)}`,
  );
