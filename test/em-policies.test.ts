// EM over policies of a language model: both steps, the run folder, resuming, and input that it must refuse.
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { describe, expect, it, vi } from 'vitest';
import { Bank } from '../lib/adapters/bank.js';
import { evalCommand } from '../lib/api/eval.js';
import { scoreCommand } from '../lib/api/score.js';
import type { Config } from '../lib/config/index.js';
import { resolveLoss } from '../lib/config/index.js';
import type { Group } from '../lib/data/types.js';
import { copyAdapter } from '../lib/em/language/bank.js';
import { TypePolicies } from '../lib/em/language/policies.js';
import { assignVotes } from '../lib/em/run.js';
import type { EmSummary } from '../lib/em/summary.js';
import { objectiveOf } from '../lib/methods/index.js';
import { Model } from '../lib/model/model.js';
import { PolicyReference } from '../lib/training/scorer.js';
import { lossStep } from '../lib/training/step.js';
import { type TrainOptions, train } from '../lib/training/train.js';
import { norm, randomBank, randomGroups } from './support/engine.js';
import { refuses } from './support/refuses.js';
import { fixture, program, scratch, writeConfig, writeRows } from './support/runs.js';

const { path } = scratch();
const f = fixture('mistral');
let count = 0;
const next = () => path(`run-${count++}`);

const words = ['red', 'sea', 'wind', 'water', 'warm', 'while', 'near', 'some'];
type Row = Record<string, unknown>;

/** Two tastes, for "sea" and for "wind" in an answer: pairs, full rankings, top-1 of three and top-2 of four. */
function plantedRows(annotators = 10, votes = 8): Row[] {
  const rows: Row[] = [];
  for (let u = 0; u < annotators; u++) {
    const taste = u % 2;
    const good = taste === 0 ? ' sea' : ' wind';
    const bad = taste === 0 ? ' wind' : ' sea';
    for (let v = 0; v < votes; v++) {
      const word = words[(u + v) % words.length];
      const named = { prompt: word, annotator: `u${u}`, group: `taste-${taste}` };
      const plain = ` ${words[(3 * u + v) % 3 === 0 ? 4 : 6]}`;
      if (v % 4 === 0) rows.push({ ...named, responses: [bad, plain, good], ranking: [2, 1, 0] });
      else if (v % 4 === 1) rows.push({ ...named, responses: [bad, good, plain], ranking: [1] });
      else if (v % 4 === 2) rows.push({ ...named, responses: [plain, bad, good, `${good}${good}`], ranking: [3, 2] });
      else rows.push({ ...named, chosen: good, rejected: bad });
    }
  }
  return rows;
}

const data = writeRows(path('votes.jsonl'), plantedRows());
const held = writeRows(path('held.jsonl'), plantedRows(10, 3));

function configOf(output: string, changes: { em?: object; train?: object; loss?: object; data?: object } = {}): Config {
  return {
    method: 'em-dpo',
    model: f.model,
    data: { train: data, eval: held, ...changes.data },
    adapter: { r: 4, alpha: 8 },
    loss: { beta: 0.5, ...changes.loss },
    em: { types: 2, rounds: 3, ...changes.em },
    train: {
      batch_size: 8,
      learning_rate: 5e-3,
      schedule: 'constant',
      dtype: 'float32',
      threads: 1,
      log_every: 3,
      save_every: 4,
      ...changes.train,
    },
    output,
  } as Config;
}

const fit = (config: Config, options: TrainOptions = {}) =>
  train(config, { quiet: true, onNote: () => {}, ...options }) as Promise<EmSummary>;

interface Line {
  [name: string]: number;
}
const linesOf = (run: string): Line[] =>
  readFileSync(`${run}/metrics.jsonl`, 'utf8')
    .split('\n')
    .filter((line) => line !== '')
    .map((line) => JSON.parse(line));
const roundsOf = (run: string) => linesOf(run).filter((line) => line.round !== undefined);

describe('a run over types', () => {
  it('finds the planted tastes from pairs, rankings, top-m and choices in one file, and writes what others read', async () => {
    const run = next();
    const notes: string[] = [];
    const summary = await fit(configOf(run, { em: { rounds: 4 } }), { onNote: (text) => notes.push(text) });
    expect(summary.em.types).toBe(2);
    expect(summary.em.adjusted_rand_index).toBe(1);
    expect(summary.eval!.overall.adjusted_rand_index).toBe(1);
    expect(summary.em.weights[0] + summary.em.weights[1]).toBeCloseTo(1, 6);
    expect(summary.eval!.overall.accuracy).toBeGreaterThan(0.9);
    expect(summary.em.one_type_is_enough).toBe(false);
    expect(summary.em.log_likelihood).toBeGreaterThan(summary.em.one_type_log_likelihood!);
    expect(summary.em.description).toHaveLength(2);
    expect(summary.em.description[0].rows[0].preferred).toBeTypeOf('string');
    const history = roundsOf(run).map((line) => line.log_likelihood);
    expect(history).toHaveLength(4);
    // One object for each logged step, rounds among them.
    const lines = linesOf(run);
    expect(new Set(lines.map((line) => line.step)).size).toBe(lines.length);
    for (const line of lines)
      for (const name of ['loss', 'grad_norm', 'learning_rate']) expect(line[name], name).toBeTypeOf('number');
    expect(history[3]).toBeGreaterThan(history[0]);

    expect(readdirSync(`${run}/adapter`).sort()).toEqual(['type_1', 'type_2']);
    const page = readFileSync(`${run}/report.html`, 'utf8');
    expect(page).toContain('Types of annotators');
    expect(page.match(/<title>u\d: /g)).toHaveLength(10);
    expect(page).toContain('Log-likelihood of a vote');
    expect(page).not.toContain('Evaluation by types');
    const csv = readFileSync(`${run}/responsibilities.csv`, 'utf8').trim().split('\n');
    expect(csv[0]).toBe('annotator,type_1,type_2,votes,certainty');
    expect(csv).toHaveLength(11);

    const scored = await scoreCommand({ run, data: [held] });
    expect(scored.policies).toEqual(['base', 'type_1', 'type_2']);
    const evaluated = await evalCommand({ run, data: [held], dtype: 'float32', threads: 1 });
    expect(evaluated.overall.log_likelihood).toBeCloseTo(summary.eval!.overall.log_likelihood, 4);
    expect(Object.keys(evaluated.policies!)).toEqual(['type_1', 'type_2']);
    expect(evaluated.policies!.type_1.overall.accuracy).toBeLessThan(evaluated.overall.accuracy);

    const fresh = plantedRows(2, 4).map((row) => ({ ...row, annotator: `new-${row.annotator}` }));
    const assigned = await assignVotes({ run, data: [writeRows(path('new.jsonl'), fresh)] });
    expect(assigned.map((line) => line.annotator)).toEqual(['new-u0', 'new-u1']);
    const sure = assigned.map((line) => line.probabilities.indexOf(Math.max(...line.probabilities)));
    expect(sure[0]).not.toBe(sure[1]);
    const cli = await program('assign', '--run', run, '--votes', path('new.jsonl'), '--json');
    expect(JSON.parse(cli.stdout).annotators['new-u0'].certainty).toBeGreaterThan(0.9);
  });

  it('scores rows as plain DPO does: the round line is the mixture of what each adapter says', async () => {
    const run = next();
    const summary = await fit(configOf(run, { em: { rounds: 1, compare_one: false } }));
    const { rows } = await scoreCommand({ run, data: [data], dtype: 'float32', threads: 1 });
    const lines = plantedRows();
    const weights = summary.em.weights;
    const byAnnotator = new Map<string, number[]>();
    rows.forEach(({ logps }, i) => {
      const row = lines[i] as { annotator: string; responses?: unknown[]; ranking?: number[] };
      const ranking = row.ranking ?? [0, 1];
      const size = row.responses?.length ?? 2;
      const sums = byAnnotator.get(row.annotator) ?? weights.map((w) => Math.log(w));
      ['type_1', 'type_2'].forEach((name, k) => {
        const r = logps![name].map((value, c) => 0.5 * (value - logps!.base[c]));
        const left = new Set(Array.from({ length: size }, (_, c) => c));
        for (const c of ranking) {
          if (left.size > 1) sums[k] += r[c] - Math.log([...left].reduce((sum, o) => sum + Math.exp(r[o]), 0));
          left.delete(c);
        }
      });
      byAnnotator.set(row.annotator, sums);
    });
    const total = [...byAnnotator.values()].reduce(
      (sum, s) => sum + Math.log(s.reduce((a, x) => a + Math.exp(x), 0)),
      0,
    );
    expect(roundsOf(run)[0].log_likelihood).toBeCloseTo(total / rows.length, 5);
    const csv = readFileSync(`${run}/responsibilities.csv`, 'utf8').trim().split('\n').slice(1);
    for (const line of csv) {
      const [name, first] = line.split(',');
      const s = byAnnotator.get(name)!;
      expect(Number(first)).toBeCloseTo(1 / (1 + Math.exp(s[1] - s[0])), 4);
    }
  });

  it('with hard EM and one type is plain DPO on everyone', async () => {
    const run = next();
    const adapter = { init_from: f.adapter };
    const summary = await fit({
      ...configOf(run, { em: { types: 1, rounds: 2, hard: true }, train: { log_every: 1 } }),
      adapter,
    });
    const plain = next();
    const { em: _, ...dpo } = configOf(plain, { train: { epochs: 2, log_every: 1 } });
    await fit({ ...dpo, adapter, method: 'dpo' });
    expect(summary.em.weights).toEqual([1]);
    const losses = (r: string) => linesOf(r).filter((line) => line.loss !== undefined && line.step > 0);
    const [mine, theirs] = [losses(run), losses(plain)];
    expect(theirs.length).toBeGreaterThan(5);
    for (const line of theirs) {
      const own = mine.find(({ step }) => step === line.step)!;
      expect(own.loss).toBeCloseTo(line.loss, 6);
      expect(own.grad_norm).toBeCloseTo(line.grad_norm, 5);
      expect(own.learning_rate).toBe(line.learning_rate);
    }
    const weights = (r: string, name: string) => readFileSync(`${r}/adapter/${name}adapter_model.safetensors`);
    expect(weights(run, 'type_1/').equals(weights(plain, ''))).toBe(true);
  });
});

describe('other ways', () => {
  it.each([
    ['spectral', { init: 'spectral' }],
    ['random, by held-out folds', { init: 'random', folds: 2, rounds: 6, restarts: 3 }],
    ['incremental', { e_step: 'incremental' }],
    ['hard', { hard: true }],
    ['restarted, tempered, equal weights', { restart: true, m_epochs: 2, temperature: 2, weights: 'uniform' }],
  ])('%s finds the tastes too', async (name, em) => {
    const run = next();
    const summary = await fit(configOf(run, { em: { rounds: 4, compare_one: false, ...em } }));
    expect(summary.em.adjusted_rand_index).toBe(1);
    if (name.startsWith('restarted')) expect(summary.em.weights).toEqual([0.5, 0.5]);
    const last = roundsOf(run).at(-1)!;
    if (name === 'incremental') {
      expect(last.incremental_difference).toBeGreaterThanOrEqual(0);
      expect(Math.abs(last.incremental_log_likelihood_difference)).toBeGreaterThan(0);
    } else expect(last.incremental_difference).toBeUndefined();
  });

  it.each([
    ['starts', { init: 'random', restarts: 2 }],
    ['numbers of types', { types: [1, 2] }],
  ])('several %s: metrics and events are those of the start that was kept', async (_, em) => {
    const run = next();
    const config = configOf(run, { em: { rounds: 2, compare_one: false, ...em } });
    const summary = await fit(config);
    const start = summary.em.starts.findIndex(({ kept }) => kept);
    const kept = `${run}/checkpoints/types-${summary.em.types}-start-${start + 1}`;
    const events = (dir: string) => readdirSync(dir).filter((name) => name.startsWith('events.out.tfevents.'));
    const check = () => {
      expect(events(run)).toEqual(events(kept));
      for (const file of ['metrics.jsonl', ...events(kept)])
        expect(readFileSync(`${run}/${file}`).equals(readFileSync(`${kept}/${file}`)), file).toBe(true);
    };
    expect(events(kept)).toHaveLength(1);
    check();
    await fit(config, { resume: true });
    check();
  });

  it('em-reward: a reward model for each type', async () => {
    const run = next();
    const config = configOf(run, { em: { rounds: 4 }, loss: {} });
    const summary = await fit({ ...config, method: 'em-reward', loss: {} });
    expect(summary.em.adjusted_rand_index).toBe(1);
    expect(summary.eval!.overall.accuracy).toBeGreaterThan(0.9);
    const { policies, rows } = await scoreCommand({ run, data: [held], dtype: 'float32', threads: 1 });
    expect(policies).toEqual(['type_1', 'type_2']);
    expect(rows[0].rewards!.type_1).toHaveLength(3);
    const evaluated = await evalCommand({ run, data: [held], dtype: 'float32', threads: 1 });
    expect(evaluated.overall.log_likelihood).toBeCloseTo(summary.eval!.overall.log_likelihood, 4);
    const assigned = await assignVotes({ run, data: [held] });
    const of = (name: string) => assigned.find((line) => line.annotator === name)!.probabilities;
    expect(of('u0').indexOf(Math.max(...of('u0')))).not.toBe(of('u1').indexOf(Math.max(...of('u1'))));
  });

  it('spectral needs people who judged the same things', async () => {
    const rows = plantedRows(4, 1).map((row, i) => ({ ...row, prompt: words[i] }));
    const config = configOf(next(), {
      em: { init: 'spectral' },
      data: { train: writeRows(path('apart.jsonl'), rows) },
    });
    await refuses(() => fit(config), 'BAD_DATA', /spectral needs annotators who judged the same/);
  });

  it('a list of numbers is chosen from, with a line for each', async () => {
    const summary = await fit(configOf(next(), { em: { types: [1, 2, 3], rounds: 3 }, data: { eval: null } }));
    expect(summary.em.types).toBe(2);
    expect(summary.em.criteria!.map((line) => line.types)).toEqual([1, 2, 3]);
    expect(summary.em.criteria![1].held_out_log_likelihood).toBeGreaterThan(
      summary.em.criteria![0].held_out_log_likelihood,
    );
    expect(summary.em.criteria![1].stability).toBe(1);
    expect(summary.em.criteria![1].bic).toBeLessThan(summary.em.criteria![0].bic);
  });
});

describe('the M-step', async () => {
  const model = await Model.load(f.model, { dtype: 'float32', threads: 1 });
  const groups: Group[] = randomGroups(6, 270, 4).map((g, i) => ({
    ...g,
    annotator: `u${i % 3}`,
    weight: 1 + (i % 2),
  }));
  groups.push({
    ...groups[0],
    index: 6,
    kind: 'ranking',
    completions: [...groups[0].completions, groups[1].completions[0]],
    ranking: [2, 0],
  });
  const objective = objectiveOf({ method: 'em-dpo', loss: resolveLoss({ beta: 0.7 }, 'em-dpo') });
  const reference = new PolicyReference({ model, bank: null, adapter: -1 }, true, 4096);
  const policies = (bank: Bank, maxTokens = 4096) =>
    new TypePolicies({ model, bank, types: 3, objective, reference, beta: 0.7, best: false, margin: null, maxTokens });
  const gamma = [0, 1, 2].map((k) => Float64Array.from(groups, (_, i) => [0.9, 0.0999, 1e-4][(k + i) % 3]));
  const batch = (skipBelow: number, scoreAll = false) => ({
    groups,
    gamma,
    skipBelow,
    scoreAll,
    shares: [0.5, 0.3, 0.2],
    checkpoint: false,
    dropoutSeed: 0,
  });
  const totalWeight = groups.reduce((sum, g) => sum + g.weight, 0);

  /** Gradient of each row's own loss for each type, by plain DPO. */
  async function rowGradients(bank: Bank): Promise<Float64Array[][]> {
    const out: Float64Array[][] = [];
    for (const group of groups) {
      const own: Float64Array[] = [];
      for (let type = 0; type < 3; type++) {
        bank.zeroGrad();
        const policy = { model, bank, adapter: type, mixture: null };
        await lossStep([{ ...group, weight: 1 }], objective, policy, reference, {
          maxTokens: 4096,
          checkpoint: false,
          dropoutSeed: 0,
        });
        own.push(Float64Array.from(bank.gradients));
      }
      out.push(own);
    }
    bank.zeroGrad();
    return out;
  }

  it('adds up the rows by responsibility, whatever packs they stand in', async () => {
    const bank = randomBank(model, ['type_1', 'type_2', 'type_3']);
    const rows = await rowGradients(bank);
    const expected = new Float64Array(bank.gradients.length);
    rows.forEach((own, i) => {
      own.forEach((g, k) => {
        const c = (gamma[k][i] * groups[i].weight) / (totalWeight * [0.5, 0.3, 0.2][k]);
        for (let j = 0; j < g.length; j++) expected[j] += c * g[j];
      });
    });
    for (const [maxTokens, scoreAll] of [
      [4096, false],
      [60, false],
      [60, true],
    ] as const) {
      bank.zeroGrad();
      await policies(bank, maxTokens).gradient(batch(0, scoreAll));
      const off = norm(bank.gradients.map((g, j) => g - expected[j]));
      expect(off).toBeLessThan(1e-5 * norm(expected));
    }
  });

  it('skips rows of negligible responsibility, at a cost that is bounded by it', async () => {
    const bank = randomBank(model, ['type_1', 'type_2', 'type_3']);
    const rows = await rowGradients(bank);
    const skipBelow = 1e-3;
    bank.zeroGrad();
    const whole = await policies(bank).gradient(batch(0));
    const full = bank.gradients.slice();
    bank.zeroGrad();
    const part = await policies(bank).gradient(batch(skipBelow));
    const off = norm(bank.gradients.map((g, j) => g - full[j]));
    // Σ over the skipped rows of γ ‖their gradient‖ is below threshold × Σ ‖gradient‖.
    let bound = 0;
    rows.forEach((own, i) => {
      own.forEach((g, k) => {
        bound += (skipBelow * groups[i].weight * norm(g)) / (totalWeight * [0.5, 0.3, 0.2][k]);
      });
    });
    expect(off).toBeGreaterThan(0);
    expect(off).toBeLessThan(bound);
    expect(part.tokens).toBeLessThan(0.8 * whole.tokens);
    expect(part.rewards.flat().filter((r) => r === null).length).toBe(7);
    bank.zeroGrad();
    const all = await policies(bank).gradient(batch(skipBelow, true));
    expect(all.rewards.flat().every((r) => r !== null)).toBe(true);
    expect(norm(bank.gradients.map((g, j) => g - full[j]))).toBeLessThan(bound);
  });

  it('sees rows as the E-step does', async () => {
    const bank = randomBank(model, ['type_1', 'type_2', 'type_3']);
    const p = policies(bank);
    const votes = await p.votes(groups);
    const { rewards } = await p.gradient(batch(0.5, true));
    votes.forEach((vote, i) => {
      vote.rewards.forEach((own, k) => {
        own.forEach((r, c) => {
          expect(rewards[i][k]![c]).toBeCloseTo(r, 5);
        });
      });
    });
    expect(votes[6].stages).toBe(2);
    expect(votes[6].rewards[0]).toHaveLength(3);
  });

  it('a type that starts again is a copy of another, and its optimizer has made no step', async () => {
    const bank = randomBank(model, ['type_1', 'type_2', 'type_3']);
    await policies(bank).gradient(batch(0));
    await bank.step({ learningRate: 0.1, beta1: 0.9, beta2: 0.99, eps: 1e-8, weightDecay: 0, maxGradNorm: null });
    copyAdapter(bank, 0, 2);
    const [from, to, other] = ['type_1', 'type_3', 'type_2'].map((name) => bank.materialise(name));
    for (const [name, { data: values }] of from) {
      expect(to.get(name)!.data).toEqual(values);
      expect(other.get(name)!.data).not.toEqual(values);
    }
    expect([...bank.steps].filter((s) => s === 0)).toHaveLength(bank.steps.length / 3);
  });
});

/** Asks for a stop as the n-th pass over a pack or step of the optimizer begins, until mocks are restored. */
function stopAt(n: number): AbortSignal {
  const controller = new AbortController();
  let seen = 0;
  const count = () => {
    if (++seen === n) controller.abort();
  };
  const { score } = Model.prototype;
  vi.spyOn(Model.prototype, 'score').mockImplementation(function (this: Model, ...given) {
    count();
    return score.apply(this, given);
  });
  const { step } = Bank.prototype;
  vi.spyOn(Bank.prototype, 'step').mockImplementation(function (this: Bank, ...given) {
    count();
    return step.apply(this, given);
  });
  return controller.signal;
}

describe('resuming', () => {
  it.each([
    ['exact', { e_step: 'exact', rounds: 3 }],
    ['incremental', { e_step: 'incremental', rounds: 3, m_epochs: 2 }],
    ['in folds, restarted, with restarts', { folds: 2, restart: true, restarts: 2, rounds: 2, init: 'random' }],
    ['over several numbers of types', { types: [1, 2], rounds: 1 }],
  ])('an interrupted run ends with the bytes of one that was not: %s', async (_, em) => {
    // An odd number of annotators: shares of one half each would hide a share that is lost.
    const odd = { train: writeRows(path('odd.jsonl'), plantedRows(11, 7)) };
    const whole = next();
    await fit(configOf(whole, { em, data: odd }));
    const run = next();
    let stops = 0;
    for (; ; stops++) {
      const stop = stopAt(4 + 7 * stops);
      try {
        const summary = await fit(configOf(run, { em, data: odd }), { stop, resume: true });
        if (summary.finished) break;
      } catch (error) {
        expect(error).toMatchObject({ code: 'ABORTED' });
      } finally {
        vi.restoreAllMocks();
      }
    }
    expect(stops).toBeGreaterThan(1);
    for (const file of [
      'metrics.jsonl',
      'responsibilities.csv',
      'adapter/type_1/adapter_model.safetensors',
      ...('types' in em ? [] : ['adapter/type_2/adapter_model.safetensors']),
    ])
      expect(readFileSync(`${run}/${file}`).equals(readFileSync(`${whole}/${file}`)), file).toBe(true);
  });
});

describe('bad input', () => {
  const plain = (rows: Row[]) => ({ data: { train: writeRows(path(`bad-${count++}.jsonl`), rows), eval: null } });

  it('refuses more types than annotators, and leaves no folder', async () => {
    const run = next();
    await refuses(() => fit(configOf(run, { em: { types: 11 } })), 'BAD_CONFIG', /em\.types: found 11.*annotators, 10/);
    expect(existsSync(run)).toBe(false);
  });

  it('refuses a vote of nobody, naming the row', async () => {
    const rows = plantedRows();
    delete rows[3].annotator;
    await refuses(() => fit(configOf(next(), plain(rows))), 'BAD_DATA', /jsonl:4: field "annotator"/);
  });

  it('takes annotators with one vote, and says that they tell little', async () => {
    const notes: string[] = [];
    const rows = plantedRows().filter((_, i) => i >= 7);
    const summary = await fit(configOf(next(), { ...plain(rows), em: { rounds: 1, compare_one: false } }), {
      onNote: (text) => notes.push(text),
    });
    expect(notes.join('\n')).toMatch(/1 of 10 annotators have one vote/);
    expect(summary.finished).toBe(true);
  });

  it('says that one type is enough where all annotators are alike', async () => {
    const alike = (votes: number) => plantedRows(20, votes).filter((row) => row.group === 'taste-0');
    const notes: string[] = [];
    const files = {
      train: writeRows(path('alike.jsonl'), alike(8)),
      eval: writeRows(path('alike-held.jsonl'), alike(4)),
    };
    const summary = await fit(configOf(next(), { data: files }), { onNote: (text) => notes.push(text) });
    expect(summary.em.one_type_is_enough).toBe(true);
    expect(notes.join('\n')).toMatch(/one type is enough/);
  });

  it('refuses responsibilities of names without votes, and of another number of types', async () => {
    const init = path('start.csv');
    const line = (u: number) => `u${u},${u % 2},${1 - (u % 2)}`;
    const names = Array.from({ length: 10 }, (_, u) => u);
    writeFileSync(init, ['annotator,type_1,type_2', ...names.map(line), 'nobody,1,0'].join('\n'));
    await refuses(
      () => fit(configOf(next(), { em: { init } })),
      'BAD_DATA',
      /1 names have no votes, the first "nobody"/,
    );
    writeFileSync(init, ['annotator,type_1,type_2', ...names.slice(1).map(line)].join('\n'));
    await refuses(
      () => fit(configOf(next(), { em: { init } })),
      'BAD_DATA',
      /1 annotators have no line, the first "u0"/,
    );
    await refuses(() => fit(configOf(next(), { em: { init, types: 3 } })), 'BAD_CONFIG', /found 2 types, expected 3/);
    writeFileSync(init, ['annotator,type_1,type_2', ...names.map(line)].join('\n'));
    const summary = await fit(configOf(next(), { em: { init, rounds: 1, compare_one: false } }));
    expect(summary.em.adjusted_rand_index).toBe(1);
  });

  it('starts an empty type again, and says so', async () => {
    const init = path('empty.csv');
    const names = Array.from({ length: 10 }, (_, u) => `u${u},1,0,0`);
    writeFileSync(init, ['annotator,type_1,type_2,type_3', ...names].join('\n'));
    const notes: string[] = [];
    const run = next();
    await fit(configOf(run, { em: { init, types: 3, rounds: 3, hard: true, compare_one: false } }), {
      onNote: (text) => notes.push(text),
    });
    expect(notes.join('\n')).toMatch(/type \d lost all annotators in round 1 and was started again/);
    expect(roundsOf(run)[0].reseeded).toBe(2);
  });

  it.each([
    [{ loss: { label_smoothing: 0.1 } }, /loss\.label_smoothing.*no likelihood/s],
    [{ loss: { type: 'ipo' } }, /ipo is no loss of method em-dpo/],
    [{ loss: { use_weighting: true } }, /loss\.use_weighting/],
    [{ train: { steps: 5 } }, /train\.steps.*em\.rounds/],
    [{ train: { epochs: 7 } }, /train\.epochs: found 7, but em\.rounds × em\.m_epochs are 3/],
    [{ em: { folds: 2, e_step: 'incremental' } }, /em\.e_step/],
  ])('refuses %o', async (changes, message) => {
    const ended = await program('train', writeConfig(path('bad.yaml'), configOf(next(), changes)), '--json');
    expect(ended.status).toBe(2);
    expect(ended.stderr).toMatch(message);
  });
});
