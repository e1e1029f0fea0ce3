// A run with an adapter for each annotator, from the command line: scored, judged, spoken as, adapted and exported.
import { cpSync, existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { AdapterPopulation } from '../lib/adapters/population.js';
import { safetensorsInfo } from '../lib/model/safetensors.js';
import { program, type Ran, scratch, trained, writeRows } from './support/runs.js';
import { opposed, tiny, votersConfig } from './support/voters.js';

const { path } = scratch();
const rows = opposed(['one', 'two', 'three']);
const file = writeRows(path('rows.jsonl'), rows);
const both = writeRows(path('both.jsonl'), [
  ...rows,
  ...opposed(['stranger']),
  ...opposed(['x']).map(({ annotator: _, ...row }) => row),
]);
const runs: Record<string, Ran> = {};

beforeAll(async () => {
  for (const [name, method, share] of [
    ['reward', 'reward', 'b'],
    ['core', 'reward', 'core'],
    ['local', 'reward', 'none'],
    ['dpo', 'dpo', 'a'],
  ] as const) {
    const adapter = { share, per: 'annotator', r: 3 } as const;
    const config = votersConfig(path(name), { train: file, eval: file }, adapter, { method, train: { steps: 40 } });
    runs[name] = await trained(config);
  }
});

const json = async (...argv: string[]) => {
  const { status, stdout, stderr } = await program(...argv, '--json');
  if (status !== 0) throw new Error(stderr);
  return JSON.parse(stdout);
};
const runOf = (name: string) => ['--run', runs[name].output, '--dtype', 'float32'];

describe('population.safetensors', () => {
  it('is one row for each annotator, the generic adapter first, with its index', () => {
    const at = join(runs.reward.output, 'population.safetensors');
    const { metadata, tensors } = safetensorsInfo(at);
    expect(JSON.parse(metadata.annotators)).toEqual(['one', 'three', 'two']);
    const width = JSON.parse(metadata.layout).reduce(
      (n: number, l: { shape: number[] }) => n + l.shape[0] * l.shape[1],
      0,
    );
    expect(tensors.find((t) => t.name === 'own')!.shape).toEqual([4, width]);
    const population = AdapterPopulation.open(at);
    expect(population.own(1)).not.toEqual(population.own(2));
    expect(() => population.require('tow')).toThrow(/no annotator "tow"; did you mean "two"\? it has 3: "one", /);
    expect(() => population.require(' two')).toThrow(/did you mean "two"/);
  });

  it('is drawn on a plane: of three voters the distances are those of their factors', () => {
    const { kind, map } = JSON.parse(readFileSync(join(runs.reward.output, 'voters.json'), 'utf8'));
    expect([kind, map.of]).toEqual(['adapters', 3]);
    const population = AdapterPopulation.open(join(runs.reward.output, 'population.safetensors'));
    const own = map.voters.map(({ name }: { name: string }) => population.own(population.index.get(name)!));
    const flat = (u: number) => [...(own[u] as Iterable<number>)];
    for (const [a, b] of [
      [0, 1],
      [0, 2],
      [1, 2],
    ]) {
      const apart = Math.hypot(...flat(a).map((x, i) => x - flat(b)[i]));
      const drawn = Math.hypot(map.voters[a].x - map.voters[b].x, map.voters[a].y - map.voters[b].y);
      expect(apart).toBeGreaterThan(0);
      expect(drawn / apart).toBeCloseTo(1, 2);
    }
    expect(map.axes[0].share + map.axes[1].share).toBeCloseTo(1, 6);
    expect(map.axes[0].share).toBeGreaterThan(0.5);
    const page = readFileSync(join(runs.reward.output, 'report.html'), 'utf8');
    for (const title of ['Voters by their factors', 'Reliability', 'Hardest voters']) expect(page).toContain(title);
    expect(page).toMatch(/the longer answer in \d+ % of \d+ choices/);
  });

  it('that is damaged is refused', () => {
    const good = readFileSync(join(runs.reward.output, 'population.safetensors'));
    const bad = (from: string, to: string) => {
      const at = path('damaged.safetensors');
      const bytes = Buffer.from(good);
      const place = bytes.indexOf(from);
      expect(place).toBeGreaterThan(0);
      bytes.write(to, place);
      writeFileSync(at, bytes);
      return () => AdapterPopulation.open(at);
    };
    expect(bad('pluralign-adapters', 'pluralign-others  ')).toThrow(/other metadata/);
    expect(bad('\\"one\\"', '\\"two\\"')).toThrow(/names an annotator twice/);
    expect(bad('\\"three\\",', '          ')).toThrow(/"own" is/);
    expect(bad('[\\"one\\"', '{\\"one\\"')).toThrow(/no JSON under "annotators"/);
    expect(bad('\\"shape\\":[3,', '\\"shape\\":[4,')).toThrow(/"own" is/);
    expect(() => AdapterPopulation.open(path('not-there'))).toThrow(/not-there/);
  });
});

describe.each(['reward', 'core', 'local', 'dpo'])('%s', (name) => {
  it('eval --run judges each row by its annotator’s adapter, as training did', async () => {
    const result = await json('eval', ...runOf(name), '--data', file);
    expect(result.overall.accuracy).toBe(runs[name].summary.eval!.overall.accuracy);
    expect(result.overall.log_likelihood).toBeCloseTo(runs[name].summary.eval!.overall.log_likelihood, 6);
    expect(result.annotators).toEqual(runs[name].summary.eval!.annotators);
    const { overall } = runs[name].summary.eval_generic!;
    expect(result.policies.generic.overall.accuracy).toBe(overall.accuracy);
    expect(result.policies.generic.overall.log_likelihood).toBeCloseTo(overall.log_likelihood, 5);
    expect(result.voters.seen.rows).toBe(18);
  });

  it('eval --compare: how much better than the generic adapter, and than another run', async () => {
    const { comparison, annotators, policies } = await json(
      'eval',
      ...runOf(name),
      '--data',
      file,
      '--compare',
      'generic',
    );
    const names = Object.keys(annotators);
    const gain = names.map((u) => annotators[u].accuracy - policies.generic.annotators[u].accuracy);
    expect(comparison).toMatchObject({ with: 'generic', seeds: 1, voters: 3 });
    expect(comparison.accuracy.mean).toBeCloseTo(gain.reduce((a, b) => a + b, 0) / 3, 12);
    expect(comparison.accuracy.high).toBeCloseTo(Math.max(...gain), 12);
    const other = runs.local.output;
    const with2 = ['--compare', other, '--again', `${runs[name].output}=${runs[name].output}`];
    const both = await json('eval', ...runOf(name), '--data', file, ...with2);
    const theirs = runs.local.summary.eval!.annotators;
    const ahead = names.map((u) => annotators[u].log_likelihood - theirs[u].log_likelihood);
    // Half of it: by the second seed the run is beside itself.
    expect(both.comparison.log_likelihood.mean).toBeCloseTo(ahead.reduce((a, b) => a + b, 0) / 6, 5);
    expect(both.comparison).toMatchObject({ seeds: 2, voters: 6 });
    const lost = await program('eval', ...runOf(name), '--data', file, '--compare', 'nobody');
    expect(lost.status).toBe(2);
    expect(lost.stderr).toMatch(/nobody: expected a run folder, an adapter folder or one of generic, adapter/);
  });

  it('score --run: everyone by their own, strangers and nobody by the generic adapter', async () => {
    const key = name === 'dpo' ? 'logps' : 'rewards';
    const result = await json('score', ...runOf(name), '--data', both);
    expect(result.policies).toEqual([...(name === 'dpo' ? ['base'] : []), 'generic', 'adapter']);
    const [own, generic] = ['adapter', 'generic'].map((policy) =>
      result.rows.map((row: Record<string, Record<string, number[]>>) => row[key][policy]),
    );
    own.slice(18).forEach((values: number[], i: number) => {
      // The generic adapter's files are plain LoRA, with a core multiplied in.
      values.forEach((value, c) => {
        expect(Math.abs(value - generic[18 + i][c])).toBeLessThan(1e-5);
      });
    });
    expect(own.slice(0, 6)).not.toEqual(generic.slice(0, 6));
    expect(own.slice(0, 6)).not.toEqual(own.slice(6, 12));
  });

  it('export writes plain LoRA that scores the same', async () => {
    const out = path(`export-${name}`);
    const argv = ['--annotator', 'one', '--annotator', 'two', '--output', out];
    const { adapters } = await json('export', '--run', runs[name].output, ...argv);
    expect(adapters).toEqual({ one: join(out, 'one'), two: join(out, 'two') });
    const key = name === 'dpo' ? 'logps' : 'rewards';
    const whole = await json('score', ...runOf(name), '--data', file);
    for (const [at, annotator] of [
      [0, 'one'],
      [6, 'two'],
    ] as const) {
      const single = await json(
        'score',
        '--model',
        tiny.model,
        '--adapter',
        adapters[annotator],
        '--data',
        file,
        '--dtype',
        'float32',
      );
      for (let i = at; i < at + 6; i++)
        single.rows[i][key][annotator].forEach((value: number, c: number) => {
          expect(Math.abs(value - whole.rows[i][key].adapter[c])).toBeLessThan(1e-5);
        });
    }
    const failed = await program('export', '--run', runs[name].output, '--annotator', 'nobody', '--output', out);
    expect(failed.status).not.toBe(0);
    expect(failed.stderr).toMatch(/no annotator "nobody"; it has 3: "one", "three", "two"/);
  });

  it('adapt fits a new voter, leaves every other number be, and does not depend on who comes along', async () => {
    const fresh = opposed(['zero', 'new', 'other']).slice(6);
    const copy = (suffix: string) => {
      const to = path(`${name}-${suffix}`);
      cpSync(runs[name].output, to, { recursive: true });
      return to;
    };
    const [alone, together] = [copy('alone'), copy('together')];
    const votes = writeRows(
      path(`${name}-new.jsonl`),
      fresh.filter((row) => row.annotator === 'new'),
    );
    const before = AdapterPopulation.open(join(alone, 'population.safetensors'));
    const rowsBefore = [0, 1, 2, 3].map((u) => before.own(u));
    const shared = [...before.places.keys()].filter((n) => n !== 'own').map((n) => before.shared(n));
    const result = await json('adapt', '--run', alone, '--votes', votes, '--steps', '40');
    expect(result.population).toBe(4);
    expect(result.annotators.new.accuracy).toBeGreaterThanOrEqual(result.annotators.new.generic_accuracy);
    expect(result.annotators.new.accuracy).toBe(1);
    const after = AdapterPopulation.open(join(alone, 'population.safetensors'));
    expect(after.annotators).toEqual(['one', 'three', 'two', 'new']);
    expect([0, 1, 2, 3].map((u) => after.own(u))).toEqual(rowsBefore);
    expect([...after.places.keys()].filter((n) => n !== 'own').map((n) => after.shared(n))).toEqual(shared);
    const [last, added] = [after.own(3), after.own(4)];
    expect(added).not.toEqual(after.own(0));
    const judged = await json('eval', '--run', alone, '--data', votes, '--dtype', 'float32');
    expect(judged.overall.accuracy).toBe(1);
    expect(judged.voters.seen.rows).toBe(6);

    await json('adapt', '--run', together, '--votes', writeRows(path(`${name}-two.jsonl`), fresh), '--steps', '40');
    const many = AdapterPopulation.open(join(together, 'population.safetensors'));
    expect(many.own(many.index.get('new')!)).toEqual(added);

    const again = await program('adapt', '--run', alone, '--votes', votes);
    expect(again.status).toBe(2);
    expect(again.stderr).toMatch(/"new": in the run already; give --replace/);
    await json('adapt', '--run', alone, '--votes', votes, '--steps', '1', '--replace');
    const replaced = AdapterPopulation.open(join(alone, 'population.safetensors'));
    expect(replaced.annotators).toEqual(after.annotators);
    expect(replaced.own(4)).not.toEqual(added);
    expect(replaced.own(3)).toEqual(last);
    expect(() => after.own(1)).toThrow(/written anew/);
    const inFloat32 = replaced.own(4);
    await json('adapt', '--run', alone, '--votes', votes, '--steps', '1', '--replace', '--dtype', 'bf16');
    expect(AdapterPopulation.open(join(alone, 'population.safetensors')).own(4)).not.toEqual(inFloat32);
  });
});

describe('generate', () => {
  const argv = ['--prompt', 'bird', '--max-new-tokens', '6', '--seed', '3'];

  it('speaks as an annotator, or as the generic adapter', async () => {
    const say = async (...more: string[]) => (await json('generate', ...runOf('dpo'), ...argv, ...more)).samples;
    const [one, two] = await say('--annotator', 'one', '--annotator', 'two');
    expect([one.policy, two.policy]).toEqual(['one', 'two']);
    expect((await say()).map((s: { policy: string }) => s.policy)).toEqual(['generic']);
    await json('export', '--run', runs.dpo.output, '--annotator', 'one', '--output', path('voice'));
    const plain = await json(
      'generate',
      '--model',
      tiny.model,
      '--adapter',
      `v=${path('voice')}`,
      '--dtype',
      'float32',
      ...argv,
    );
    expect(plain.samples[0].text).toBe(one.text);
  });

  it.each([
    ['dpo', 'nobody', /no annotator "nobody"/],
    ['reward', 'one', /a reward model does not generate/],
  ])('%s as %s is refused', async (name, annotator, message) => {
    const { status, stderr } = await program('generate', ...runOf(name), ...argv, '--annotator', annotator);
    expect(status).not.toBe(0);
    expect(stderr).toMatch(message);
  });
});

describe('adapt refuses', () => {
  it('votes without a name, and runs with one adapter for all', async () => {
    const nameless = writeRows(
      path('nameless.jsonl'),
      rows.slice(0, 2).map(({ annotator: _, ...row }) => row),
    );
    const { status, stderr } = await program('adapt', '--run', runs.reward.output, '--votes', nameless);
    expect(status).toBe(2);
    expect(stderr).toMatch(/line 1: field "annotator": found nothing/);
    const { output } = await trained(votersConfig(path('global'), { train: file }, {}));
    const other = await program('adapt', '--run', output, '--votes', file);
    expect(other.stderr).toMatch(/expected a run with adapter\.per: annotator/);
    const exported = await program('export', '--run', output, '--annotator', 'one', '--output', path('e'));
    expect(exported.stderr).toMatch(/expected a finished run with adapter\.per: annotator/);
    expect(existsSync(path('e'))).toBe(false);
  });
});
