import { createHash } from 'node:crypto';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { type DownloadProgress, type ResolveOptions, resolveModel } from '../lib/model/hub.js';

const sha = 'a1b2c3d4'.repeat(5);
const repository = (): Record<string, string> => ({
  'config.json': '{"model_type":"llama"}',
  'tokenizer.json': '{}',
  'README.md': 'not needed',
  'pytorch_model.bin': 'not needed either',
  'model.safetensors': 'w'.repeat(300_000),
});

let dir: string;
let server: Server;
let hubUrl: string;
/** Paths that were fetched whole. */
let fetched: string[];
let files: Record<string, string>;
/** Changes what the server does to a file: another body, or the connection cut halfway. */
let spoil: Record<string, 'cut' | string>;
let status = 200;

beforeEach(async () => {
  dir = mkdtempSync(join(tmpdir(), 'pluralign-hub-'));
  files = repository();
  fetched = [];
  spoil = {};
  status = 200;
  server = createServer((request, response) => {
    const path = decodeURIComponent(new URL(request.url ?? '', 'http://hub').pathname);
    const json = (value: unknown) => {
      response.writeHead(status, { 'content-type': 'application/json' });
      response.end(JSON.stringify(status === 200 ? value : { error: 'no' }));
    };
    if (path === '/api/models/some/tiny/revision/main' || path === '/api/models/some/tiny/revision/v1') {
      return json({
        _id: '1',
        id: 'some/tiny',
        modelId: 'some/tiny',
        sha,
        private: false,
        gated: false,
        downloads: 0,
        likes: 0,
      });
    }
    if (path.startsWith(`/api/models/some/tiny/tree/${sha}`)) {
      const entry = ([name, body]: [string, string]) => ({
        type: 'file',
        oid: '0',
        path: name,
        size: body.length,
        ...(name.endsWith('.safetensors') && {
          lfs: { oid: createHash('sha256').update(body).digest('hex'), size: body.length, pointerSize: 1 },
        }),
      });
      return json(Object.entries(files).map(entry));
    }
    const name = path.replace(`/some/tiny/resolve/${sha}/`, '');
    if (!(name in files)) {
      response.writeHead(404, { 'x-error-code': 'EntryNotFound' });
      return response.end();
    }
    const body = files[name];
    if (request.headers.range === 'bytes=0-0') {
      response.writeHead(206, { 'content-range': `bytes 0-0/${body.length}`, etag: '"e"' });
      return response.end(body[0]);
    }
    fetched.push(name);
    response.writeHead(200, { etag: '"e"' });
    if (spoil[name] === 'cut') {
      response.write(body.slice(0, body.length / 2));
      return setTimeout(() => response.destroy(), 20);
    }
    response.end(spoil[name] ?? body);
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  hubUrl = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
});

const stop = () =>
  new Promise<void>((resolve) => {
    server.closeAllConnections();
    server.close(() => resolve());
  });

afterEach(async () => {
  await stop();
  rmSync(dir, { recursive: true, force: true });
});

const resolve = (spec: string, more: ResolveOptions = {}) => resolveModel(spec, { hubUrl, cacheDir: dir, ...more });

describe('a path', () => {
  test('is returned as it is', async () => {
    expect(await resolve(dir)).toBe(dir);
    expect(fetched).toEqual([]);
  });

  test('that is missing is an error that says how to name a hub model', async () => {
    await expect(resolve('some/tiny')).rejects.toMatchObject({
      code: 'NOT_FOUND',
      message: expect.stringContaining('hf:some/tiny'),
    });
    await expect(resolve(join(dir, 'no'))).rejects.toMatchObject({ code: 'NOT_FOUND' });
    writeFileSync(join(dir, 'file'), '');
    await expect(resolve(join(dir, 'file'))).rejects.toMatchObject({ code: 'NOT_FOUND' });
  });

  test.each([
    'hf:tiny',
    'hf:a/b/c',
    'hf:../x',
    'hf:a/..',
    'hf:a/b@../../x',
    'hf:a/b@',
    'hf:',
  ])('%s is no name', async (spec) => {
    await expect(resolve(spec)).rejects.toMatchObject({ code: 'BAD_ARGUMENT' });
    expect(fetched).toEqual([]);
  });
});

describe('a model of the hub', () => {
  test('is downloaded once, only what is needed, with progress', async () => {
    const progress: DownloadProgress[] = [];
    const folder = await resolve('hf:some/tiny', { onProgress: (p) => progress.push(p) });
    expect(fetched.sort()).toEqual(['config.json', 'model.safetensors', 'tokenizer.json']);
    for (const name of fetched) expect(readFileSync(join(folder, name), 'utf8')).toBe(files[name]);
    expect(readdirSync(folder).some((name) => name.endsWith('.tmp'))).toBe(false);
    const size = fetched.reduce((sum, name) => sum + files[name].length, 0);
    expect(progress.at(-1)).toMatchObject({ received: size, size, file: 'model.safetensors', fileReceived: 300_000 });
    const received = progress.map((p) => p.received);
    expect(received).toEqual([...received].sort((a, b) => a - b));

    expect(await resolve('hf:some/tiny')).toBe(folder);
    expect(await resolve('hf:some/tiny@v1')).toBe(folder);
    expect(fetched).toHaveLength(3);
  });

  test('shards, where there is no single file', async () => {
    delete files['model.safetensors'];
    files['model.safetensors.index.json'] = '{"weight_map":{}}';
    files['model-00001-of-00002.safetensors'] = 'a';
    files['model-00002-of-00002.safetensors'] = 'b';
    files['consolidated.safetensors'] = 'the same again';
    await resolve('hf:some/tiny');
    expect(fetched.filter((name) => name.includes('model'))).toHaveLength(3);
  });

  test('offline, the copy in the cache is used and said so; without one the error says offline', async () => {
    const folder = await resolve('hf:some/tiny');
    await stop();
    const notices: string[] = [];
    expect(await resolve('hf:some/tiny', { onNotice: (n) => notices.push(n) })).toBe(folder);
    expect(notices).toEqual([expect.stringContaining('offline')]);
    // A commit needs no network, and so no notice.
    expect(await resolve(`hf:some/tiny@${sha}`, { onNotice: (n) => notices.push(n) })).toBe(folder);
    expect(notices).toHaveLength(1);
    await expect(resolve('hf:some/tiny@v1')).rejects.toMatchObject({
      code: 'IO',
      message: expect.stringMatching(/offline/),
    });
    // A copy that lost a file is none.
    rmSync(join(folder, 'model.safetensors'));
    await expect(resolve('hf:some/tiny')).rejects.toMatchObject({
      code: 'IO',
      message: expect.stringMatching(/no complete copy/),
    });
  });

  test('a cut connection leaves no half file, and the next run fetches only what is missing', async () => {
    spoil['model.safetensors'] = 'cut';
    await expect(resolve('hf:some/tiny')).rejects.toMatchObject({ code: 'IO' });
    const folder = join(dir, 'models/some--tiny', sha);
    expect(readdirSync(folder).sort()).toEqual(['config.json', 'tokenizer.json']);
    spoil = {};
    fetched = [];
    expect(await resolve('hf:some/tiny')).toBe(folder);
    expect(fetched).toEqual(['model.safetensors']);
  });

  test('a file with another SHA-256 is refused', async () => {
    spoil['model.safetensors'] = 'x'.repeat(300_000);
    await expect(resolve('hf:some/tiny')).rejects.toMatchObject({
      code: 'IO',
      message: expect.stringMatching(/damaged.*SHA-256/),
    });
    expect(existsSync(join(dir, 'models/some--tiny', sha, 'model.safetensors'))).toBe(false);
  });

  test.each<[number, string, RegExp]>([
    [404, 'NOT_FOUND', /no such model/],
    [401, 'NOT_FOUND', /HF_TOKEN/],
    [503, 'IO', /status 503/],
  ])('status %i', async (code, expected, message) => {
    status = code;
    await expect(resolve('hf:some/tiny')).rejects.toMatchObject({
      code: expected,
      message: expect.stringMatching(message),
    });
  });

  test('without safetensors or config.json it is refused by name', async () => {
    delete files['model.safetensors'];
    await expect(resolve('hf:some/tiny')).rejects.toMatchObject({ code: 'UNSUPPORTED' });
    delete files['config.json'];
    await expect(resolve('hf:some/tiny')).rejects.toMatchObject({ code: 'NOT_FOUND' });
  });

  test('without the optional package the error says what to install', async () => {
    const importHub = () => Promise.reject(new Error('Cannot find package'));
    await expect(resolve('hf:some/tiny', { importHub })).rejects.toMatchObject({
      code: 'UNSUPPORTED',
      message: expect.stringContaining('npm install @huggingface/hub'),
    });
  });

  test('a stopped download is ABORTED', async () => {
    const stopper = new AbortController();
    const onProgress = () => stopper.abort();
    await expect(resolve('hf:some/tiny', { onProgress, signal: stopper.signal })).rejects.toMatchObject({
      code: 'ABORTED',
    });
  });
});
