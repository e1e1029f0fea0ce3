import { mkdtemp, readdir, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { byWorst, wilson } from '../lib/evaluation/wilson.js';
import { annotatorBars, selectBars } from '../lib/report/annotators.js';
import { makeCharts, smooth } from '../lib/report/charts.js';
import { clientScript } from '../lib/report/client.js';
import { escapeHtml, html, scriptJson } from '../lib/report/html.js';
import { writeReport } from '../lib/report/index.js';
import { formatDuration, formatValue } from '../lib/report/numbers.js';
import { parseMetrics } from '../lib/report/read.js';
import { syntheticRun, writeFiles } from './synthetic-run.js';

let root: string;
let count = 0;

beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), 'pluralign-report-'));
});
afterAll(() => rm(root, { recursive: true, force: true }));

async function folder(files: Record<string, string>): Promise<string> {
  const dir = join(root, `run-${count++}`);
  await writeFiles(dir, files);
  return dir;
}

async function render(files: Record<string, string>): Promise<string> {
  return readFile(await writeReport(await folder(files)), 'utf8');
}

function charts(page: string): { title: string; steps: number[]; series: { values: (number | null)[] }[] }[] {
  const json = /<script type="application\/json" id="charts">(.*?)<\/script>/s.exec(page)?.[1];
  return JSON.parse(json ?? 'null');
}

/** The page without its scripts and styles. */
const body = (page: string) => page.replace(/<(script|style)[^>]*>.*?<\/\1>/gs, '');

describe('adapters by annotator', () => {
  const voters = (accuracies: Record<string, number>) => ({
    overall: { accuracy: 0.5 },
    annotators: Object.fromEntries(Object.entries(accuracies).map(([name, accuracy]) => [name, { rows: 9, accuracy }])),
  });
  const summary = (more: object) => ({
    ...syntheticRun(),
    'summary.json': JSON.stringify({ method: 'reward', ...more }),
  });

  it('stand against the generic one, hardest first, names escaped', async () => {
    const own = voters({ '<b>x</b>': 0.2, calm: 0.9, odd: 0.5 });
    const page = body(
      await render(summary({ eval: own, eval_generic: voters({ '<b>x</b>': 0.4, calm: 0.6, odd: 0.5 }) })),
    );
    expect(page).toContain('1 of 3 annotators fare better with their own, 1 worse');
    expect(page).toContain('53.3 % against 50.0 % (+3.3 points)');
    const hard = page.slice(page.indexOf('Hardest voters'));
    expect(hard).toMatch(/&lt;b&gt;x.*−20\.0.*odd.*calm.*\+30\.0/s);
    expect(page.match(/<circle/g)).toHaveLength(3);
  });

  it('whoever was missed often is harder than whoever was missed once', async () => {
    const voted = (own: number) => ({
      annotators: { once: { rows: 1, accuracy: 0 }, often: { rows: 10, accuracy: own } },
    });
    const run = summary({ eval: { overall: { accuracy: 0.3 }, ...voted(0.3) }, eval_generic: voted(0.5) });
    const page = body(await render(run));
    expect(page.slice(page.indexOf('Hardest voters'))).toMatch(/often.*once/s);
    expect(page).toMatch(
      /Worst annotator<\/div><div class="value">30\.0 %<\/div>\s*<div class="sub">10 votes, of 2 annotators/,
    );
    const lines = [{ accuracy: 0, rows: 1 }, {}, { accuracy: 0.3, rows: 10 }, {}].sort(byWorst);
    expect(lines.map((line) => line.rows)).toEqual([10, 1, undefined, undefined]);
  });

  it('leave no section where there are none', async () => {
    expect(body(await render(summary({ eval: voters({ a: 1 }) })))).not.toContain('Hardest voters');
    expect(body(await render(summary({ eval: voters({}), eval_generic: voters({}) })))).not.toContain('Hardest voters');
  });
});

describe('the page of a run', () => {
  it('draws every logged metric and holds everything itself', async () => {
    const dir = await folder(syntheticRun());
    const path = await writeReport(dir);
    expect(path).toBe(join(dir, 'report.html'));
    expect((await readdir(dir)).sort()).toEqual(['config.yaml', 'metrics.jsonl', 'report.html', 'summary.json']);
    const page = await readFile(path, 'utf8');
    expect(charts(page).map((c) => c.title)).toEqual([
      ...['Loss', 'Accuracy', 'Margin', 'Rewards', 'Log-probabilities', 'Gradient norm', 'Learning rate'],
      ...['Accuracy', 'Log likelihood', 'Margin', 'Loss'],
      'tokens_per_second',
    ]);
    const [loss] = charts(page);
    expect(loss.steps).toHaveLength(400);
    const logged = (syntheticRun()['metrics.jsonl'].split('\n') as string[]).map((l) =>
      l ? JSON.parse(l).loss : undefined,
    );
    expect(loss.series[0].values).toEqual(logged.filter((v) => v !== undefined));
    expect(page).toContain('var uPlot=');
    expect(page).toContain('Copyright (c) 2022 Leon Sorokin');
    const text = body(page);
    expect(text).not.toMatch(/\b(src|href|srcset|action)\s*=|url\(|@import/);
    for (const part of ['74.8 %', '50.3 % before', 'annotator 12', '12 min 34 s', 'over length', '12,480']) {
      expect(text).toContain(part);
    }
    expect(text).toContain('loss: { type: sigmoid');
    expect(text).toContain('Green, like moss after rain.');
    expect(text).toContain('user: Name a colour.');
  });

  it('allows exactly the two scripts it was written with', async () => {
    const page = await render(syntheticRun());
    const policy = /Content-Security-Policy" content="([^"]*)"/.exec(page)?.[1] ?? '';
    expect(policy).toContain('default-src &#39;none&#39;');
    const { createHash } = await import('node:crypto');
    const scripts = [...page.matchAll(/<script>(.*?)<\/script>/gs)].map((m) => m[1]);
    expect(scripts).toHaveLength(2);
    for (const script of scripts) {
      expect(script).not.toContain('\r');
      expect(policy).toContain(createHash('sha256').update(script).digest('base64'));
    }
    expect(() => new Function(scripts[0])).not.toThrow();
    expect(() => new Function(clientScript)).not.toThrow();
  });

  it('escapes names, configuration and samples from the data', async () => {
    const hostile = [
      '<script>alert(1)</script>',
      '"><img src=x onerror=alert(2)>',
      "'};alert(3)//",
      '</title><b>',
      '__proto__',
    ];
    const files = syntheticRun({ annotators: 5, names: hostile });
    const summary = JSON.parse(files['summary.json']);
    summary.samples = [{ prompt: '<i>p</i>', before: '</script><script>alert(4)', after: '\u0000\u001b[31m' }];
    summary.data = { '<u>count</u>': 3 };
    summary.method = '<em>dpo</em>';
    summary.eval.types = { '<s>t</s>': { accuracy: 1 } };
    const line = (step: number) => JSON.stringify({ step, loss: 1, '</script><script>alert(5)</script>': 2 });
    const metrics = `${line(1)}\n${line(2)}\n`;
    const page = await render({
      'metrics.jsonl': metrics,
      'summary.json': JSON.stringify(summary),
      'config.yaml': 'output: "<b>bold</b>"\n',
    });
    expect(page.match(/<script/g)).toHaveLength(3);
    for (const tag of ['<img', '<b>', '<i>p', '<u>', '<em>', '<s>', 'onerror=alert(2)"'])
      expect(page).not.toContain(tag);
    expect(page).toContain('&lt;script&gt;alert(1)&lt;/script&gt;');
    expect(page).toContain('&quot;&gt;&lt;img src=x onerror=alert(2)&gt;');
    expect(page).toContain('__proto__');
    for (const control of ['\u0000', '\u001b']) expect(page).not.toContain(control);
    expect(charts(page).map((c) => c.title)).toContain('</script><script>alert(5)</script>');
  });

  it('draws the 20 with the most votes and the 10 worst of many, and lists all', async () => {
    const page = await render(syntheticRun({ annotators: 60 }));
    expect(page).toContain('All 60 annotators as a table');
    const drawn = page.match(/class="bar-name"/g)?.length ?? 0;
    expect(drawn).toBeGreaterThanOrEqual(20);
    expect(drawn).toBeLessThanOrEqual(30);
    for (let i = 1; i <= 60; i++) expect(page).toContain(`<th scope="row"><bdi>annotator ${i}</bdi>`);
  });

  it('says that all pairs tied before training, and of rows only what there was', async () => {
    const evaluation = (accuracy: number, margin: number) => ({ overall: { rows: 4, accuracy, margin } });
    const page = async (before: object) =>
      body(
        await render({
          'metrics.jsonl': '',
          'summary.json': JSON.stringify({
            method: 'dpo',
            eval_before: before,
            eval: evaluation(0.75, 0.2),
            data: { train: { read: 7, bad: 0, badRows: [], dropped: 3 } },
          }),
        }),
      );
    expect(await page(evaluation(0, 0))).toMatch(/before, all pairs tied.*a tie counts as wrong/s);
    const told = await page(evaluation(0.25, -0.1));
    expect(told).toContain('25.0 % before');
    expect(told).not.toContain('tie');
    expect(told).toMatch(/train · read.*7.*train · dropped.*3/s);
    expect(told).not.toContain('train · bad');
  });

  it('says what is not there', async () => {
    const { 'metrics.jsonl': metrics } = syntheticRun({ steps: 5, evalEvery: 100 });
    const page = body(await render({ 'metrics.jsonl': metrics }));
    expect(page).toContain('No evaluation rows were logged');
    expect(page).toContain('has no summary.json');
    expect(page).toContain('has no config.yaml');
    expect(page).not.toContain('Accuracy by annotator');
    expect(body(await render({ 'metrics.jsonl': '', 'summary.json': '{}' }))).toContain('No logged training steps');
  });

  it('survives a summary whose sections have other types', async () => {
    const summary = {
      train: 3,
      eval: { overall: null, annotators: { a: null, b: { accuracy: 'x' } } },
      data: [1],
      samples: {},
    };
    await expect(render({ 'metrics.jsonl': '', 'summary.json': JSON.stringify(summary) })).resolves.toContain(
      '</html>',
    );
  });
});

describe('a folder that is no run', () => {
  it.each([
    ['an empty one', {}, 'NOT_FOUND', /metrics\.jsonl: not there/],
    [
      'a bad line',
      { 'metrics.jsonl': '{"step":1}\nnope\n{"step":2}\n' },
      'BAD_DATA',
      /metrics\.jsonl:2: expected a JSON object/,
    ],
    ['a line without step', { 'metrics.jsonl': '{"loss":1}\n' }, 'BAD_DATA', /metrics\.jsonl:1: .*'step'/],
    ['a bad summary', { 'metrics.jsonl': '', 'summary.json': '{' }, 'BAD_DATA', /summary\.json: expected JSON/],
    [
      'a summary that is a list',
      { 'metrics.jsonl': '', 'summary.json': '[]' },
      'BAD_DATA',
      /summary\.json: expected a JSON object/,
    ],
  ])('%s', async (_name, files, code, message) => {
    const dir = await folder(files as Record<string, string>);
    await expect(writeReport(dir)).rejects.toMatchObject({ code, message: expect.stringMatching(message) });
    expect(await readdir(dir)).not.toContain('report.html');
  });

  it('that does not exist', async () => {
    await expect(writeReport(join(root, 'nowhere'))).rejects.toMatchObject({ code: 'NOT_FOUND' });
  });
});

describe('the log', () => {
  it('keeps the last line of a step, in order of steps, and leaves out an unfinished line', () => {
    const notes: string[] = [];
    const text =
      '{"step":2,"loss":5}\n{"step":1,"loss":3}\n{"step":2,"loss":4}\n{"step":2,"eval_loss":9}\n{"step":3,"lo';
    expect(parseMetrics(text, 'f', notes)).toEqual([
      { step: 1, loss: 3 },
      { step: 2, loss: 4, eval_loss: 9 },
    ]);
    expect(notes).toHaveLength(1);
  });

  it('leaves gaps for values that are not finite, and thins long series but keeps their ends', () => {
    const rows = Array.from({ length: 5001 }, (_, i) => ({ step: i, loss: i === 3 ? null : i, grad_norm: 1 }));
    const [loss] = makeCharts(rows).train;
    expect(loss.stride).toBe(3);
    expect(loss.steps.length).toBeLessThanOrEqual(2001);
    expect(loss.steps.at(-1)).toBe(5000);
    expect(
      makeCharts([
        { step: 1, loss: 1, a: null },
        { step: 2, loss: null, a: 1 },
        { step: 3, loss: 2 },
      ]).train[0].steps,
    ).toEqual([1, 3]);
  });

  it('draws no line of one point', async () => {
    expect(makeCharts([{ step: 9, loss: 1, eval_loss: 2, other: 3 }])).toEqual({ train: [], eval: [], other: [] });
    const page = body(await render({ 'metrics.jsonl': '{"step":9,"loss":1,"eval_loss":2}\n', 'summary.json': '{}' }));
    expect(page).toContain('Logged once');
    expect(page).not.toContain('<h2>Evaluation</h2>');
  });

  it('smooths without bias towards the start', () => {
    const values = smooth([2, 2, null, 2], 5);
    expect(values[2]).toBeNull();
    for (const i of [0, 1, 3]) expect(values[i]).toBeCloseTo(2, 12);
  });
});

describe('bars', () => {
  const section = (n: number) => ({
    annotators: Object.fromEntries(Array.from({ length: n }, (_, i) => [`u${i}`, { rows: i + 1, accuracy: i / n }])),
  });

  it('are sorted, carry what was before, and pass over annotators without an accuracy', () => {
    const after = { annotators: { a: { rows: 3, accuracy: 0.2 }, b: { rows: 4, accuracy: 0.9 }, c: { rows: 0 } } };
    const before = { annotators: { b: { rows: 4, accuracy: 0.5 } } };
    expect(annotatorBars(after, before)).toEqual([
      { name: 'b', rows: 4, accuracy: 0.9, before: 0.5 },
      { name: 'a', rows: 3, accuracy: 0.2, before: null },
    ]);
  });

  it('of many are those with most votes and the worst', () => {
    const chosen = selectBars(annotatorBars(section(100), undefined)).map((bar) => bar.name);
    expect(chosen).toHaveLength(30);
    expect(chosen.slice(0, 20)).toEqual(Array.from({ length: 20 }, (_, i) => `u${99 - i}`));
    // u0 has one vote, u17 eighteen of which few were met.
    expect(chosen.slice(20)).toEqual(Array.from({ length: 10 }, (_, i) => `u${17 - i}`));
    expect(selectBars(annotatorBars(section(30), undefined))).toHaveLength(30);
  });
});

describe('text', () => {
  it('is escaped unless it is markup', () => {
    expect(html`<p title="${'"'}">${['<', html`<b>${'&'}</b>`, null, 3]}</p>`.text).toBe(
      '<p title="&quot;">&lt;<b>&amp;</b>3</p>',
    );
    expect(escapeHtml('a\u0007\ud800b\n')).toBe('a\ufffd\ufffdb\n');
    expect(scriptJson({ a: '</script>\u2028' }).text).toBe('{"a":"\\u003c/script\\u003e\\u2028"}');
  });

  it('gives numbers as people write them', () => {
    expect([0, 12022, -1.5, 1.23456e-5, 1234.5, 0.25, null, Number.NaN, true].map(formatValue)).toEqual([
      '0',
      '12,022',
      '−1.500',
      '1.23e−5',
      '1,235',
      '0.2500',
      '–',
      'NaN',
      'yes',
    ]);
    expect([3.21, 754.2, 7322].map(formatDuration)).toEqual(['3.2 s', '12 min 34 s', '2 h 2 min']);
  });

  it("has Wilson's interval right", () => {
    // 8 of 10: 0.4902 … 0.9433 (Newcombe 1998, method 3, recomputed)
    const [low, high] = wilson(0.8, 10);
    expect(low).toBeCloseTo(0.4902, 4);
    expect(high).toBeCloseTo(0.9433, 4);
    expect(wilson(1, 5)[1]).toBeCloseTo(1, 12);
    expect(wilson(0.5, 0)).toEqual([0, 1]);
  });
});
