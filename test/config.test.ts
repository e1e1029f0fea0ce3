import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { homedir, tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { afterAll, describe, expect, test } from 'vitest';
import { mayChangeOnResume } from '../lib/config/compare.js';
import {
  configDifferences,
  configToYaml,
  editDistance,
  isRunConfig,
  loadConfig,
  lossTypes,
  nearest,
  resolveConfig,
} from '../lib/config/index.js';
import { knownPaths } from '../lib/config/problems.js';
import { pairLossTypes, type RankingLossType, unpairedLossTypes } from '../lib/losses/index.js';
import type { PluralignError } from '../lib/native/errors.js';

const dir = mkdtempSync(join(tmpdir(), 'pluralign-config-'));
afterAll(() => rmSync(dir, { recursive: true, force: true }));

const minimal = `method: dpo
model: models/llama
data:
  train: rows.jsonl
output: runs/one
`;

function load(text: string, sets: string[] = [], output?: string) {
  const file = join(dir, 'config.yaml');
  writeFileSync(file, text);
  return loadConfig(file, sets, { output });
}

function failure(text: string, sets: string[] = []): string {
  try {
    load(text, sets);
  } catch (error) {
    expect((error as PluralignError).code).toBe('BAD_CONFIG');
    return (error as Error).message.replaceAll(`${dir}/`, '');
  }
  throw new Error('the configuration was taken');
}

describe('defaults and paths', () => {
  test('a minimal configuration is completed', () => {
    const config = load(minimal);
    expect(config).toMatchObject({
      method: 'dpo',
      model: join(dir, 'models/llama'),
      data: {
        train: [join(dir, 'rows.jsonl')],
        eval: null,
        max_length: 1024,
        over_length: 'drop',
        on_bad_row: 'error',
      },
      adapter: { r: 16, alpha: 32, targets: 'all-linear', dropout: 0, init_from: null, share: 'none' },
      loss: { type: [{ type: 'sigmoid', weight: 1 }], beta: 0.1, reference: 'base', cache_reference: true },
      train: {
        epochs: 1,
        steps: null,
        batch_size: 8,
        learning_rate: 1e-4,
        schedule: 'linear',
        warmup: 0,
        weight_decay: 0,
        max_grad_norm: 1,
        dtype: 'auto',
        device: 'auto',
        seed: 0,
        shuffle: true,
        threads: 'auto',
        save_every: 100,
        log_every: 10,
        max_tokens_per_pack: 'auto',
        keep_checkpoints: 3,
      },
      output: join(dir, 'runs/one'),
    });
  });

  test('the whole configuration of the documentation is taken', () => {
    const config = load(`
method: dpo
model: hf:owner/name
data:
  train: [a.jsonl, /abs/b.csv]
  split: { by: annotator, eval: 0.2, seed: 3 }
  max_length: null
  over_length: keep_start
adapter: { r: 8, alpha: 16, targets: [q_proj, v_proj], dropout: 0.1, share: b, rank_pattern: { q_proj: 4 } }
loss: { type: [{ type: sigmoid, weight: 1 }, { type: sft, weight: 0.2 }, hinge], beta: 0.2, reference: other }
train:
  steps: 20
  learning_rate: 1e-4
  eps: 1E-9
  max_grad_norm: null
  dtype: bf16
  threads: 2
  early_stopping: { metric: eval_rewards/accuracies }
output: ~/runs/x
`);
    expect(config.model).toBe('hf:owner/name');
    expect(config.data.train).toEqual([join(dir, 'a.jsonl'), '/abs/b.csv']);
    expect(config.data.split).toEqual({ by: 'annotator', eval: 0.2, seed: 3 });
    expect(config.loss.type.map((term) => term.weight)).toEqual([1, 0.2, 1]);
    expect(config.loss.reference).toBe(join(dir, 'other'));
    expect(config.train).toMatchObject({
      steps: 20,
      epochs: null,
      learning_rate: 0.0001,
      eps: 1e-9,
      max_grad_norm: null,
    });
    expect(config.train.early_stopping).toEqual({ metric: 'eval_rewards/accuracies', patience: 3, mode: 'max' });
    expect(config.output).toBe(join(homedir(), 'runs/x'));
  });

  test('beside init_from, what is not given is left to the folder', () => {
    const adapter = load(`${minimal}adapter: { init_from: a, r: 4 }\n`).adapter;
    expect(adapter).toMatchObject({ r: 4, alpha: null, targets: null, init_from: join(dir, 'a') });
  });

  test('each method has its loss, and pretrain trains all weights', () => {
    expect(load(minimal.replace('dpo', 'reward')).loss.type[0].type).toBe('bradley_terry');
    const text = `method: pretrain\ndata: { train: x.jsonl }\npretrain: { tokenizer: t, hidden_size: 64 }\noutput: o\n`;
    const config = load(text);
    expect(config).toMatchObject({
      adapter: 'full',
      model: null,
      pretrain: { tokenizer: join(dir, 't'), hidden_size: 64 },
    });
  });

  test('the command line names the output from the working folder', () => {
    expect(load(minimal, [], 'elsewhere').output).toBe(resolve('elsewhere'));
    expect(load(minimal.replace(/output.*\n/, ''), [], '/abs').output).toBe('/abs');
    expect(failure(minimal.replace(/output.*\n/, ''))).toBe(
      'config.yaml: output: found nothing, expected a folder for the run; or give --output',
    );
  });
});

describe('--set', () => {
  test('values are YAML, sections come into being', () => {
    const config = load(minimal, [
      'train.learning_rate=1e-4',
      'train.max_grad_norm=null',
      'data.train=[x.jsonl, y.jsonl]',
      'loss.type=ipo',
      'data.split.by=annotator',
      'adapter=full',
    ]);
    expect(config.train).toMatchObject({ learning_rate: 0.0001, max_grad_norm: null });
    expect(config.data.train).toEqual([join(dir, 'x.jsonl'), join(dir, 'y.jsonl')]);
    expect(config).toMatchObject({ adapter: 'full', loss: { type: [{ type: 'ipo', weight: 1 }] } });
    expect(config.data.split?.by).toBe('annotator');
  });

  test('takes the place of the other way to say it', () => {
    const text = `${minimal}train: { epochs: 3 }\n`;
    expect(load(text, ['train.steps=5']).train).toMatchObject({ steps: 5, epochs: null });
    expect(load(text, ['train.steps=null']).train).toMatchObject({ steps: null, epochs: 3 });
    expect(failure(text, ['train.steps=5', 'train.epochs=1'])).toContain('train.epochs is given too');
    const split = minimal.replace('  train: rows.jsonl', '  train: rows.jsonl\n  split: { by: prompt }');
    expect(load(split, ['data.eval=e.jsonl']).data).toMatchObject({ split: null, eval: [join(dir, 'e.jsonl')] });
  });

  test('errors name the option', () => {
    expect(failure(minimal, ['train.stpes=3'])).toBe(
      '--set train.stpes=3: train.stpes: unknown key; did you mean train.steps?',
    );
    expect(failure(minimal, ['train.steps'])).toContain('expected key.path=value');
    expect(failure(minimal, ['=3'])).toContain('expected key.path=value');
    expect(failure(minimal, ['train.steps=[1'])).toContain('--set train.steps=[1:1:3: not valid YAML');
    expect(failure(`${minimal}adapter: full\n`, ['adapter.r=8'])).toContain('adapter is "full", which has no keys');
    expect(failure(minimal, ['__proto__.x=1'])).toContain('unknown key');
    expect(({} as { x?: number }).x).toBeUndefined();
  });
});

describe('what is refused', () => {
  const cases: [name: string, text: string, message: string][] = [
    [
      'unknown key',
      `${minimal}train: { learnig_rate: 1 }`,
      'config.yaml:6: train.learnig_rate: unknown key; did you mean train.learning_rate?',
    ],
    [
      'key of another section',
      `${minimal}learning_rate: 1`,
      'config.yaml:6: learning_rate: unknown key; did you mean train.learning_rate?',
    ],
    [
      "another trainer's key",
      `${minimal}train:\n  lr: 1`,
      'config.yaml:7: train.lr: unknown key; did you mean train.learning_rate?',
    ],
    [
      'key in a list',
      `${minimal}loss:\n  type:\n    - { type: sft, weigth: 1 }`,
      'config.yaml:8: loss.type[0].weigth: unknown key; did you mean loss.type[0].weight?',
    ],
    ['nothing near', `${minimal}zzzzzzzz: 1`, 'config.yaml:6: zzzzzzzz: unknown key'],
    [
      'wrong type',
      `${minimal}train: { learning_rate: fast }`,
      'config.yaml:6: train.learning_rate: found "fast", expected a number of at least 0',
    ],
    [
      'YAML 1.1 truth',
      `${minimal}train: { shuffle: yes }`,
      'config.yaml:6: train.shuffle: found "yes", expected true or false',
    ],
    [
      'fraction',
      `${minimal}train: { batch_size: 1.5 }`,
      'config.yaml:6: train.batch_size: found 1.5, expected a whole number of at least 1',
    ],
    [
      'not a number',
      `${minimal}train: { learning_rate: .nan }`,
      'config.yaml:6: train.learning_rate: found NaN, expected a number of at least 0',
    ],
    [
      'choice',
      `${minimal}train: { schedule: cosin }`,
      'config.yaml:6: train.schedule: found "cosin", expected one of constant, cosine, linear; did you mean cosine?',
    ],
    ['empty section', `${minimal}train:\n`, 'config.yaml:6: train: found null, expected a mapping'],
    [
      'missing',
      minimal.replace('  train: rows.jsonl', '  eval: x'),
      'config.yaml:3: data.train: found nothing, expected a path or a list of paths',
    ],
    [
      'empty list',
      minimal.replace('rows.jsonl', '[]'),
      'config.yaml:4: data.train: found [], expected a path or a list of paths',
    ],
    [
      'no model',
      minimal.replace(/model.*\n/, ''),
      'config.yaml: model: found nothing, expected a folder or hf:owner/name',
    ],
    [
      'both lengths',
      `${minimal}train: { epochs: 1, steps: 2 }`,
      'config.yaml:6: train.steps: train.epochs is given too; give one of them',
    ],
    [
      'no init_from',
      `${minimal}loss: { reference: init_from }`,
      'config.yaml:6: loss.reference: is init_from, but adapter.init_from is not given',
    ],
    [
      'nothing to evaluate',
      `${minimal}train: { early_stopping: {} }`,
      'config.yaml:6: train.early_stopping: nothing to evaluate on; give data.eval or data.split',
    ],
    [
      'nothing to evaluate every so often',
      `${minimal}train: { eval_every: 5 }`,
      'config.yaml:6: train.eval_every: nothing to evaluate on; give data.eval or data.split',
    ],
    [
      'evaluations of EM',
      `${minimal.replace('method: dpo', 'method: em-dpo')}train: { eval_every: 5 }`,
      'config.yaml:6: train.eval_every: is not for em-dpo, which evaluates once, after its last round',
    ],
    [
      "another method's block",
      `${minimal}pretrain: { tokenizer: t }`,
      'config.yaml:6: pretrain: belongs to method pretrain, but the method is dpo',
    ],
    [
      'a key of another loss',
      `${minimal}loss: { type: ipo, label_smoothing: 0.1 }`,
      'config.yaml:6: loss.label_smoothing: belongs to loss.type sigmoid, robust, exo_pair, ',
    ],
    ["a reward model's key", `${minimal}loss: { margin: 1 }`, 'config.yaml:6: loss.margin: belongs to method reward'],
    [
      'a floor of a constant rate',
      `${minimal}train: { schedule: constant, min_learning_rate_ratio: 0.1 }`,
      'config.yaml:6: train.min_learning_rate_ratio: belongs to train.schedule: linear or cosine',
    ],
    [
      'nobody to be generic for',
      `${minimal}adapter: { generic: 0.5 }`,
      'config.yaml:6: adapter.generic: needs adapter.per: annotator',
    ],
    [
      'a loss as a method',
      minimal.replace('dpo', 'kto'),
      'config.yaml:1: method: found "kto", expected one of pretrain, sft, dpo, reward, em-dpo, em-reward, rloo, grpo, reinforce++, ppo, soups; kto is a loss of dpo: write loss.type: kto',
    ],
    ['the seed', `${minimal}seed: 3`, 'config.yaml:6: seed: unknown key; did you mean train.seed?'],
    ["PEFT's block", `${minimal}lora: { r: 3 }`, 'config.yaml:6: lora: unknown key; did you mean adapter?'],
    ['a list', '- 1', 'config.yaml: found [1], expected a mapping'],
    ['doubled key', `${minimal}output: x`, 'config.yaml:6:1: not valid YAML: Map keys must be unique'],
    [
      'loss of another method',
      `${minimal.replace('dpo', 'sft')}loss: { type: ipo }`,
      'config.yaml:6: loss.type: ipo is no loss of method sft; expected sft',
    ],
    [
      'smoothing that a loss needs',
      `${minimal}loss: { type: [sigmoid, exo_pair] }`,
      'config.yaml:6: loss.type: exo_pair needs loss.label_smoothing above 0',
    ],
    ['broken YAML', 'method: [dpo', 'config.yaml:1:13: not valid YAML'],
  ];
  test.each(cases)('%s', (_, text, message) => {
    const found = failure(text);
    expect(found.startsWith(message), found).toBe(true);
  });

  test('a wrong loss suggests the nearest', () => {
    expect(failure(minimal, ['loss.type=sigmoyd'])).toMatch(
      /found "sigmoyd", expected a loss .*did you mean sigmoid\?$/,
    );
  });

  test('everything wrong is said at once', () => {
    expect(failure(`${minimal}train: { batch_size: 0, seed: -1, lr: 1 }`).split('\n')).toHaveLength(3);
  });

  test('no file', () => {
    expect(() => loadConfig(join(dir, 'none.yaml'))).toThrow(/none\.yaml: no such file/);
  });

  test('an empty file misses everything', () => {
    expect(failure('')).toContain('method: found nothing, expected one of pretrain, sft, dpo, reward');
  });
});

describe('the resolved configuration', () => {
  test('what came to be refused since does not make a run unreadable', () => {
    const text = configToYaml(load(minimal));
    const changed = text.replace('simpo_gamma: 0.5', 'simpo_gamma: 0.7');
    expect(changed).not.toBe(text);
    expect(load(changed).loss.simpo_gamma).toBe(0.7);
    expect(failure(changed.replace(/^#.*\n/, ''))).toContain('loss.simpo_gamma: belongs to loss.type simpo');
  });

  test('is read back from its YAML as it was', () => {
    const config = load(
      `${minimal}train: { eps: 1e-9, learning_rate: 3.3e-7, steps: 7 }\nloss: { type: [ipo, sft] }\n`,
    );
    const text = configToYaml(config);
    expect(isRunConfig(text)).toBe(true);
    expect(isRunConfig(minimal)).toBe(false);
    expect(load(text)).toEqual(config);
    expect(resolveConfig(config)).toEqual(config);
  });

  test('a value from a script is checked the same way', () => {
    const config = resolveConfig(
      { method: 'sft', model: 'm', data: { train: 'x.jsonl' }, output: 'o' },
      { base: '/b' },
    );
    expect(config).toMatchObject({ model: '/b/m', output: '/b/o', loss: { type: [{ type: 'sft' }] } });
    // @ts-expect-error: a wrong key is a type error as well.
    const wrong = () => resolveConfig({ method: 'sft', model: 'm', data: { train: 'x', evall: 'y' }, output: 'o' });
    expect(wrong).toThrow('configuration: data.evall: unknown key; did you mean data.eval?');
  });

  test('knows what a resumed run may change', () => {
    const before = load(`${minimal}train: { steps: 5, schedule: constant }`);
    const after = load(`${minimal}train: { steps: 9, schedule: constant, save_every: 3, learning_rate: 1e-3 }`);
    const differences = configDifferences(before, after);
    expect(differences.map(({ path }) => path)).toEqual(['train.steps', 'train.learning_rate', 'train.save_every']);
    expect(differences.map((difference) => mayChangeOnResume(difference, after))).toEqual([true, false, true]);
    const linear = { ...after, train: { ...after.train, schedule: 'linear' as const } };
    expect(mayChangeOnResume(differences[0], linear)).toBe(false);
  });
});

test('edit distance counts a swap once', () => {
  expect(editDistance('kitten', 'sitting')).toBe(3);
  expect(editDistance('stpes', 'steps')).toBe(1);
  expect(editDistance('', 'abc')).toBe(3);
  expect(nearest('Batch-Size', ['batch_size', 'beta1'])).toBe('batch_size');
  expect(nearest('qqqq', ['batch_size', 'beta1'])).toBeUndefined();
});

test('every loss there is can be configured', () => {
  const ranking: Record<RankingLossType, true> = { plackett_luce: true, best: true, s_dpo: true, lipo: true };
  const known = [
    ...Object.keys(pairLossTypes),
    ...Object.keys(ranking),
    ...Object.keys(unpairedLossTypes),
    'bradley_terry',
  ];
  expect([...lossTypes].sort()).toEqual(known.sort());
});

test('known paths reach into sections, nulls, unions and lists', () => {
  const paths = knownPaths();
  for (const path of [
    'method',
    'data.split.by',
    'adapter.r',
    'loss.type.weight',
    'train.early_stopping.patience',
    'pretrain.hidden_size',
  ]) {
    expect(paths).toContain(path);
  }
});
