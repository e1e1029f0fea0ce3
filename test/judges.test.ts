// A judge behind an endpoint: what is asked, tried again, kept, counted; and a run of soups that one judges.
import { existsSync, readFileSync } from 'node:fs';
import { createServer, type IncomingMessage, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { afterAll, describe, expect, it } from 'vitest';
import type { Config } from '../lib/config/index.js';
import { verdict } from '../lib/evaluation/pairwise.js';
import { verdictOf } from '../lib/judges/endpoint.js';
import { EndpointJudge, type EndpointOptions, someAtOnce } from '../lib/judges/index.js';
import type { SoupsResult } from '../lib/soups/train.js';
import { train } from '../lib/training/train.js';
import { fixture, scratch, writeRows } from './support/runs.js';
import { tinySoups, tinySteps } from './support/soups.js';

const { path } = scratch();
let count = 0;
const next = () => path(`judged-${count++}`);

interface Asked {
  authorization?: string;
  body: { model: string; messages: { role: string; content: string }[]; temperature: number; max_tokens: number };
}

const servers: Server[] = [];
afterAll(() => {
  for (const server of servers) server.close();
});

/** A server that answers as it is told: a reply, or a status with headers. */
async function serve(
  answer: (asked: Asked, n: number) => string | { status: number; headers?: Record<string, string> },
) {
  const seen: Asked[] = [];
  const server = createServer(async (request: IncomingMessage, response) => {
    let text = '';
    for await (const part of request) text += part;
    const asked = { authorization: request.headers.authorization, body: JSON.parse(text) } as Asked;
    expect(request.url).toBe('/v1/chat/completions');
    seen.push(asked);
    const said = answer(asked, seen.length);
    if (typeof said === 'string') {
      response.setHeader('content-type', 'application/json');
      const usage = { prompt_tokens: 100, completion_tokens: 2 };
      response.end(JSON.stringify({ choices: [{ message: { role: 'assistant', content: said } }], usage }));
    } else {
      response.writeHead(said.status, said.headers);
      response.end('no');
    }
  });
  servers.push(server);
  await new Promise<void>((done) => server.listen(0, '127.0.0.1', done));
  return { seen, url: `http://127.0.0.1:${(server.address() as AddressInfo).port}/v1` };
}
const settings = (url: string, more: Partial<EndpointOptions> = {}): EndpointOptions => ({
  ...{ url, model: 'judge', key: null, temperature: 0, max_tokens: 8, retries: 3, timeout: 2000, pause: 5 },
  cache: `${next()}/replies.jsonl`,
  price: { input: 2, output: 10 },
  ...more,
});
/** Prefers the longer answer. */
const longer = ({ body }: Asked) => {
  const [, a, b] = body.messages[1].content.match(/Answer A:\n([\s\S]*)\n\nAnswer B:\n([\s\S]*)\n\nA, B or tie\?$/)!;
  return a.length > b.length ? 'A' : a.length < b.length ? 'B.' : 'Tie';
};

describe('an endpoint as a judge', () => {
  it('is asked in both orders, with its key, and counts what it takes', async () => {
    const { url, seen } = await serve(longer);
    const judge = await EndpointJudge.open(settings(url, { key: 'secret' }));
    const by = judge.by('is longer');
    expect(await verdict(by, 'Say', 'long answer', 'short')).toBe(1);
    expect(await verdict(by, 'Say', 'short', 'long answer')).toBe(-1);
    expect(await verdict(by, [{ role: 'user', content: 'Say' }], 'same', 'same')).toBe(0);
    expect(seen[0].authorization).toBe('Bearer secret');
    expect(seen[0].body).toMatchObject({ model: 'judge', temperature: 0, max_tokens: 8 });
    expect(seen[0].body.messages[1].content).toContain('which answer is longer?');
    // The second pair asks what the first did; the third says the same in both orders.
    expect(judge.cost).toEqual({
      ...{ asked: 3, cached: 3, inputTokens: 300, outputTokens: 6, unclear: 0 },
      money: (300 * 2 + 6 * 10) / 1e6,
    });
    expect(seen).toHaveLength(3);
  });

  it('a judge that always says A decides nothing', async () => {
    const { url } = await serve(() => 'A');
    const judge = await EndpointJudge.open(settings(url));
    expect(await verdict(judge.by('is better'), 'p', 'one', 'two')).toBe(0);
  });

  it('reads replies', () => {
    const of = (replies: string[]) => replies.map(verdictOf);
    expect(of(['A', 'b', 'Tie.', 'Answer B', '**A**', 'a.', 'A\n'])).toEqual([1, -1, 0, -1, 1, 1, 1]);
    expect(of(['neither', '', 'a hard one'])).toEqual([null, null, null]);
    expect(of(['It is a tie', 'A tie.', 'This is a close call: B', 'A close call: B'])).toEqual([0, 0, -1, -1]);
  });

  it('tries again what may pass, and as late as it is told', async () => {
    const times: number[] = [];
    const { url, seen } = await serve((asked, n) => {
      times.push(performance.now());
      if (n === 1) return { status: 500 };
      if (n === 2) return { status: 429, headers: { 'retry-after': '0.2' } };
      return longer(asked);
    });
    const judge = await EndpointJudge.open(settings(url));
    expect(await judge.by('is longer')('p', 'longer', 'x')).toBe(1);
    expect(seen).toHaveLength(3);
    expect(times[2] - times[1]).toBeGreaterThan(190);
    expect(judge.cost.asked).toBe(1);
  });

  it('gives up with what it was told, at once where asking again is no use', async () => {
    const down = await serve(() => ({ status: 503 }));
    const judge = await EndpointJudge.open(settings(down.url, { retries: 2 }));
    await expect(judge.by('x')('p', 'a', 'b')).rejects.toMatchObject({
      code: 'IO',
      message: expect.stringMatching(/status 503: no, after 3 attempts; what was judged is kept/),
    });
    expect(down.seen).toHaveLength(3);
    const refusing = await serve(() => ({ status: 401 }));
    const other = await EndpointJudge.open(settings(refusing.url));
    await expect(other.by('x')('p', 'a', 'b')).rejects.toMatchObject({ code: 'BAD_CONFIG' });
    expect(refusing.seen).toHaveLength(1);
    const gone = await EndpointJudge.open(settings('http://127.0.0.1:9/v1', { retries: 1 }));
    await expect(gone.by('x')('p', 'a', 'b')).rejects.toMatchObject({ code: 'IO' });
    const stopped = await EndpointJudge.open(settings(down.url, { signal: AbortSignal.abort() }));
    await expect(stopped.by('x')('p', 'a', 'b')).rejects.toMatchObject({ code: 'ABORTED' });
  });

  it('goes on where it failed, an unfinished line and all', async () => {
    let open = false;
    const { url, seen } = await serve((asked, n) => (open || n <= 4 ? longer(asked) : { status: 500 }));
    const options = settings(url, { retries: 0 });
    const pairs = Array.from({ length: 5 }, (_, i) => ['x'.repeat(i + 2), 'y']);
    const all = (judge: EndpointJudge) => someAtOnce(pairs, 2, ([a, b]) => verdict(judge.by('is longer'), 'p', a, b));
    await expect(all(await EndpointJudge.open(options))).rejects.toMatchObject({ code: 'IO' });
    const kept = readFileSync(options.cache, 'utf8');
    expect(kept.trim().split('\n')).toHaveLength(4);
    const { writeFileSync } = await import('node:fs');
    writeFileSync(options.cache, `${kept}{"key":"unfin`);
    open = true;
    const before = seen.length;
    const judge = await EndpointJudge.open(options);
    expect(await all(judge)).toEqual([1, 1, 1, 1, 1]);
    expect(seen.length - before).toBe(6);
    expect(judge.cost).toMatchObject({ asked: 6, cached: 4 });
  });

  it('keeps no more under way than it may, and results in order', async () => {
    let [under, most] = [0, 0];
    const found = await someAtOnce([5, 1, 3, 2], 2, async (n) => {
      most = Math.max(most, ++under);
      await new Promise((done) => setTimeout(done, n));
      under--;
      return n;
    });
    expect(found).toEqual([5, 1, 3, 2]);
    expect(most).toBe(2);
    expect(await someAtOnce([], 2, async () => 1)).toEqual([]);
    await expect(someAtOnce([1], 0, async () => 1)).rejects.toMatchObject({ code: 'BAD_ARGUMENT' });
  });
});

describe('a run of soups with a judge', () => {
  const f = fixture('mistral');
  const prompts = writeRows(
    path('prompts.jsonl'),
    f.rows.map(({ prompt }) => ({ prompt })),
  );
  const wish = (name: string, dimension: string, weight: number, criterion: string | null) => ({
    ...{ name, dimension, criterion },
    rewards: [{ type: 'length' as const, unit: 'characters' as const, weight }],
  });
  const config = (url: string, wishes: NonNullable<Config['soups']>['wishes']): Config => ({
    ...tinySoups(prompts),
    train: { ...tinySteps, steps: 1 },
    soups: {
      ...{ wishes, grid: 1, combinations: true, front: ['long', 'more'], baselines: ['one_reward'] },
      judge: { url, model: 'judge', answers: 3, retries: 0, pause: 0.01, price: { input: 1, output: 1 } },
    },
    output: next(),
  });
  const wishes = [
    wish('long', 'size', 1, 'is longer'),
    wish('short', 'size', -1, 'is shorter'),
    wish('more', 'more', 1, 'says more'),
  ];

  it('fails half way, goes on, and shows what it cost', async () => {
    let open = false;
    const { url, seen } = await serve((asked, n) => (open || n <= 5 ? longer(asked) : { status: 500 }));
    const given = config(url, wishes);
    await expect(train(given, { quiet: true })).rejects.toMatchObject({ code: 'IO' });
    open = true;
    const failed = seen.length;
    const notes: string[] = [];
    await train(given, { quiet: true, resume: true, onNote: (note) => notes.push(note) });
    const { combinations } = JSON.parse(readFileSync(`${given.output}/soups.json`, 'utf8')) as SoupsResult;
    const { rates, cost, model } = combinations!.judged!;
    expect(model).toBe('judge');
    expect(combinations!.policies).toEqual(['soup', 'base', 'one reward']);
    expect(rates.map((rate) => rate !== null)).toEqual([false, true, true]);
    for (const rate of rates.slice(1)) expect(rate!.win + rate!.tie + rate!.lose).toBeCloseTo(1, 12);
    expect(cost.asked).toBe(seen.length - failed);
    expect(cost.cached).toBeGreaterThanOrEqual(5);
    expect(notes.join('\n')).toMatch(/judge judged: \d+ questions asked, \d+ known already; \d+ tokens read/);
    expect(readFileSync(`${given.output}/report.html`, 'utf8')).toContain('by judge, asked in both orders');
  });

  it('refuses wishes without a criterion, and a key that is not there', async () => {
    const bare = config('http://127.0.0.1:9/v1', [wish('long', 'size', 1, null), ...wishes.slice(1)]);
    await expect(train(bare, { quiet: true })).rejects.toThrow(/soups\.wishes\[0\]\.criterion: found nothing/);
    const given = config('http://127.0.0.1:9/v1', wishes);
    given.soups!.judge!.key_from = 'PLURALIGN_NO_SUCH_KEY';
    await expect(train(given, { quiet: true })).rejects.toThrow(/PLURALIGN_NO_SUCH_KEY is not set/);
    expect(existsSync(given.output!)).toBe(false);
  });
});
