import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { Bank } from '../lib/adapters/bank.js';
import { adapterConfig } from '../lib/adapters/config.js';
import { evalCommand } from '../lib/api/eval.js';
import { scoreCommand } from '../lib/api/score.js';
import { Random } from '../lib/base/random.js';
import { readRows } from '../lib/data/index.js';
import { pack } from '../lib/data/pack.js';
import { groupsOf } from '../lib/data/tokenize.js';
import { adapt } from '../lib/features/adapt.js';
import { embed } from '../lib/features/embed.js';
import { readItems } from '../lib/features/items.js';
import { Population } from '../lib/features/population.js';
import { scoreFeatures } from '../lib/features/run.js';
import { Model } from '../lib/model/model.js';
import { handleStopSignals } from '../lib/training/signals.js';
import { train } from '../lib/training/train.js';
import { Folder, jsonl } from './data-rows.js';
import { forgetsFrom } from './support/events.js';

const folder = new Folder();
afterAll(() => folder.remove());
const demoModel = fileURLToPath(new URL('../assets/demo-model', import.meta.url));
const runtime = { dtype: 'auto', device: 'auto', threads: 1 } as const;

// Tastes in one direction of ten, with either sign: one reward for all can learn nothing.
const d = 10;
const random = new Random(3);
const features = Array.from({ length: 60 }, () => Array.from({ length: d }, () => random.normal()));
const taste = Array.from({ length: d }, () => random.normal() / Math.sqrt(d));
const reward = (item: number, size: number) => size * features[item].reduce((sum, x, j) => sum + x * taste[j], 0);

function votes(annotator: string, size: number, count: number): object[] {
  return Array.from({ length: count }, (_, v) => {
    const ids = Array.from({ length: v % 5 === 4 ? 4 : 2 }, () => random.below(60));
    const noisy = ids.map((id) => reward(id, size) - Math.log(-Math.log(random.uniform() + 1e-12)));
    const order = [...ids.keys()].sort((a, b) => noisy[b] - noisy[a]);
    if (ids.length > 2) return { responses: ids.map((id) => `i${id}`), ranking: order.slice(0, 3), annotator };
    return {
      chosen: `i${ids[order[0]]}`,
      rejected: `i${ids[order[1]]}`,
      annotator,
      group: size > 0 ? 'plus' : 'minus',
    };
  });
}

const population = Array.from({ length: 20 }, (_, u) => ({
  name: `u${u}`,
  size: (u % 2 ? -1 : 1) * (2 + random.uniform()),
}));
let items: string;
let rows: string;
let held: string;
const output = (name: string) => join(folder.path, name);

async function run(model: string, name = model, more: object = {}, options: { resume?: boolean } = {}) {
  return train(
    {
      method: 'reward',
      model: 'features',
      data: { train: rows, eval: held, items },
      features: { model: model as 'low-rank', rank: 1, ...more },
      output: output(name),
    },
    { quiet: true, ...options },
  );
}

beforeAll(() => {
  items = folder.write('items.jsonl', jsonl(...features.map((f, i) => ({ id: `i${i}`, features: f }))));
  rows = folder.write('rows.jsonl', jsonl(...population.flatMap(({ name, size }) => votes(name, size, 15))));
  held = folder.write('held.jsonl', jsonl(...population.flatMap(({ name, size }) => votes(name, size, 40))));
});

describe('a run', () => {
  it('writes everyone into one folder, and low-rank beats one for all and one for each', async () => {
    const [global, local, shared] = [await run('global'), await run('local'), await run('low-rank')];
    const accuracy = [global, local, shared].map((summary) => summary.eval?.overall.accuracy as number);
    expect(accuracy[0]).toBeLessThan(0.6);
    expect(accuracy[2]).toBeGreaterThan(accuracy[1] + 0.02);
    expect(accuracy[2]).toBeGreaterThan(0.75);
    const dir = output('low-rank');
    for (const file of ['config.yaml', 'metrics.jsonl', 'summary.json', 'features.safetensors', 'report.html'])
      expect(existsSync(join(dir, file)), file).toBe(true);
    expect(readdirSync(dir).filter((name) => name.startsWith('events.out.tfevents.'))).toHaveLength(1);
    expect(JSON.parse(readFileSync(join(dir, 'summary.json'), 'utf8')).eval).toEqual(shared.eval);
    expect(shared.eval?.groups && Object.keys(shared.eval.groups)).toEqual(['minus', 'plus']);
    expect(Population.load(join(dir, 'features.safetensors')).annotators).toEqual(population.map((p) => p.name));
  });

  it('written anew on --resume, tells TensorBoard to forget what stood there', async () => {
    const events = () => readdirSync(output('again')).filter((name) => name.startsWith('events.out.tfevents.'));
    await run('global', 'again');
    const [first] = events();
    await run('global', 'again', {}, { resume: true });
    expect(
      readFileSync(join(output('again'), 'metrics.jsonl'), 'utf8')
        .trim()
        .split('\n'),
    ).toHaveLength(1);
    const second = events().filter((name) => name !== first);
    expect(second).toHaveLength(1);
    expect(forgetsFrom(readFileSync(join(output('again'), second[0])))).toBe(0);
  });

  it.each(['lore', 'pal', 'heads'])('%s learns opposite tastes', async (model) => {
    const summary = await run(model, model, { rank: 2, l2: 0.3 });
    expect(summary.eval?.overall.accuracy).toBeGreaterThan(0.65);
    const { parameters, model: read } = Population.load(join(output(model), 'features.safetensors'));
    expect(read.name).toBe(model);
    expect(parameters.own.length).toBe(40);
  });

  it('is evaluated and scored by its folder', async () => {
    const stop = handleStopSignals(() => {});
    const options = { run: output('low-rank'), adapters: [], data: [held], stop, ...runtime };
    const evaluation = await evalCommand(options);
    const summary = JSON.parse(readFileSync(join(output('low-rank'), 'summary.json'), 'utf8'));
    expect(evaluation.overall.log_likelihood).toBeCloseTo(summary.eval.overall.log_likelihood, 5);
    expect(Object.keys(evaluation.annotators).length).toBe(20);
    const scores = await scoreCommand(options);
    stop.dispose();
    const [first] = (await readRows(held, { items: true })).rows;
    if (first.kind !== 'pair') throw new Error('expected a pair');
    const people = Population.load(join(output('low-rank'), 'features.safetensors'));
    const weights = people.weights(0) as Float64Array;
    const expected = [first.chosen, first.rejected].map((id) =>
      features[Number(String(id).slice(1))].reduce((sum, x, j) => sum + Math.fround(x) * weights[j], 0),
    );
    scores.rows[0].rewards?.features.forEach((value, i) => {
      expect(value).toBeCloseTo(expected[i], 6);
    });
  });

  it('chooses model, rank and priors on votes held out of its own', async () => {
    const notes: string[] = [];
    const choose = {
      model: ['global', 'low-rank', 'mixed'],
      rank: [1, 3],
      l2: [0.5, 50],
      residual: [400],
      held_out: 0.25,
    };
    const config = {
      method: 'reward' as const,
      model: 'features',
      data: { train: rows, eval: held, items },
      features: { choose: { ...choose, model: ['global' as const, 'low-rank' as const, 'mixed' as const] } },
      output: output('chosen'),
    };
    const summary = await train(config, { quiet: true, onNote: (text) => notes.push(text) });
    // global × l2, low-rank and mixed × rank × l2.
    expect(summary.tried).toHaveLength(2 + 4 + 4);
    const values = summary.tried!.map((setting) => setting.log_likelihood as number);
    expect(values).toEqual([...values].sort((a, b) => b - a));
    const [best] = summary.tried!;
    expect(best).toMatchObject({ rank: 1, l2: 0.5 });
    expect(best.model).not.toBe('global');
    expect(notes.join()).toMatch(/is the likeliest of 10 settings on 7\d votes held out/);
    const kept = Population.load(join(output('chosen'), 'features.safetensors'));
    expect([kept.model.name, kept.rank, kept.l2]).toEqual([best.model, 1, 0.5]);
    expect(summary.eval?.overall.accuracy).toBeGreaterThan(0.75);
    const page = readFileSync(join(output('chosen'), 'report.html'), 'utf8');
    expect(page).toMatch(/Settings tried.*log_likelihood.*low-rank.*<td>50<\/td>/s);
    // What is fitted in the end has all votes, as without a choice.
    const { model, l2, residual } = best as { model: 'low-rank'; l2: number; residual: number | null };
    const alone = await run(model, 'alone', { rank: 1, l2, residual });
    expect(alone.eval?.overall.log_likelihood).toBe(summary.eval?.overall.log_likelihood);
    const batches = run('low-rank', 'refused', { batch_size: 8, choose: { model: ['pal'] } });
    await expect(batches).rejects.toThrow(/mini-batches are for model low-rank, but the model is pal/);
  });

  it('tells voters that it knows from others', async () => {
    const both = folder.write(
      'both.jsonl',
      jsonl(
        ...votes('u0', population[0].size, 7),
        ...votes('new', 2, 5),
        ...votes('x', 2, 4).map((row) => ({ ...row, annotator: undefined })),
      ),
    );
    const stop = handleStopSignals(() => {});
    const options = { run: output('low-rank'), adapters: [], data: [both], stop, ...runtime };
    const { voters, overall, annotators } = await evalCommand(options);
    stop.dispose();
    expect(overall.rows).toBe(16);
    expect([voters?.seen.rows, voters?.unseen.rows]).toEqual([7, 5]);
    expect(voters?.seen.accuracy).toBe(annotators.u0.accuracy);
  });

  it('is compared, voter by voter, with its generic reward and with another run', async () => {
    const stop = handleStopSignals(() => {});
    const options = { run: output('low-rank'), adapters: [], data: [held], stop, ...runtime };
    const generic = (await evalCommand({ ...options, compare: 'generic' })).comparison!;
    expect(generic.voters).toBe(20);
    expect(generic.accuracy.low).toBeGreaterThan(0.1);
    const again = [{ run: output('local'), other: output('low-rank') }];
    const { comparison, overall, annotators } = await evalCommand({ ...options, compare: output('local'), again });
    stop.dispose();
    expect(overall.accuracy).toBeGreaterThan(0.75);
    expect(Object.keys(annotators).length).toBe(20);
    // Once one way and once the other.
    expect(comparison).toMatchObject({ seeds: 2, voters: 40 });
    expect(comparison!.accuracy.mean).toBeCloseTo(0, 12);
    expect(comparison!.accuracy.low).toBeLessThan(0);
  });

  it('gives whoever is unknown the generic reward', async () => {
    const people = Population.load(join(output('low-rank'), 'features.safetensors'));
    expect([...people.own(-1)]).toEqual([0]);
    const local = Population.load(join(output('local'), 'features.safetensors'));
    const mean = people.model.d;
    const expected = Array.from({ length: mean }, (_, j) => {
      const all = local.annotators.map((_, u) => (local.weights(u) as Float64Array)[j]);
      return all.reduce((a, b) => a + b, 0) / all.length;
    });
    (local.weights(-1) as Float64Array).forEach((w, j) => {
      expect(w).toBeCloseTo(expected[j], 5);
    });
  });
});

describe('adapt', () => {
  it.each([
    'low-rank',
    'local',
    'heads',
    'lore',
    'pal',
  ])('%s: adds a voter and leaves the others alone', async (model) => {
    const file = join(output(model), 'features.safetensors');
    const before = Population.load(file);
    const votesFile = folder.write('new.jsonl', jsonl(...votes('newcomer', 2.5, 30)));
    const result = await adapt({ run: output(model), votes: [votesFile] });
    const after = Population.load(file);
    expect(after.annotators).toEqual([...before.annotators, 'newcomer']);
    expect(after.parameters.shared).toEqual(before.parameters.shared);
    expect(after.parameters.own.slice(0, before.parameters.own.length)).toEqual(before.parameters.own);
    expect(result.annotators.newcomer.votes).toBe(30);
    expect(result.annotators.newcomer.accuracy).toBeGreaterThan(0.65);
    expect(result.population).toBe(21);
    await expect(adapt({ run: output(model), votes: [votesFile] })).rejects.toThrow(/"newcomer": in the run already/);
    expect((await adapt({ run: output(model), votes: [votesFile], replace: true })).population).toBe(21);
  });

  it('fits a voter of the run to what the run fitted', async () => {
    const file = join(output('low-rank'), 'features.safetensors');
    const people = Population.load(file);
    const trained = (await readRows(rows, { items: true })).rows.filter((row) => row.annotator === 'u3');
    const again = folder.write(
      'again.jsonl',
      jsonl(...trained.map((row) => ({ ...row, prompt: undefined, origin: undefined }))),
    );
    const result = await adapt({ run: output('low-rank'), votes: [again], replace: true });
    expect(result.annotators.u3.own[0]).toBeCloseTo(people.own(3)[0], 4);
    expect(result.annotators.u3.milliseconds).toBeLessThan(50);
  });

  it('says what to ask next, of known and of new voters, and leaves the run as it is', async () => {
    await run('low-rank', 'asking');
    const before = readFileSync(join(output('asking'), 'features.safetensors'));
    const asked = await adapt({ run: output('asking'), votes: [], next: 3, annotators: ['u1', 'somebody'] });
    expect(asked.annotators).toEqual({});
    for (const name of ['u1', 'somebody']) {
      expect(asked.next?.[name]).toHaveLength(3);
      for (const { items: pair, information } of asked.next?.[name] ?? []) {
        expect(pair[0]).not.toBe(pair[1]);
        expect(information).toBeGreaterThan(0);
      }
    }
    // Fifteen votes have told something already.
    expect(asked.next?.u1[0].information).toBeLessThan(asked.next?.somebody[0].information as number);
    expect(readFileSync(join(output('asking'), 'features.safetensors'))).toEqual(before);
    await expect(adapt({ run: output('asking'), votes: [] })).rejects.toThrow(
      /neither votes nor a number of questions/,
    );
  });

  it('takes features in columns, kept by the file', async () => {
    const summary = await run('low-rank', 'columns', { columns: 5, rank: 9 });
    expect(summary.eval?.overall.accuracy).toBeGreaterThan(0.6);
    const kept = Population.load(join(output('columns'), 'features.safetensors'));
    // Two features of a column: no more directions than that.
    expect([kept.model.columns, kept.rank, kept.model.own]).toEqual([5, 2, 10]);
    expect(kept.weights(3)).toHaveLength(d);
    await expect(run('low-rank', 'uneven', { columns: 3 })).rejects.toThrow(
      /features.columns: found 3 for items of 10/,
    );
    await expect(run('heads', 'uneven', { columns: 5 })).rejects.toThrow(/columns are for model low-rank/);
  });

  it('reads of a file of voters only those that are asked for', async () => {
    await run('low-rank', 'lazy');
    const path = join(output('lazy'), 'features.safetensors');
    const [all, some] = [Population.load(path), Population.load(path, ['u7', 'u3', 'nobody'])];
    expect(some.annotators).toEqual(['u3', 'u7']);
    for (const name of some.annotators) {
      const [a, b] = [all, some].map((people) => people.index.get(name) as number);
      expect(some.own(b)).toEqual(all.own(a));
      expect(some.posterior(b)?.factor).toEqual(all.posterior(a)?.factor);
    }
    expect(some.own(-1)).toEqual(all.own(-1));
    expect(Population.load(path, []).annotators).toEqual([]);
  });

  it('draws voters by taste, how reliable rewards are and who is hardest, in the report', async () => {
    await run('low-rank', 'drawn', { rank: 2 });
    const features = JSON.parse(readFileSync(join(output('drawn'), 'voters.json'), 'utf8'));
    expect(features.kind).toBe('items');
    expect(features.map.voters).toHaveLength(20);
    // Tastes of either sign along one direction: the sides of the first axis are the groups, and it holds nearly all.
    const sides = population.map(({ size }, u) => Math.sign(size) * Math.sign(features.map.voters[u].x));
    expect(Math.abs(sides.reduce((a, b) => a + b, 0))).toBe(20);
    expect(features.map.axes[0].share).toBeGreaterThan(0.8);
    const liked = (ids: string[]) => ids.reduce((sum, id) => sum + reward(Number(id.slice(1)), sides[0]), 0);
    expect(liked(features.map.axes[0].high)).toBeGreaterThan(0);
    expect(liked(features.map.axes[0].low)).toBeLessThan(0);
    const { eval: judged } = JSON.parse(readFileSync(join(output('drawn'), 'summary.json'), 'utf8'));
    expect(judged.reliability.length).toBeGreaterThan(3);
    const pairs = judged.reliability.reduce((sum: number, bin: { rows: number }) => sum + bin.rows, 0);
    expect(pairs).toBe(readFileSync(held, 'utf8').match(/"chosen"/g)!.length);
    const page = readFileSync(join(output('drawn'), 'report.html'), 'utf8');
    for (const title of ['Voters by taste', 'Reliability', 'Hardest voters', 'Rewards by annotator']) {
      expect(page).toContain(title);
    }
  });

  it('scores less what the votes leave open, and for all voters together', async () => {
    await run('low-rank', 'beliefs');
    const data = [
      folder.write('few.jsonl', jsonl({ responses: ['i1', 'i2', 'i3'], ranking: [0, 1], annotator: 'u0' })),
    ];
    const { policies, rows: scored } = await scoreFeatures(output('beliefs'), data, { lower: 1, alpha: 0 });
    expect(policies).toEqual(['features', 'lower', 'everyone']);
    const { features: plain, lower } = scored[0].rewards;
    for (const [i, reward] of plain.entries()) expect(lower[i]).toBeLessThan(reward);
    expect(plain[scored[0].best.features]).toBe(Math.max(...plain));
  });

  it('counts voters together by the weights and groups of a file', async () => {
    await run('low-rank', 'voices');
    const responses = { responses: ['i1', 'i2', 'i3'], ranking: [0], annotator: 'u0' };
    const data = [folder.write('asked.jsonl', jsonl(responses))];
    const people = Population.load(join(output('voices'), 'features.safetensors'));
    const table = await readItems(items);
    const scorer = people.scorer(table);
    const beside = (name: string, item: string) => {
      const u = people.index.get(name) as number;
      return scorer(u, table.index.get(item)!) - table.ids.reduce((sum, _, i) => sum + scorer(u, i) / table.n, 0);
    };
    const of = async (voters: object[], options: object) => {
      const file = folder.write('voices.jsonl', jsonl(...voters));
      const { rows: scored } = await scoreFeatures(output('voices'), data, { voters: [file], ...options });
      return scored[0].rewards.everyone;
    };
    const some = [{ annotator: 'u3', weight: 3 }, { annotator: 'u8' }, { annotator: 'u9', weight: 0 }];
    const mean = await of(some, { alpha: 0 });
    ['i1', 'i2', 'i3'].forEach((item, i) => {
      expect(mean[i]).toBeCloseTo((3 * beside('u3', item) + beside('u8', item)) / 4, 8);
    });
    const grouped = ['u1', 'u3', 'u8'].map((annotator) => ({ annotator, group: annotator === 'u8' ? 'even' : 'odd' }));
    const apart = [...grouped, { annotator: 'u9', weight: 0, group: 'none' }];
    const odd = (beside('u1', 'i2') + beside('u3', 'i2')) / 2;
    expect((await of(apart, { alpha: Number.NEGATIVE_INFINITY }))[1]).toBeCloseTo(Math.min(odd, beside('u8', 'i2')), 8);
    expect((await of(apart, { alpha: 0 }))[1]).toBeCloseTo((2 * odd + beside('u8', 'i2')) / 3, 8);
    expect((await of(apart, { alpha: 0, equalGroups: true }))[1]).toBeCloseTo((odd + beside('u8', 'i2')) / 2, 8);
    for (const [voters, message] of [
      [
        [{ annotator: 'u1' }, { annotator: 'x' }],
        /line 2: field "annotator": found the text "x", expected an annotator of the run/,
      ],
      [[{ annotator: 'u1' }, { annotator: 'u1' }], /line 2: field "annotator": .* expected every annotator once/],
      [[{ weight: 1 }], /line 1: field "annotator"/],
      [[{ annotator: 'u1', weight: -1 }], /field "weight": found -1/],
      [[{ annotator: 'u1', group: 'a' }, { annotator: 'u2' }], /line 2: field "group": .* as rows before have one/],
    ] as const)
      await expect(of([...voters], { alpha: 0 })).rejects.toThrow(message);
    await expect(of([{ annotator: 'u1' }], { alpha: 0, equalGroups: true })).rejects.toThrow(/no row has a "group"/);
  });

  it.each(['davidson', 'rao_kupper'] as const)('trains with ties: %s', async (ties) => {
    const tied = population.flatMap(({ name }) =>
      Array.from({ length: 6 }, () => ({
        chosen: `i${random.below(60)}`,
        rejected: `i${random.below(60)}`,
        tie: true,
        annotator: name,
      })),
    );
    const both = folder.write('tied.jsonl', readFileSync(rows, 'utf8') + jsonl(...tied));
    const config = {
      method: 'reward' as const,
      model: 'features',
      data: { train: both, eval: both, items },
      features: { model: 'low-rank' as const, rank: 1 },
      loss: { ties },
      output: output(ties),
    };
    const notes: string[] = [];
    const summary = await train(config, { quiet: true, onNote: (text) => notes.push(text) });
    expect(notes.join()).toMatch(new RegExp(`ties: ${ties} with nu [\\d.]+, the likeliest`));
    const kept = Population.load(join(output(ties), 'features.safetensors'));
    expect(kept.ties?.type).toBe(ties);
    const { overall } = summary.eval as { overall: { ties: number; log_likelihood: number } };
    expect(overall.ties).toBe(tied.length);
    // A vote has three answers, and chance would give each log 3.
    expect(overall.log_likelihood).toBeGreaterThan(-Math.log(3));
    const dropped = await train(
      { ...config, loss: {}, output: output(`${ties}-dropped`) },
      { quiet: true, onNote: (text) => notes.push(text) },
    );
    expect(dropped.data).toMatchObject({ votes: 300 });
    expect(notes.join()).toMatch(/120 rows are ties and were left out/);
  });

  it('refuses nobody, unknown items and one reward for all', async () => {
    const nobody = folder.write('nobody.jsonl', jsonl({ chosen: 'i1', rejected: 'i2' }));
    await expect(adapt({ run: output('low-rank'), votes: [nobody] })).rejects.toThrow(/line 1: field "annotator"/);
    const lost = folder.write('lost.jsonl', jsonl({ chosen: 'i1', rejected: 'x', annotator: 'z' }));
    await expect(adapt({ run: output('low-rank'), votes: [lost] })).rejects.toThrow(
      /line 1: field "rejected": found "x"/,
    );
    const one = folder.write('one.jsonl', jsonl({ chosen: 'i1', rejected: 'i2', annotator: 'z' }));
    await expect(adapt({ run: output('global'), votes: [one] })).rejects.toThrow(/nothing of an annotator/);
  });
});

describe('awkward votes', () => {
  const tryVotes = (name: string, given: object[], more: object = {}, notes: string[] = []) =>
    train(
      {
        method: 'reward',
        model: 'features',
        data: { train: folder.write(`${name}.jsonl`, jsonl(...given)), items },
        features: { model: 'low-rank', rank: 8, ...more },
        output: output(name),
      },
      { quiet: true, onNote: (note) => notes.push(note) },
    );

  it('takes one vote, contradictory votes, more rank than votes, and says what it did', async () => {
    const notes: string[] = [];
    const given = [
      { chosen: 'i1', rejected: 'i2', annotator: 'once' },
      { chosen: 'i3', rejected: 'i4', annotator: 'torn' },
      { chosen: 'i4', rejected: 'i3', annotator: 'torn' },
      { chosen: 'i5', rejected: 'i5', annotator: 'same' },
      { chosen: 'i7', rejected: 'i8', annotator: 'o\u0301' },
      { chosen: 'i7', rejected: 'i8', annotator: 'ó' },
    ];
    const summary = await tryVotes('awkward', given, {}, notes);
    expect(summary.train.loss).toBeGreaterThan(0);
    expect(notes.join('\n')).toMatch(/4 of 5 annotators have one vote/);
    expect(notes.join('\n')).toMatch(/5 of 5 annotators have fewer votes than the rank 8/);
    expect(notes.join('\n')).toMatch(/differ only in how they are spelt/);
    expect(notes.join('\n')).toMatch(/two equal completions/);
    expect(notes.join('\n')).toMatch(/1 of 5 annotators contradict themselves on 1 couple of items/);
    const people = Population.load(join(output('awkward'), 'features.safetensors'));
    expect([...people.parameters.own, ...people.parameters.shared].every(Number.isFinite)).toBe(true);
  });

  it('refuses votes without names, and items that are not there', async () => {
    await expect(tryVotes('unnamed', [{ chosen: 'i1', rejected: 'i2' }])).rejects.toThrow(/no row names an annotator/);
    const missing = [
      { chosen: 'i1', rejected: 'i2', annotator: 'u' },
      { chosen: 'i1', rejected: 'gone', annotator: 'u' },
    ];
    await expect(tryVotes('missing', missing)).rejects.toThrow(
      /missing\.jsonl, line 2: field "rejected": found "gone"/,
    );
  });

  it('refuses a configuration without items', async () => {
    await expect(
      train({ method: 'reward', model: 'features', data: { train: rows }, output: output('none') }),
    ).rejects.toThrow(/data\.items: found nothing, expected the table of items/);
  });
});

describe('embed', () => {
  it('writes the rows that a reward head reads', async () => {
    const texts = ['A cat sat.', 'Once there was a dog that ran far.', 'Rain.'];
    const data = folder.write('texts.jsonl', jsonl(...texts.map((text, id) => ({ id, text }))));
    const path = output('embedded.safetensors');
    const result = await embed({ model: demoModel, data: [data], output: path, ...runtime });
    const table = await readItems(path);
    expect(table.ids).toEqual(['0', '1', '2']);
    expect(result).toMatchObject({ items: 3, features: table.d, pooling: 'last' });

    using model = await Model.load(demoModel, runtime);
    const bank = Bank.create(model.shape, adapterConfig({ r: 1 }), ['x'], { seed: 1, rewardHead: true });
    const head = bank.values(bank.adapters[0].head);
    head.forEach((_, j) => {
      head[j] = Math.sin(j);
    });
    const { groups } = await groupsOf((await readRows(data)).rows, model.tokenizer, { maxLength: 256 });
    const { values } = await model.score(
      pack(groups, { policies: [{ adapter: 0, grad: false }], read: 'reward' }),
      bank,
      'reward',
    );
    for (let i = 0; i < 3; i++) {
      const dot = head.reduce((sum, w, j) => sum + w * table.features[i * table.d + j], 0);
      expect(dot).toBeCloseTo(values[i], 3);
    }
    bank.dispose();

    const mean = output('mean.safetensors');
    await embed({ model: demoModel, data: [data], output: mean, pooling: 'mean', ...runtime });
    expect((await readItems(mean)).features).not.toEqual(table.features);
  });

  it('refuses a second id and a text without one', async () => {
    const bad = async (...given: object[]) =>
      embed({
        model: demoModel,
        data: [folder.write('b.jsonl', jsonl(...given))],
        output: output('b.safetensors'),
        ...runtime,
      });
    await expect(bad({ id: 1, text: 'a' }, { id: 1, text: 'b' })).rejects.toThrow(
      /line 2: found the id "1" a second time/,
    );
    await expect(bad({ text: 'a' })).rejects.toThrow(/line 1: field "id": found nothing/);
    await expect(bad({ id: 1, chosen: 'a', rejected: 'b' })).rejects.toThrow(/expected an item/);
  });
});
