// What `pluralign train` and its fellows say to bad input: status 2, a message that names the place, and nothing left behind.
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import fsPromises from 'node:fs/promises';
import { syncBuiltinESMExports } from 'node:module';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import type { Config } from '../lib/config/index.js';
import { checkpointSteps, loadLatestCheckpoint } from '../lib/training/checkpoint.js';
import { train } from '../lib/training/train.js';
import { config, expectBad, expectRefused, f, file, output, path } from './support/refusals.js';
import { buildProgram, child, fixture, program, trained, writeConfig, writeRows } from './support/runs.js';

describe('a configuration', () => {
  const refuse = async (text: string, message: RegExp, ...more: string[]) => {
    writeFileSync(file, text);
    expectRefused(await program('train', file, '--json', ...more), message);
    expect(existsSync(output)).toBe(false);
  };
  const good = () => JSON.stringify(config());

  it('that is not there', async () => {
    expectRefused(await program('train', path('no.yaml'), '--json'), /no\.yaml: no such file/);
  });
  it('that is no YAML', () => refuse('method: [dpo', /config\.yaml.*1/));
  it('with an unknown key suggests the nearest', () =>
    refuse(
      `method: dpo\nmodel: m\ndata: { train: x.jsonl }\ntrain:\n  learning_rat: 1\noutput: ${output}\n`,
      /config\.yaml:5: train\.learning_rat.*learning_rate/,
    ));
  it('with values of another kind, all at once', () =>
    refuse(
      `method: dpo\nmodel: m\ndata: { train: x.jsonl }\nloss: { type: sigmoyd, beta: -1 }\ntrain: { batch_size: 2.5 }\noutput: ${output}\n`,
      /config\.yaml:4: loss\.type.*sigmoyd[\s\S]*config\.yaml:4: loss\.beta.*-1.*above 0[\s\S]*config\.yaml:5: train\.batch_size.*2\.5.*whole number/,
    ));
  it('with an unknown key in --set', () =>
    refuse(good(), /train\.bath_size.*batch_size/, '--set', 'train.bath_size=2'));
  it('with early stopping and nothing to evaluate', () =>
    refuse(good(), /early_stopping.*nothing to evaluate on/, '--set', 'train.early_stopping={}'));
  it('whose reference is init_from, without one', () =>
    refuse(
      good(),
      /loss\.reference.*adapter\.init_from is not given/,
      '--set',
      'adapter={r: 2}',
      '--set',
      'loss={reference: init_from}',
    ));
  it('whose reference is not there', () => expectBad({ loss: { reference: path('nowhere') } }, /nowhere/));
  it('whose reference has another vocabulary', async () => {
    const pretrain = {
      tokenizer: f.model,
      vocab_size: 300,
      hidden_size: 16,
      num_hidden_layers: 1,
      num_attention_heads: 2,
    };
    const data = { train: writeRows(path('text.jsonl'), [{ text: 'old red wind' }]) };
    const other = await train({ method: 'pretrain', pretrain, data, output: path('other') }, { quiet: true });
    const reference = other.paths.model!;
    await expectBad({ loss: { reference } }, /loss\.reference: .* has a vocabulary of 300, the model 280/);
  });
});

describe('data', () => {
  const good = f.rows;
  const rows = (...lines: (object | string)[]) => {
    const name = path('rows.jsonl');
    writeFileSync(name, lines.map((l) => `${typeof l === 'string' ? l : JSON.stringify(l)}\n`).join(''));
    return name;
  };
  const ranking = (given: unknown, responses: unknown = ['a', 'b', 'c']) => ({
    prompt: 'x',
    responses,
    ranking: given,
  });

  it.each<[string, (object | string)[], RegExp]>([
    ['of no rows', [], /rows\.jsonl: no rows found; expected at least one row/],
    ['with a line that is no JSON', [good[0], '{"prompt": "x"'], /rows\.jsonl(:|, line )2: malformed JSON/],
    ['with a row that is no object', [good[0], '[1]'], /rows\.jsonl(:|, line )2: .*object/],
    ['without a completion', [good[0], { prompt: 'x', chosen: 'y' }], /rows\.jsonl(:|, line )2: .*rejected/],
    [
      'with a number for a text',
      [good[0], { prompt: 'x', chosen: 1, rejected: 'z' }],
      /rows\.jsonl(:|, line )2: .*"chosen": found 1, expected/,
    ],
    ['with an empty annotator', [{ ...good[0], annotator: '' }], /rows\.jsonl(:|, line )1: .*"annotator"/],
    [
      'with a negative weight',
      [{ ...good[0], weight: -1 }],
      /rows\.jsonl(:|, line )1: .*"weight": found -1, expected a finite number/,
    ],
    [
      'with a ranking that repeats',
      [ranking([0, 1, 1])],
      /rows\.jsonl(:|, line )1: .*"ranking\[2\]": found 1 a second time, expected indices from 0 to 2/,
    ],
    [
      'with a ranking out of range',
      [ranking([0, 3])],
      /rows\.jsonl(:|, line )1: .*"ranking\[1\]": found 3, expected indices from 0 to 2/,
    ],
    [
      'with a ranking below range',
      [ranking([-1, 0])],
      /rows\.jsonl(:|, line )1: .*"ranking\[0\]": found -1, expected indices/,
    ],
    ['with an empty ranking', [ranking([])], /rows\.jsonl(:|, line )1: .*"ranking"/],
    ['with one response', [ranking([0], ['a'])], /rows\.jsonl(:|, line )1: .*"responses"/],
    [
      'with a conversation, without a chat template',
      [
        {
          prompt: [{ role: 'user', content: 'x' }],
          chosen: [{ role: 'assistant', content: 'y' }],
          rejected: [{ role: 'assistant', content: 'z' }],
        },
      ],
      /rows\.jsonl(:|, line )1: .*chat template/,
    ],
    ['with rows of another method', [{ text: 'x' }], /rows\.jsonl(:|, line )1: found a text row.*expected a pair/],
  ])('%s', (_, lines, message) => expectBad({ data: { train: rows(...lines) } }, message));

  it('that are not there', () => expectBad({ data: { train: path('no.jsonl') } }, /no\.jsonl/));
  it('that are not there for evaluation', () => expectBad({ data: { eval: path('no.jsonl') } }, /no\.jsonl/));
  it('of an unknown kind of file', () =>
    expectBad({ data: { train: file } }, /config\.yaml.*\.jsonl, \.json, \.csv, \.parquet/));
  it('that are all too long', () => expectBad({ data: { max_length: 2 } }, /none of 6 rows is left.*max_length/s));
  it('with a row that is too long, where that is an error', () =>
    expectBad({ data: { max_length: 12, over_length: 'error' } }, /prefs\.jsonl.*expected at most max_length 12/));
  it('with rows without an annotator, to be split by annotator', () => {
    const train = rows(...good.map(({ annotator, ...row }, i) => (i === 4 ? row : { ...row, annotator })));
    return expectBad(
      { data: { train, split: { by: 'annotator', eval: 0.3 } } },
      /rows\.jsonl(:|, line )5: field "annotator": found nothing/,
    );
  });
  it('of one annotator, to be split by annotator', () => {
    const train = rows(...good.map((row) => ({ ...row, annotator: 'u' })));
    return expectBad({ data: { train, split: { by: 'annotator', eval: 0.3 } } }, /only one annotator in 6 rows/);
  });
  it('of an annotator who has no row left says so', async () => {
    const train = rows(...good, { ...good[0], chosen: ' and'.repeat(60), annotator: 'wordy' });
    const ended = await program('train', writeConfig(file, config({ data: { train, max_length: 50 } })), '--json');
    expect(ended.stderr).toMatch(/1 annotators have no row left: "wordy"/);
    expect(ended.status).toBe(0);
  });
  it('with bad rows that may be skipped are counted', async () => {
    const train = rows(good[0], '{', { prompt: 'x' }, good[1]);
    const ended = await program('train', writeConfig(file, config({ data: { train, on_bad_row: 'skip' } })), '--json');
    expect(ended.status).toBe(0);
    expect(ended.stderr).toMatch(/2 of 4 rows were left out as malformed; the first: .*rows\.jsonl.*2/);
    expect(JSON.parse(ended.stdout).data.train).toMatchObject({ read: 4, kept: 2, bad: 2 });
  });
});

describe('an output', () => {
  it('that is a file', async () => {
    writeFileSync(output, 'x');
    expectRefused(await program('train', writeConfig(file, config())), /run exists and is no run of this program/);
    expect(readFileSync(output, 'utf8')).toBe('x');
  });
  it('that was there and empty stays', async () => {
    mkdirSync(output);
    expectRefused(await program('train', writeConfig(file, config({ model: path('nowhere') }))), /nowhere/);
    expect(readdirSync(output)).toEqual([]);
  });
  it('of an earlier attempt that did not begin can be used again', async () => {
    await program('train', writeConfig(file, config({ model: path('nowhere') })));
    expect((await program('train', writeConfig(file, config()))).status).toBe(0);
  });
});

describe('a run that fails on its way', () => {
  it('with numbers that are not finite ends with 1, naming rows, its last checkpoint intact', async () => {
    const changes = { train: { steps: 50, batch_size: 2, save_every: 1, learning_rate: 1e30 } };
    const ended = await program('train', writeConfig(file, config(changes)), '--json');
    expect(ended).toMatchObject({ status: 1, stdout: '' });
    expect(ended.stderr).toMatch(/prefs\.jsonl:\d+, .*prefs\.jsonl:\d+.*(not finite|gradient)/);
    expect(ended.stderr).toMatch(/[Ll]ower the learning rate/);
    const checkpoint = await loadLatestCheckpoint(output);
    const values = new Float32Array(checkpoint!.files.get('parameters.f32')! / 4);
    await checkpoint!.readInto('parameters.f32', values);
    expect(values.every(Number.isFinite)).toBe(true);
    expect(readdirSync(output).filter((n) => n === 'adapter' || n.startsWith('.'))).toEqual([]);
    expect(readdirSync(join(output, 'checkpoints')).every((n) => /^step-\d+$/.test(n))).toBe(true);
  });

  it('since the disk is full says so, and can go on', async () => {
    const make = (output: string): Config => ({ ...config({ train: { steps: 6, save_every: 2 } }), output });
    const whole = await trained(make(path('whole')));
    const { open } = fsPromises;
    const full = Object.assign(new Error('ENOSPC: no space left on device, write'), { code: 'ENOSPC' });
    fsPromises.open = (async (...args: Parameters<typeof open>) => {
      if (/staging-step-4.*\/v\.f32$/.test(String(args[0]))) throw full;
      return open(...args);
    }) as typeof open;
    syncBuiltinESMExports();
    try {
      await expect(train(make(output), { quiet: true })).rejects.toMatchObject({
        code: 'IO',
        message: expect.stringMatching(
          /cannot save the checkpoint .*step-4: no space left on the disk.*continue from them with --resume/,
        ),
      });
    } finally {
      fsPromises.open = open;
      syncBuiltinESMExports();
    }
    expect(await checkpointSteps(output)).toEqual([2]);
    expect(readdirSync(join(output, 'checkpoints'))).toEqual(['step-2']);
    expect((await trained(make(output), { resume: true })).bytes).toEqual(whole.bytes);
    expect(readFileSync(join(output, 'metrics.jsonl'))).toEqual(readFileSync(path('whole/metrics.jsonl')));
  });
});

describe('score, eval and generate', () => {
  const long = () => writeRows(path('long.jsonl'), [f.rows[0], { ...f.rows[1], chosen: ' and'.repeat(200) }]);
  const base = () => ['--model', f.model];

  it.each<[string, () => string[], RegExp]>([
    ['a model that is not there', () => ['score', '--model', path('nowhere'), '--data', f.prefs], /nowhere/],
    [
      'an adapter of another base',
      () => ['score', ...base(), '--adapter', fixture('qwen3').adapter, '--data', f.prefs],
      /another base/,
    ],
    ['data that are not there', () => ['score', ...base(), '--data', path('no.jsonl')], /no\.jsonl/],
    [
      'a row that is too long',
      () => ['score', ...base(), '--data', long()],
      /long\.jsonl(:|, line )2: .*max_length 128/,
    ],
    ['a folder that is no run', () => ['score', '--run', f.dir, '--data', f.prefs], /is no run/],
    ['a run that is not there', () => ['eval', '--run', path('none'), '--data', f.prefs], /none: no such folder/],
    [
      'rows without a preference',
      () => ['eval', ...base(), '--data', writeRows(path('t.jsonl'), [{ text: 'a b' }])],
      /t\.jsonl(:|, line )1: .*(pairs or rankings|expected)/,
    ],
    [
      'a prompt longer than the model takes',
      () => ['generate', ...base(), '--prompt', ' and'.repeat(300)],
      /--prompt has \d+ tokens, the model takes 128/,
    ],
    ['a device that there is not', () => ['generate', ...base(), '--device', 'cuda', '--prompt', 'x'], /cuda/],
    [
      'a reward model asked to speak',
      () => ['generate', '--model', fixture('reward').model, '--adapter', fixture('reward').adapter, '--prompt', 'x'],
      /a reward model does not generate/,
    ],
  ])('refuse %s', async (_, argv, message) => {
    expectRefused(await program(...argv(), '--json'), message);
  });

  it('refuse a run that is not finished', async () => {
    const stop = AbortSignal.timeout(150);
    const changes = { train: { steps: 1000000, save_every: 10 } };
    await train(config(changes), { quiet: true, stop }).catch(() => {});
    expectRefused(
      await program('score', '--run', output, '--data', f.prefs),
      /has no adapter yet: the run is not finished/,
    );
  });

  it('refuse a name that two adapters have', async () => {
    await trained(config());
    const argv = ['score', '--run', output, '--adapter', f.adapter, '--data', f.prefs];
    expectRefused(await program(...argv), /adapter/);
  });
});

it('the installed program ends with 2 and leaves stdout alone', async () => {
  buildProgram();
  const ended = await child('train', writeConfig(file, config({ model: path('nowhere') })), '--json').ended;
  expectRefused(ended, /nowhere/);
  expect(existsSync(output)).toBe(false);
});
