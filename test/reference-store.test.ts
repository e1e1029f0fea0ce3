// What entries of the store on disk go by, besides what training with it tests (train.test.ts).
import { writeFileSync } from 'node:fs';
import { expect, it, vi } from 'vitest';
import { Model } from '../lib/model/model.js';
import { ReferenceStore } from '../lib/training/reference-store.js';
import { fixture, scratch } from './support/runs.js';

const { path } = scratch();
const built = vi.hoisted(() => ({ file: '' }));
vi.mock('../lib/native/loader.js', async (original) => ({
  ...(await original<typeof import('../lib/native/loader.js')>()),
  addonFile: () => built.file,
}));

it('other kernels of the same version are another entry, the same ones elsewhere are not', async () => {
  vi.stubEnv('PLURALIGN_CACHE', path('cache'));
  using model = await Model.load(fixture('mistral').model, { dtype: 'float32', threads: 1 });
  const under = async (name: string, contents: string) => {
    built.file = path(name);
    writeFileSync(built.file, contents);
    return (await ReferenceStore.open(model, null))!.path;
  };
  const first = await under('a.node', 'one');
  expect(await under('b.node', 'two')).not.toBe(first);
  expect(await under('c.node', 'one')).toBe(first);
  vi.unstubAllEnvs();
});
