import { spawn, spawnSync } from 'node:child_process';
import { existsSync, readdirSync, statSync } from 'node:fs';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it, vi } from 'vitest';
import { benchCommand } from '../lib/cli/bench.js';
import { demoCommand } from '../lib/cli/demo.js';
import { diagnose } from '../lib/cli/diagnosis.js';
import { evalCommand } from '../lib/cli/eval.js';
import { formatNumber, formatTable, printable } from '../lib/cli/format.js';
import { generateCommand } from '../lib/cli/generate.js';
import { type CommandFactory, commands, run } from '../lib/cli/program.js';
import { scoreCommand } from '../lib/cli/score.js';
import { parseAdapter, parseWeights } from '../lib/cli/shared.js';
import { trainCommand } from '../lib/cli/train.js';
import { PluralignError } from '../lib/native/errors.js';
import { syntheticRun, writeFiles } from './synthetic-run.js';

const root = fileURLToPath(new URL('..', import.meta.url));
let stdout = '';
let stderr = '';

beforeEach(() => {
  stdout = stderr = '';
  vi.spyOn(process.stdout, 'write').mockImplementation((text) => {
    stdout += text;
    return true;
  });
  vi.spyOn(process.stderr, 'write').mockImplementation((text) => {
    stderr += text;
    return true;
  });
});
afterEach(() => {
  vi.restoreAllMocks();
  vi.unstubAllEnvs();
});

/** Runs one command whose implementation records what it is called with. */
async function call(make: (api: never) => CommandFactory, argv: string[], result: object | Error = {}) {
  const calls: unknown[][] = [];
  const implementation = async (...args: unknown[]) => {
    calls.push(args);
    if (result instanceof Error) throw result;
    return result;
  };
  const api = new Proxy({}, { get: (_, name) => (name === 'then' ? undefined : implementation) });
  const status = await run(argv, [make(api as never)]);
  return { status, calls, options: calls[0]?.at(-1) as Record<string, unknown> | undefined };
}

const train = (api: never) => () => trainCommand(async () => api);
const score = (api: never) => () => scoreCommand(async () => api);
const evaluate = (api: never) => () => evalCommand(async () => api);
const generate = (api: never) => () => generateCommand(async () => api);
const bench = (api: never) => () => benchCommand(async () => api);
const demo = (api: never) => () => demoCommand(async () => api);

describe('options', () => {
  const options = new Map(
    commands.map((make) => {
      const command = make();
      return [command.name(), new Set(command.options.map(({ long }) => long!))] as const;
    }),
  );

  it('every command says what it found as JSON, and those that run a model say how', () => {
    const runs = ['train', 'score', 'eval', 'generate', 'embed', 'adapt', 'assign', 'aggregate', 'bench', 'demo'];
    for (const [name, own] of options) {
      expect(own, name).toContain('--json');
      for (const option of ['--dtype', '--device', '--threads'])
        if (runs.includes(name)) expect(own, name).toContain(option);
    }
  });

  it('what takes a model and adapters takes a run too', () => {
    for (const [name, own] of options)
      if (own.has('--model') && own.has('--adapter')) expect(own, name).toContain('--run');
  });
});

describe('usage', () => {
  it.each([
    [['--help'], 0],
    [['--version'], 0],
    [['report', '--help'], 0],
    [[], 2],
    [['no-such-command'], 2],
    [['doctor', '--no-such-option'], 2],
    [['doctor', 'too', 'many'], 2],
    [['report'], 2],
  ])('%j ends with %i', async (argv, status) => {
    expect(await run(argv as string[])).toBe(status);
    expect(status === 0 ? stderr : stdout).toBe('');
    if (status !== 0) expect(stderr).toMatch(/error: |Usage: /);
  });

  it('the help says what runs where nothing is given', async () => {
    for (const [command, usual] of [
      ['adapt', "the run's own"],
      ['train', "the configuration's"],
      ['bench', 'auto'],
    ]) {
      stdout = '';
      await run([command, '--help']);
      const text = stdout.replace(/\s+/g, ' ');
      for (const option of ['dtype', 'device', 'threads'])
        expect(text).toMatch(new RegExp(`--${option} <[^(]*\\(default: ${usual}[,)]`));
    }
  });

  it('prints the version of the package', async () => {
    await run(['--version']);
    const { version } = JSON.parse(await readFile(join(root, 'package.json'), 'utf8'));
    expect(stdout).toBe(`${version}\n`);
  });

  it.each([
    [score, ['score', '--data', 'x'], /--model DIR or --run RUN, found neither/],
    [score, ['score', '--data', 'x', '--model', 'm', '--run', 'r'], /found both/],
    [score, ['score', '--model', 'm'], /required option '--data/],
    [
      score,
      ['score', '--model', 'm', '--data', 'x', '--adapter', 'a/x', '--adapter', 'b/x'],
      /two adapters are named 'x'/i,
    ],
    [score, ['score', '--model', 'm', '--data', 'x', '--adapter', 'base=x'], /'base' names the model/],
    [score, ['score', '--model', 'm', '--data', 'x', '--threads', '0'], /whole number of at least 1/],
    [score, ['score', '--model', 'm', '--data', 'x', '--dtype', 'int8'], /Allowed choices are auto, bf16, float32/],
    [score, ['score', '--run', 'r', '--data', 'x', '--voters', 'v.csv'], /say who counts in --alpha/],
    [score, ['score', '--run', 'r', '--data', 'x', '--alpha', '0', '--equal-groups'], /needs --voters/],
    [evaluate, ['eval', '--model', 'm', '--data', 'x', '--by', 'weather'], /Allowed choices are annotator/],
    [evaluate, ['eval', '--run', 'r', '--data', 'x', '--compare', 'o', '--again', 'r1'], /Expected RUN=OTHER/],
    [evaluate, ['eval', '--run', 'r', '--data', 'x', '--again', 'r1=o1'], /--again needs --compare/],
    [generate, ['generate', '--model', 'm'], /required option '--prompt/],
    [generate, ['generate', '--model', 'm', '--prompt', 'x', '--top-p', '1.5'], /from 0 to 1/],
    [
      generate,
      ['generate', '--model', 'm', '--prompt', 'x', '--adapter', 'a=d', '--weights', 'b=1'],
      /names 'b'.*are a$/m,
    ],
    [train, ['train'], /missing required argument/],
    [train, ['train', 'c.yaml', '--set', 'novalue'], /Expected key\.path=value/],
    [bench, ['bench', 'tea'], /Allowed choices are ops, train/],
  ])('refuses what it cannot take (%#)', async (make, argv, message) => {
    const { status, calls } = await call(make, [...argv, '--json']);
    expect(stderr).toMatch(message);
    expect(status).toBe(2);
    expect(calls).toHaveLength(0);
    expect(stdout).toBe('');
  });
});

describe('options reach the implementation', () => {
  it('train', async () => {
    const result = { method: 'dpo', steps: 3, train: { loss: 0.5 }, paths: { run: 'r', adapter: 'r/adapter' } };
    const argv = ['train', 'c.yaml', '--set', 'loss.beta=0.2', '--set', 'a=b=c', '--threads', '2', '--dtype', 'bf16'];
    const { status, calls } = await call(train, [...argv, '--output', 'r', '--resume', '--json'], result);
    expect(status).toBe(0);
    expect(calls[0][0]).toBe('c.yaml');
    expect(calls[0][1]).toMatchObject({
      set: ['loss.beta=0.2', 'a=b=c', 'train.dtype=bf16', 'train.threads=2'],
      output: 'r',
      resume: true,
    });
    expect(JSON.parse(stdout)).toEqual(result);
  });

  it('score', async () => {
    const result = { policies: ['base', 'p'], rows: [{ logps: { base: new Float64Array([-1.5, -2]), p: [-1, -3] } }] };
    const argv = ['score', '--model', 'm', '--adapter', 'x/p/', '--adapter', 'q=lr=1/z', '--data', 'a', '--data', 'b'];
    const { options } = await call(score, [...argv, '--json'], result);
    expect(options).toMatchObject({
      model: 'm',
      adapters: [
        { name: 'p', dir: 'x/p/' },
        { name: 'q', dir: 'lr=1/z' },
      ],
      data: ['a', 'b'],
      dtype: 'auto',
      device: 'auto',
      threads: 'auto',
    });
    expect(JSON.parse(stdout)).toEqual({
      policies: ['base', 'p'],
      rows: [{ logps: { base: [-1.5, -2], p: [-1, -3] } }],
    });
  });

  it('score for people', async () => {
    await call(score, ['score', '--run', 'r', '--data', 'a'], {
      policies: ['b'],
      rows: [{ logps: { b: [-1.23456, -2] } }],
    });
    expect(stdout).toBe('row  policy   kind       0   1\n0         b  logps  -1.235  -2\n');
  });

  it('eval', async () => {
    const result = {
      overall: { rows: 9, accuracy: 0.75 },
      annotators: { 'u1\u001b[2J': { rows: 4, accuracy: 1 }, u2: { rows: 5, accuracy: 0.5 } },
    };
    const { options } = await call(evaluate, ['eval', '--run', 'r', '--data', 'd', '--by', 'annotator'], result);
    expect(options).toMatchObject({ run: 'r', model: undefined, by: 'annotator', data: ['d'] });
    expect(stdout.split('\n')[0]).toBe('rows 9  accuracy 0.75');
    expect(stdout.indexOf('u2')).toBeLessThan(stdout.indexOf('u1'));
    expect(stdout).toContain('u1\\u001b[2J');
  });

  it('eval beside another', async () => {
    const accuracy = { mean: 0.0125, low: -0.01, high: 0.03 };
    const comparison = { with: 'o', seeds: 2, voters: 7, accuracy, log_likelihood: null };
    const argv = ['eval', '--run', 'r', '--data', 'd', '--compare', 'o', '--again', 'r1=o1', '--again', 'r2=o2'];
    const { options } = await call(evaluate, argv, { overall: { rows: 9 }, comparison });
    const again = [
      { run: 'r1', other: 'o1' },
      { run: 'r2', other: 'o2' },
    ];
    expect(options).toMatchObject({ compare: 'o', again });
    expect(stdout).toContain(
      'beside o, mean over 7 voters of 2 seeds, 95 % bootstrap\naccuracy 0.0125 [-0.01, 0.03]\n',
    );
  });

  it('generate', async () => {
    const result = { prompt: 'x', samples: [{ policy: 'a', seed: 3, text: 'one\ntwo', tokens: 2 }] };
    const argv = ['generate', '--model', 'm', '--adapter', 'a=d', '--prompt', 'x', '--seed', '3', '--temperature', '0'];
    const { options } = await call(generate, [...argv, '--top-k', '5', '--weights', 'a=0.5'], result);
    expect(options).toMatchObject({
      prompt: 'x',
      seed: 3,
      samples: 1,
      temperature: 0,
      topK: 5,
      topP: 1,
      weights: { a: 0.5 },
    });
    expect(stdout).toBe('one\ntwo\n');
  });

  it('bench and demo', async () => {
    const timed = { subject: 'ops', results: [{ name: 'gemm', gflops: 31.25 }] };
    const { calls } = await call(bench, ['bench', 'ops', '--threads', '1'], timed);
    expect(calls[0]).toMatchObject(['ops', { threads: 1, device: 'auto' }]);
    expect(stdout).toBe('name  gflops\ngemm   31.25\n');
    stdout = '';
    const result = { table: [], samples: [], seconds: 1, paths: { run: 'r', report: 'r/report.html' } };
    expect((await call(demo, ['demo', '--json'], result)).status).toBe(0);
    expect(JSON.parse(stdout)).toEqual(result);
  });
});

describe('errors', () => {
  it.each([
    ['BAD_DATA', 2],
    ['NON_FINITE', 1],
    ['IO', 1],
  ])('%s ends with %i and leaves stdout alone', async (code, status) => {
    const error = new PluralignError(code, 'rows.jsonl:3: \u001b]0;x\u0007 is bad');
    expect((await call(train, ['train', 'c.yaml', '--json'], error)).status).toBe(status);
    expect(stdout).toBe('');
    expect(stderr).toBe('error: rows.jsonl:3: \\u001b]0;x\\u0007 is bad\n');
  });

  it('that nobody expected say how to see more, and show it when asked', async () => {
    expect((await call(train, ['train', 'c.yaml'], new TypeError('x is not a function'))).status).toBe(1);
    expect(stderr).toBe('error: x is not a function (unexpected; PLURALIGN_DEBUG=1 shows where)\n');
    stderr = '';
    vi.stubEnv('PLURALIGN_DEBUG', '1');
    await call(train, ['train', 'c.yaml'], new PluralignError('IO', 'outer', { cause: new Error('inner') }));
    expect(stderr).toMatch(/^error: PluralignError: outer\n {4}at [\s\S]*caused by: Error: inner\n {4}at /);
  });

  it('what a library logs does not get between stdout and its one object', async () => {
    const demo = async () => {
      console.log('hello');
      return { table: [], samples: [], seconds: 0, paths: {} };
    };
    const logged = vi.spyOn(console, 'error').mockImplementation(() => {});
    expect(await run(['demo', '--json'], [() => demoCommand(async () => ({ demo }) as never)])).toBe(0);
    expect(logged).toHaveBeenCalledWith('hello');
    expect(Object.keys(JSON.parse(stdout))).toContain('table');
  });

  it('a signal stops a command and sets its status', async () => {
    const before = process.listenerCount('SIGTERM');
    const stopped = {
      demo: ({ stop }: { stop: { signal: AbortSignal } }) =>
        new Promise((_, reject) => {
          stop.signal.addEventListener('abort', () => reject(new PluralignError('ABORTED', 'saved at step 3')));
          process.emit('SIGTERM', 'SIGTERM');
        }),
    };
    expect(await run(['demo'], [() => demoCommand(async () => stopped as never)])).toBe(143);
    expect(stderr).toContain('stopped: saved at step 3');
    expect(process.listenerCount('SIGTERM')).toBe(before);
  });
});

it('a run over types that was stopped before any was kept has no steps to tell of', async () => {
  const result = { method: 'em-dpo', steps: 0, train: {}, paths: { run: '/r' } };
  expect(
    await run(['train', 'c.yaml'], [() => trainCommand(async () => ({ train: async () => result }) as never)]),
  ).toBe(0);
  expect(stdout).toBe('em-dpo: not finished\n  run  /r\n');
});

describe('parsing', () => {
  it('of adapters', () => {
    expect(parseAdapter('runs/a/adapter')).toEqual({ name: 'adapter', dir: 'runs/a/adapter' });
    expect(parseAdapter('kind=runs/a')).toEqual({ name: 'kind', dir: 'runs/a' });
    expect(parseAdapter('runs/lr=1/b')).toEqual({ name: 'b', dir: 'runs/lr=1/b' });
    for (const bad of ['', '=dir', 'name=', 'base']) expect(() => parseAdapter(bad), bad).toThrow();
  });

  it('of weights', () => {
    expect(parseWeights('a=0.5, b=-1e-1')).toEqual({ a: 0.5, b: -0.1 });
    for (const bad of ['', 'a', 'a=', '=1', 'a=x', 'a=1,a=2', 'a=Infinity', 'a=1,']) {
      expect(() => parseWeights(bad), bad).toThrow();
    }
  });

  it('of what is printed', () => {
    expect(printable('a\u001b[31m\nb\t\u202e')).toBe('a\\u001b[31m\nb\t\\u202e');
    expect([1, 0.123456, 1e-5, null, Number.NaN, 'x\ny'].map(formatNumber)).toEqual([
      '1',
      '0.1235',
      '1.000e-5',
      '-',
      'NaN',
      'x y',
    ]);
    expect(formatTable(['a', 'b'], [['xx', '1']])).toBe('a   b\nxx  1');
  });
});

describe('doctor', () => {
  it('collects why the binary does not load', () => {
    const diagnosis = diagnose(() => {
      throw new PluralignError('NO_BINARY', 'no native addon\n  a: not there\n  b: wrong machine');
    });
    expect(diagnosis).toMatchObject({ status: 1, binary: { loaded: false, path: null }, isa: null });
    expect(diagnosis.errors).toEqual(['no native addon\n  a: not there\n  b: wrong machine']);
  });

  it('says of every instruction set that it is there or why not', () => {
    const isa = diagnose().isa;
    const names = [...(isa?.supported ?? []), ...(isa?.unsupported ?? []).map(({ name }) => name)];
    expect(names.sort()).toEqual(['amx', 'avx2', 'avx512', 'avx512bf16', 'generic', 'reference']);
    for (const { why } of isa?.unsupported ?? []) expect(why).toMatch(/^(this processor or system has no|the system) /);
  });
});

function newest(folder: string): number {
  const entries = readdirSync(folder, { withFileTypes: true, recursive: true }).filter((e) => e.isFile());
  return Math.max(0, ...entries.map((e) => statSync(join(e.parentPath, e.name)).mtimeMs));
}

describe('the program as it is installed', () => {
  const main = join(root, 'dist/cli/main.js');
  let home: string;

  const start = async (args: string[], env: Record<string, string> = {}) => {
    const child = spawn(process.execPath, [main, ...args], { env: { ...process.env, ...env } });
    const out = { stdout: '', stderr: '', status: -1 };
    child.stdout.on('data', (d) => (out.stdout += d));
    child.stderr.on('data', (d) => (out.stderr += d));
    out.status = await new Promise((done) => child.on('close', (code) => done(code ?? -1)));
    return out;
  };

  beforeAll(async () => {
    const stale = ['cli', 'report'].some(
      (part) =>
        !existsSync(join(root, 'dist', part)) || newest(join(root, 'dist', part)) < newest(join(root, 'lib', part)),
    );
    // the status is not looked at: types are another check's business, and tsc writes its files all the same
    if (stale) spawnSync('npm', ['run', 'build:ts'], { cwd: root });
    home = await mkdtemp(join(tmpdir(), 'pluralign-cli-'));
  });
  afterAll(() => rm(home, { recursive: true, force: true }));

  it('doctor --json', async () => {
    const { stdout, stderr, status } = await start(['doctor', '--json']);
    expect(stderr).toBe('');
    expect(status).toBe(0);
    const found = JSON.parse(stdout);
    expect(found).toMatchObject({ binary: { loaded: true }, device: 'cpu', cuda: { available: false }, errors: [] });
    expect(found.binary.candidates).toContain(found.binary.path);
    expect(found.isa.supported).toContain(found.isa.used);
  });

  it('doctor under a forced instruction set, known and unknown', async () => {
    const forced = await start(['doctor'], { PLURALIGN_ISA: 'generic' });
    expect(forced.status).toBe(0);
    expect(forced.stdout).toMatch(/instruction set +generic \(PLURALIGN_ISA=generic\)/);
    expect(forced.stdout).toMatch(/^CUDA +\S/m);
    const unknown = await start(['doctor', '--json'], { PLURALIGN_ISA: 'abacus' });
    expect(unknown.status).toBe(2);
    expect(JSON.parse(unknown.stdout).errors[0]).toContain('PLURALIGN_ISA=abacus');
  });

  it('report', async () => {
    const dir = join(home, 'run');
    await writeFiles(dir, syntheticRun({ steps: 10 }));
    const done = await start(['report', dir, '--json']);
    expect(done).toMatchObject({ status: 0, stderr: '' });
    expect(existsSync(JSON.parse(done.stdout).report)).toBe(true);
    const failed = await start(['report', home, '--json']);
    expect(failed).toMatchObject({ status: 2, stdout: '' });
    expect(failed.stderr).toMatch(/^error: .*metrics\.jsonl: not there/);
  });

  it('ends quietly when its reader goes away', async () => {
    const piped = spawn('sh', ['-c', `'${process.execPath}' '${main}' doctor --json | (exec <&-; sleep 0.3)`]);
    let noise = '';
    piped.stderr.on('data', (d) => (noise += d));
    await new Promise((done) => piped.on('close', done));
    expect(noise).toBe('');
  });
});
