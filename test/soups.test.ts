// Soups from one configuration: experts, mixes, baselines and combinations, stopped and gone on with.
import { existsSync, readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { generateCommand } from '../lib/api/generate.js';
import { Random } from '../lib/base/random.js';
import { type Config, resolveConfig } from '../lib/config/index.js';
import { escapeHtml } from '../lib/report/html.js';
import { compareOn } from '../lib/soups/combinations.js';
import type { Evaluated } from '../lib/soups/points.js';
import type { SoupsResult } from '../lib/soups/train.js';
import { backbone, backboneWeights, combinationsOf, weightsName } from '../lib/soups/wishes.js';
import { type TrainOptions, train } from '../lib/training/train.js';
import { fixture, scratch, writeRows } from './support/runs.js';
import { tinySoups, tinySteps } from './support/soups.js';

const { path } = scratch();
const f = fixture('mistral');
let count = 0;
const next = () => path(`soups-${count++}`);
const prompts = writeRows(
  path('prompts.jsonl'),
  f.rows.map(({ prompt }) => ({ prompt })),
);
const wishes: NonNullable<Config['soups']>['wishes'] = [
  { name: 'long', dimension: 'size', rewards: [{ type: 'length', unit: 'characters' }], prompt: ' Long.' },
  {
    name: 'short',
    dimension: 'size',
    rewards: [{ type: 'length', unit: 'characters', weight: -1 }],
    prompt: ' Short.',
  },
  { name: 'a', dimension: 'letter', rewards: [{ type: 'pattern', pattern: '[a-m]', count: true }], prompt: ' A.' },
  { name: 'z', dimension: 'letter', rewards: [{ type: 'pattern', pattern: '[n-z]', count: true }], prompt: ' Z.' },
];
const config = (
  output: string,
  soups: Partial<NonNullable<Config['soups']>> = {},
  more: Partial<Config> = {},
): Config => ({
  ...tinySoups(prompts),
  train: { ...tinySteps, steps: 2, learning_rate: 0.02, log_every: 1 },
  soups: { wishes, grid: 2, merges: ['cat', 'svd', 'factor_average', 'ties'], sums: [1, 1.5], ...soups },
  output,
  ...more,
});
const quiet = (given: Config, options: TrainOptions = {}) => train(given, { quiet: true, ...options });
const resultOf = (run: string) => JSON.parse(readFileSync(`${run}/soups.json`, 'utf8')) as SoupsResult;

describe('wishes', () => {
  it('backbones and their coefficients give the weights back', () => {
    for (const weights of [
      [0.3, 0.7],
      [0.2, 0.3, 0.5],
      [1, 0, 0],
    ]) {
      const lambda = backboneWeights(weights, 0.7);
      const back = weights.map((_, i) =>
        lambda.reduce((sum, l, j) => sum + l * backbone(j, weights.length, 0.7)[i], 0),
      );
      back.forEach((w, i) => {
        expect(w).toBeCloseTo(weights[i], 12);
      });
      expect(backbone(0, weights.length, 0.7).reduce((a, b) => a + b, 0)).toBeCloseTo(1, 12);
    }
  });

  it('combines one wish of each dimension', () => {
    const { soups } = resolveConfig(config(next()));
    expect(combinationsOf(soups!.wishes)).toEqual([
      [0, 2],
      [0, 3],
      [1, 2],
      [1, 3],
    ]);
    expect(soups!.front).toEqual(['long', 'a']);
    expect(weightsName(['x', 'y'], [0.25, 0])).toBe('x0.25');
  });
});

describe('comparing on combinations', () => {
  it('draws prompts with all of their answers: saying an answer twice says nothing new', () => {
    const { soups } = resolveConfig(config(next()));
    const chosen = combinationsOf(soups!.wishes);
    const random = new Random(4);
    const draw = () => Array.from({ length: 4 }, () => Array.from({ length: 24 }, () => random.below(3)));
    const policies = [draw(), draw()];
    const of = (each: number[][]) => ({ each, objectives: each.map(() => 0) }) as unknown as Evaluated;
    const compared = (times: number) =>
      compareOn(
        soups!.wishes,
        chosen,
        chosen.map(() =>
          policies.map((each, p) => ({
            name: `p${p}`,
            evaluated: of(each.map((values) => values.flatMap((v) => Array.from({ length: times }, () => v)))),
          })),
        ),
        times,
        7,
      ).matrix[0][1]!;
    const [once, thrice] = [compared(1), compared(3)];
    expect(thrice.rate).toBeCloseTo(once.rate, 12);
    thrice.interval.forEach((bound, i) => {
      expect(bound).toBeCloseTo(once.interval[i], 12);
    });
    expect(once.interval[1] - once.interval[0]).toBeGreaterThan(0.05);
  });
});

describe('a run', () => {
  it('trains, mixes, compares and reports, and goes on where it was stopped', async () => {
    const all = config(next(), {
      combinations: true,
      logits: ['reverse-kl', 'forward-kl', 'alpha'],
      baselines: ['prompting', 'sft', 'one_reward', 'p_morl', 'morl', 'backbones'],
    });
    const summary = await quiet(all);
    expect(summary.finished).toBe(true);
    const result = resultOf(all.output!);
    expect(result.fronts.map((front) => front.name)).toEqual([
      'chord',
      'cat',
      'svd',
      'factor_average',
      'ties',
      'logits',
      'logits, forward-kl',
      'logits, alpha',
      'cat, Σw up to 1.5',
      'backbones',
      'morl',
    ]);
    for (const front of result.fronts) {
      expect(front.hypervolume).toBeGreaterThanOrEqual(0);
      expect(front.points.some((p) => p.efficient)).toBe(true);
    }
    // At a one-hot weight every merge is the expert.
    const expert = result.experts.find((e) => e.name === 'long')!;
    for (const name of ['cat', 'svd', 'factor_average', 'logits', 'logits, forward-kl', 'logits, alpha', 'morl']) {
      const front = result.fronts.find((entry) => entry.name === name)!;
      expect(front.points[0].objectives).toEqual([expert.objectives[0], expert.objectives[2]]);
    }
    const { policies, matrix, combinations } = result.combinations!;
    expect(policies).toEqual(['soup', 'base', 'prompting', 'sft', 'one reward', 'P-MORL', 'MORL']);
    expect(combinations).toHaveLength(4);
    policies.forEach((_, a) => {
      policies.forEach((__, b) => {
        if (a !== b) expect(matrix[a][b]!.rate + matrix[b][a]!.rate).toBeCloseTo(1, 12);
        else expect(matrix[a][b]).toBeNull();
      });
    });
    const report = readFileSync(`${all.output}/report.html`, 'utf8');
    for (const text of ['Fronts', 'Experts', 'Who wins', 'Bone-Soup backbones', 'P-MORL', 'logit mixing, forward-kl'])
      expect(report).toContain(text);
    const { answers } = result.samples[0];
    expect(answers.map(({ weights }) => weights)).toEqual(['base', [1, 0], [0.5, 0.5], [0, 1]]);
    for (const text of ['As the weights move', '0.5 long + 0.5 a', answers[2].text])
      expect(report).toContain(escapeHtml(text));
    // What stands below an answer is that answer's worth.
    const points = readFileSync(`${all.output}/points.jsonl`, 'utf8').trim().split('\n');
    const half = points.map((line) => JSON.parse(line)).find((point) => point.id === 'cat long0.5-a0.5') as Evaluated;
    expect(answers[2]).toMatchObject({ text: half.answers[0], objectives: [half.each[0][0], half.each[2][0]] });

    const prompt = f.rows[0].prompt;
    const { samples } = await generateCommand({
      run: all.output!,
      weights: { long: 0.5, a: 0.5, short: 0, z: 0 },
      prompt,
      maxNewTokens: 4,
    });
    expect(samples).toHaveLength(1);

    const again = { ...all, output: next() };
    let stops = 0;
    for (let wait = 60; ; wait += 60) {
      try {
        await quiet(again, { stop: AbortSignal.timeout(wait), resume: true });
        break;
      } catch (error) {
        expect(error).toMatchObject({ code: 'ABORTED' });
        stops++;
      }
    }
    expect(stops).toBeGreaterThan(0);
    expect(resultOf(again.output)).toEqual(result);
  }, 60_000);

  it('refuses another configuration in the same folder', async () => {
    const one = config(next(), { merges: ['cat'], sums: [1] });
    await quiet(one);
    await expect(quiet(one)).rejects.toThrow(/holds a run; continue it with --resume/);
    const other = { ...one, train: { ...one.train, learning_rate: 0.5 } };
    await expect(quiet(other, { resume: true })).rejects.toThrow(/train.learning_rate: was 0.02, now 0.5/);
  });
});

describe('wishes with pairs and no reward', () => {
  const pairs = (name: string, reverse: boolean) =>
    writeRows(
      path(`${name}.jsonl`),
      f.rows.map(({ prompt, chosen, rejected }) => ({
        prompt,
        chosen: reverse ? rejected : chosen,
        rejected: reverse ? chosen : rejected,
      })),
    );
  const own = (output: string): Config => ({
    ...config(output, {
      wishes: [
        { name: 'this', pairs: pairs('this', false) },
        { name: 'that', pairs: pairs('that', true) },
      ],
      merges: ['cat'],
      sums: [1],
      baselines: ['modpo'],
    }),
    loss: { beta: 0.2 },
    train: { steps: 12, batch_size: 6, learning_rate: 0.02, dtype: 'float32', threads: 1 },
  });

  it('train experts by DPO, judge by what those think of an answer, and MODPO between them', async () => {
    const given = own(next());
    await quiet(given);
    const { fronts, experts, base } = resultOf(given.output!);
    expect(fronts.map((front) => front.name)).toEqual(['chord', 'cat', 'modpo']);
    // Opposite pairs: an expert's own answers please it, and the other's please it less.
    for (const [k, expert] of experts.entries()) {
      expect(expert.objectives[k]).toBeGreaterThan(base[k]);
      expect(expert.objectives[k]).toBeGreaterThan(experts[1 - k].objectives[k]);
    }
    for (const name of ['this', 'that']) {
      const summary = JSON.parse(readFileSync(`${given.output}/experts/${name}/summary.json`, 'utf8'));
      expect(summary).toMatchObject({ method: 'dpo', finished: true });
    }
    const middle = readFileSync(`${given.output}/modpo/this0.5-that0.5/config.yaml`, 'utf8');
    expect(middle).toMatch(
      /modpo:\n\s+weight: 0.5\n\s+rewards:\n\s+- adapter: .*experts\/that\/adapter\n\s+weight: 0.5/,
    );
    expect(middle).toMatch(/beta: 0.2/);
  }, 60_000);

  it('go on where they were stopped', async () => {
    const [whole, parts] = [own(next()), own(next())];
    await quiet(whole);
    for (let wait = 40; ; wait += 40) {
      try {
        await quiet(parts, { stop: AbortSignal.timeout(wait), resume: true });
        break;
      } catch (error) {
        expect(error).toMatchObject({ code: 'ABORTED' });
      }
    }
    expect(resultOf(parts.output!)).toEqual(resultOf(whole.output!));
  }, 60_000);
});

describe('refusals before anything is trained', () => {
  const wish = (given: object) => ({ wishes: [{ ...wishes[0], ...given }, wishes[2]] });
  it.each([
    [
      'a wish without reward',
      wish({ rewards: undefined }),
      /soups\.wishes\[0\]\.rewards: found nothing, expected a list of rewards/,
    ],
    [
      'a wish with no reward in its list',
      wish({ rewards: [] }),
      /soups\.wishes\[0\]\.rewards: .*expected at least one reward/,
    ],
    ['MODPO without pairs', { baselines: ['modpo'] }, /soups\.wishes\[0\]\.pairs: found nothing; baseline modpo/],
    ['one wish', { wishes: [wishes[0]] }, /soups\.wishes: .*at least two wishes/],
    ['two wishes of one name', { wishes: [wishes[0], { ...wishes[2], name: 'long' }] }, /two wishes are named long/],
    [
      'a wish that prompting cannot say',
      { ...wish({ prompt: null }), baselines: ['prompting'] },
      /how long is said in a prompt; baseline prompting/,
    ],
    ['a front over no wish', { front: ['long', 'loud'] }, /soups\.front: loud is no wish/],
    ['no such merge', { merges: ['melt'] }, /soups\.merges: "melt" is not known/],
  ] as [string, Partial<NonNullable<Config['soups']>>, RegExp][])('%s', async (_, soups, message) => {
    const given = config(next(), soups);
    await expect(quiet(given)).rejects.toThrow(message);
    expect(existsSync(given.output!)).toBe(false);
  });

  it('evaluations in between on rows that judge the policies at the end', () => {
    const train = { ...config(next()).train, eval_every: 4 };
    expect(() => resolveConfig(config(next(), {}, { train }))).toThrow(
      /train\.eval_every: is not for soups, which judges its policies on data\.eval once/,
    );
    const data = { train: prompts, split: { eval: 0.1 } };
    expect(resolveConfig(config(next(), {}, { data, train })).train.eval_every).toBe(4);
  });

  it('rewards beside wishes, and no prompts to judge on', () => {
    expect(() => resolveConfig(config(next(), {}, { rewards: [{ type: 'length' }] }))).toThrow(
      /rewards: belongs to each of soups/,
    );
    expect(() => resolveConfig(config(next(), {}, { data: { train: prompts } }))).toThrow(/data\.eval: found nothing/);
  });
});
