// Runs inside a project that has installed the packed tarball, with nothing of the repository beside it but the fixture
// given as argument. Prints one line of JSON for each check.
import { strict as assert } from 'node:assert';
import { spawnSync } from 'node:child_process';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

const [fixture] = process.argv.slice(2);
const golden = JSON.parse(readFileSync(join(fixture, 'golden.json'), 'utf8'));

async function check(name, body) {
  try {
    await body();
    console.log(JSON.stringify({ name }));
  } catch (error) {
    console.log(JSON.stringify({ name, error: String(error?.stack ?? error) }));
  }
}

function command(...args) {
  const main = join(
    'node_modules/pluralign',
    JSON.parse(readFileSync('node_modules/pluralign/package.json')).bin.pluralign,
  );
  const run = spawnSync(process.execPath, [main, ...args], { encoding: 'utf8' });
  assert.equal(
    run.status,
    0,
    `pluralign ${args.join(' ')} ended with ${run.status ?? run.signal}\n${run.stdout}${run.stderr}`,
  );
  return JSON.parse(run.stdout);
}

const training = (output) => ({
  method: 'dpo',
  model: join(fixture, 'model'),
  data: { train: join(fixture, 'prefs.jsonl') },
  adapter: { init_from: join(fixture, 'adapter') },
  loss: { type: 'sigmoid', beta: golden.beta, reference: 'base' },
  train: {
    steps: golden.steps,
    batch_size: golden.rows.length,
    learning_rate: golden.lr,
    schedule: 'constant',
    warmup: 0,
    max_grad_norm: null,
    shuffle: false,
    dtype: 'float32',
    log_every: 1,
  },
  output,
});

function sameLosses(run) {
  const lines = readFileSync(join(run, 'metrics.jsonl'), 'utf8')
    .trim()
    .split('\n')
    .map((l) => JSON.parse(l));
  const losses = lines.filter((l) => 'loss' in l).map((l) => l.loss);
  assert.equal(losses.length, golden.steps);
  for (const [i, loss] of losses.entries())
    assert.ok(Math.abs(loss - golden.losses[i]) < 1e-5, `step ${i + 1}: loss ${loss}`);
  assert.ok(existsSync(join(run, 'adapter/adapter_model.safetensors')), 'no adapter was written');
}

await check('doctor loads the binary from prebuilds', () => {
  const diagnosis = command('doctor', '--json');
  assert.equal(diagnosis.binary.loaded, true);
  assert.match(diagnosis.binary.path.replaceAll('\\', '/'), /node_modules\/pluralign\/prebuilds\//);
});

await check("import 'pluralign'", async () => {
  const { Model, train, pack, PluralignError } = await import('pluralign');
  for (const f of [Model.load, train, pack, PluralignError]) assert.equal(typeof f, 'function');
});

await check("import 'pluralign/kernels' and run a loss", async () => {
  const { cpu, pairLoss } = await import('pluralign/kernels');
  assert.ok(cpu().supported.includes('generic'));
  const one = (x) => Float64Array.of(x);
  const { loss } = pairLoss(
    {
      chosen: one(-1),
      rejected: one(-2),
      refChosen: one(-1.5),
      refRejected: one(-1.5),
      chosenTokens: one(3),
      rejectedTokens: one(3),
    },
    { type: 'sigmoid', beta: 0.1 },
  );
  assert.ok(Math.abs(loss - Math.log1p(Math.exp(-0.1))) < 1e-12, `loss ${loss}`);
});

await check('train() takes the steps of PyTorch', async () => {
  const { train } = await import('pluralign');
  const summary = await train(training('runs/api'), { quiet: true });
  assert.equal(summary.steps, golden.steps);
  sameLosses('runs/api');
});

await check('pluralign train takes the steps of PyTorch', () => {
  writeFileSync('config.yaml', JSON.stringify(training('runs/cli'))); // JSON is YAML
  const summary = command('train', 'config.yaml', '--json');
  assert.equal(summary.steps, golden.steps);
  sameLosses('runs/cli');
});
