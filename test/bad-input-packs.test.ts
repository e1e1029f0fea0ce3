// Packs that are malformed: each check of native/model/plan.cc and of the bindings, and random damage.
import { beforeAll, describe, expect, it } from 'vitest';
import type { Bank } from '../lib/adapters/bank.js';
import { Random } from '../lib/base/random.js';
import { pack } from '../lib/data/pack.js';
import type { Model } from '../lib/model/model.js';
import type { NativePack } from '../lib/native/addon.js';
import { frozen, learning, randomBank, randomGroups, tinyModel } from './support/engine.js';
import { refuses } from './support/refuses.js';

let model: Model;
beforeAll(async () => {
  model = await tinyModel('qwen3');
});

describe('packs', () => {
  // Two groups: segments 0 prompt, 1 and 2 completions, 3 to 5 the same again; first with a gradient, then without.
  const groups = randomGroups(2, 200, 3, 4);
  const make = () => pack(groups, { policies: [learning(0), frozen(-1)], read: 'logps' });
  const scoreNative = (native: NativePack, bank: Bank, read: 'logps' | 'reward' = 'logps') =>
    model.native.score(
      native,
      bank.native(),
      { read, keep: false, checkpoint: false, dropoutSeed: 0 },
      new Float32Array(native?.rows?.length ?? 0),
    );

  it.each<[string, (p: NativePack) => void, RegExp]>([
    ['starts that do not begin at 0', (p) => (p.segmentStarts[0] = 1), /begin with 0/],
    ['a segment without tokens', (p) => (p.segmentStarts[1] = 0), /at least one token/],
    ['starts that fall', (p) => (p.segmentStarts[3] = 0), /at least one token/],
    ['starts that end too soon', (p) => p.segmentStarts[p.parents.length]--, /end with the number of tokens/],
    ['starts that end too late', (p) => p.segmentStarts[p.parents.length]++, /end with the number of tokens/],
    ['an adapter that is not there', (p) => p.adapters.fill(1, 0, 3), /no such adapter/],
    ['an adapter below -1', (p) => p.adapters.fill(-2, 0, 3), /no such adapter/],
    ['gradients after none', (p) => p.needsGrad.fill(0, 0, 3), /must come first/],
    ['a parent behind its child', (p) => (p.parents[1] = 2), /before its children/],
    ['a segment that is its own parent', (p) => (p.parents[1] = 1), /before its children/],
    ['a parent below -1', (p) => (p.parents[1] = -2), /before its children/],
    ['a parent far away', (p) => (p.parents[1] = 2 ** 30), /before its children/],
    ['a child of another adapter', (p) => (p.adapters[1] = -1), /its parent's adapter/],
    ['a child without its parent’s gradient', (p) => p.needsGrad.fill(0, 5), /need a gradient where its parent does/],
    ['a token below 0', (p) => (p.tokens[2] = -1), /token id -1 is outside/],
    ['a token beyond the vocabulary', (p) => (p.tokens[2] = 280), /token id 280 is outside.* 280/],
    ['a row below 0', (p) => (p.rows[0] = -1), /rows must ascend/],
    ['a row beyond the tokens', (p) => (p.rows[p.rows.length - 1] = p.tokens.length), /rows must ascend/],
    ['rows that fall', (p) => (p.rows[p.rows.length - 1] = 0), /rows must ascend/],
    ['a target below 0', (p) => (p.targets[0] = -1), /target is outside/],
    ['a target beyond the vocabulary', (p) => (p.targets[0] = 280), /target is outside/],
  ])('with %s', async (_, change, message) => {
    const bank = randomBank(model, ['u']);
    const p = make();
    const { values } = await model.score(p, bank, 'logps');
    const bad = make();
    change(bad.native);
    await refuses(() => scoreNative(bad.native, bank), 'BAD_ARGUMENT', message);
    expect((await model.score(p, bank, 'logps')).values).toEqual(values);
  });

  it('with arrays of another type or length', async () => {
    const bank = randomBank(model, ['u']);
    const keys = ['tokens', 'segmentStarts', 'parents', 'adapters', 'needsGrad', 'keys', 'rows', 'targets'] as const;
    for (const key of keys) {
      const { native } = make();
      for (const bad of [undefined, [...native[key]], new Float64Array(native[key]), native[key].buffer])
        await refuses(() => scoreNative({ ...native, [key]: bad as never }, bank), 'BAD_ARGUMENT', new RegExp(key));
      const shorter = { ...native, [key]: native[key].subarray(1) };
      await refuses(() => scoreNative(shorter, bank), 'BAD_ARGUMENT');
    }
    await refuses(() => scoreNative(null as never, bank), 'BAD_ARGUMENT', /pack/);
    await refuses(() => scoreNative([] as never, bank), 'BAD_ARGUMENT', /tokens/);
  });

  it('with random numbers in them give an error or numbers, never a crash', async () => {
    const bank = randomBank(model, ['u', 'v'], { dropout: 0.1 });
    const random = new Random(17, 0, 0, 0);
    const pick = <T>(from: readonly T[]) => from[random.next() % from.length];
    let good = 0;
    for (let i = 0; i < 3000; i++) {
      const p = pack(groups, { policies: pick([[learning(1), frozen(0)], [frozen(-1)]]), read: 'logps' });
      for (let n = 1 + (random.next() % 2); n > 0; n--) {
        const array = p.native[pick(['tokens', 'segmentStarts', 'parents', 'adapters', 'needsGrad', 'rows'] as const)];
        const at = random.next() % array.length;
        array[at] = pick([array[at] + 1, array[at] - 1, 0, -1, random.next() % 30, random.next() | 0]);
      }
      const out = new Float32Array(p.native.rows.length);
      const keep = random.next() % 2 === 0;
      try {
        const dropoutSeed = random.next() % 3;
        await model.native.score(p.native, bank.native(), { read: 'logps', keep, checkpoint: false, dropoutSeed }, out);
        expect(out.every((x) => x <= 0)).toBe(true);
        if (keep) await model.native.backward(bank.native(), out);
        good++;
      } catch (error) {
        expect(error).toMatchObject({ name: 'PluralignError', code: 'BAD_ARGUMENT' });
      }
    }
    expect(good).toBeGreaterThan(300);
    expect(good).toBeLessThan(2900);
    expect(bank.gradients.every(Number.isFinite)).toBe(true);
  });

  it('of nothing', async () => {
    const { values } = await model.score(pack([], { policies: [learning(0)], read: 'logps' }), null, 'logps');
    expect(values.length).toBe(0);
  });
});
