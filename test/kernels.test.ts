import { afterAll, describe, expect, it } from 'vitest';
import {
  adamw,
  cpu,
  type GroupedLora,
  groupedLoraBackward,
  groupedLoraForward,
  matmul,
  PluralignError,
  pairLoss,
  rowSegments,
} from '../lib/kernels.js';
import { addon } from '../lib/native/loader.js';
import { close, floats, makeCall, reference, type Shape } from './kernels-helpers.js';
import { differences } from './losses-helpers.js';

/** The addon reads PLURALIGN_ISA in every call, so one process can go through all that the processor has. */
const supported = cpu().supported;
const before = process.env.PLURALIGN_ISA;
afterAll(() => {
  if (before === undefined) delete process.env.PLURALIGN_ISA;
  else process.env.PLURALIGN_ISA = before;
});

const shapes: Record<string, Shape> = {
  'one row': { in: 1, out: 1, rows: 1, ranks: [1], segments: [0, 1], adapters: [0] },
  'no rows': { in: 3, out: 2, rows: 0, ranks: [2], segments: [], adapters: [] },
  'no adapters': { in: 3, out: 2, rows: 4, ranks: [], segments: [0, 4], adapters: [-1] },
  'mixed ranks, a gap, an empty segment, rows of no adapter': {
    in: 37,
    out: 21,
    rows: 29,
    ranks: [1, 3, 8, 17],
    segments: [0, 5, 5, 5, 6, 9, 9, 12, 12, 28],
    adapters: [2, 1, 0, -1, 3],
  },
  'an adapter in two segments': {
    in: 16,
    out: 33,
    rows: 40,
    ranks: [4, 2],
    segments: [0, 15, 15, 16, 20, 40],
    adapters: [0, 1, 0],
  },
  cores: {
    in: 13,
    out: 19,
    rows: 22,
    ranks: [4, 4, 3, 1],
    segments: [0, 7, 7, 12, 12, 20, 20, 22],
    adapters: [0, 1, 2, 3],
    cores: ['matrix', 'vector', 'none', 'vector'],
  },
  'wide enough for threads': {
    in: 300,
    out: 520,
    rows: 130,
    ranks: [16, 8],
    segments: [0, 100, 100, 130],
    adapters: [1, 0],
  },
};

const zeros = (like: readonly (ArrayLike<number> | null)[]) => like.map((x) => (x ? new Float32Array(x.length) : null));

describe.each(supported)('%s', (isa) => {
  const use = () => {
    process.env.PLURALIGN_ISA = isa;
    expect(cpu().isa).toBe(isa);
  };

  it.each(Object.entries(shapes))('%s: forward and backward are the definition', async (_, shape) => {
    use();
    for (const threads of [1, 2]) {
      const call = makeCall(shape);
      const y = floats(shape.rows * shape.out, 3);
      const dy = floats(shape.rows * shape.out, 4);
      const expected = reference(call, y, dy);
      const h = new Float32Array(shape.rows * Math.max(1, ...shape.ranks));
      await groupedLoraForward({ ...call, y, h, threads });
      close(y, expected.y);

      for (const kept of [h, undefined]) {
        const dx = floats(call.x.length, 5);
        const start = dx.slice();
        const [da, db] = [zeros(call.a), zeros(call.b)];
        const dcores = call.cores && zeros(call.cores);
        await groupedLoraBackward({ ...call, dy, dx, da, db, dcores, h: kept, threads });
        close(
          dx.map((d, i) => d - start[i]),
          expected.dx,
        );
        da.forEach((d, i) => {
          close(d!, expected.da[i]);
          close(db[i]!, expected.db[i]);
          if (expected.dcores[i]) close(dcores![i]!, expected.dcores[i]);
        });
      }
    }
  });

  it('adds to the same array where two adapters share a factor', async () => {
    use();
    const call = makeCall({ in: 9, out: 7, rows: 8, ranks: [3, 3], segments: [0, 3, 3, 8], adapters: [0, 1] });
    const shared: GroupedLora = { ...call, a: [call.a[0], call.a[0]] };
    const dy = floats(8 * 7, 8);
    const { da } = reference(shared, new Float32Array(8 * 7), dy);
    const sum = new Float32Array(da[0].length);
    await groupedLoraBackward({ ...shared, dy, da: [sum, sum] });
    close(
      sum,
      da[0].map((d, i) => d + da[1][i]),
    );
  });

  it('gives a row the same bits whatever stands around it', async () => {
    use();
    const call = makeCall(shapes['wide enough for threads']);
    const y = new Float32Array(130 * 520);
    await groupedLoraForward({ ...call, y, threads: 2 });
    const row = 57;
    const alone = new Float32Array(520);
    const x = call.x.slice(row * 300, (row + 1) * 300);
    await groupedLoraForward({ ...call, x, y: alone, segments: Int32Array.of(0, 1), adapters: Int32Array.of(1) });
    expect(alone).toEqual(y.slice(row * 520, (row + 1) * 520));
  });

  it.each([
    [1, 1, 1],
    [3, 5, 7],
    [31, 45, 64],
    [2, 3, 1100],
    [130, 260, 33],
    [0, 4, 4],
    [4, 4, 0],
  ])('matmul %i × %i × %i, every transposition', async (m, n, k) => {
    use();
    for (const transposeA of [false, true])
      for (const transposeB of [false, true])
        for (const accumulate of [false, true]) {
          const [a, b, bias, c] = [floats(m * k, 1), floats(k * n, 2), floats(n, 3), floats(m * n, 4)];
          const expected = Float64Array.from(c, (value, at) => {
            const [i, j] = [Math.floor(at / n), at % n];
            let sum = 0;
            for (let p = 0; p < k; p++)
              sum += a[transposeA ? p * m + i : i * k + p] * b[transposeB ? j * k + p : p * n + j];
            return 0.5 * sum + bias[j] + (accumulate ? value : 0);
          });
          await matmul({ m, n, k, a, b, c, bias, transposeA, transposeB, accumulate, alpha: 0.5 });
          close(c, expected);
        }
  });

  it('adamw follows the algorithm over three steps', async () => {
    use();
    const n = 37;
    const [parameters, m, v] = [floats(n, 1), new Float32Array(n), new Float32Array(n)];
    const [p, mm, vv] = [Float64Array.from(parameters), new Float64Array(n), new Float64Array(n)];
    for (let step = 1; step <= 3; step++) {
      const gradients = floats(n, 10 + step);
      await adamw({ parameters, gradients, m, v, step, learningRate: 0.01, weightDecay: 0.1, gradScale: 0.5 });
      for (let i = 0; i < n; i++) {
        const g = 0.5 * gradients[i];
        mm[i] = 0.9 * mm[i] + 0.1 * g;
        vv[i] = 0.999 * vv[i] + 0.001 * g * g;
        p[i] =
          p[i] * (1 - 0.01 * 0.1) -
          (0.01 * mm[i]) / (1 - 0.9 ** step) / (Math.sqrt(vv[i] / (1 - 0.999 ** step)) + 1e-8);
      }
    }
    close(parameters, p);
  });
});

describe('gradients', () => {
  it('are the differences of a loss through the forward pass', async () => {
    delete process.env.PLURALIGN_ISA;
    const call = makeCall(shapes.cores);
    const weights = floats(22 * 19, 6);
    const loss = (changed: GroupedLora): number => {
      const { y } = reference(changed, new Float32Array(22 * 19), weights);
      return y.reduce((sum, value, i) => sum + weights[i] * value, 0);
    };
    const [da, db, dcores, dx] = [zeros(call.a), zeros(call.b), zeros(call.cores!), new Float32Array(call.x.length)];
    await groupedLoraBackward({ ...call, dy: weights, dx, da, db, dcores });
    // The loss is linear in each array on its own: differences with a wide step are exact up to rounding.
    const check = (gradient: Float32Array, x: Float32Array, replace: (x: Float32Array) => GroupedLora) => {
      const wide = Float64Array.from(x);
      const d = differences(wide, () => loss(replace(Float32Array.from(wide))), 0.25);
      close(gradient, d, 1e-4);
    };
    check(dx, call.x, (x) => ({ ...call, x }));
    call.a.forEach((a, i) => {
      check(da[i]!, a, (x) => ({ ...call, a: call.a.with(i, x) }));
      check(db[i]!, call.b[i], (x) => ({ ...call, b: call.b.with(i, x) }));
      const core = call.cores![i];
      if (core) check(dcores[i]!, core, (x) => ({ ...call, cores: call.cores!.with(i, x) }));
    });
  });

  it('leave out what is not asked for', async () => {
    const call = makeCall(shapes.cores);
    const dy = floats(22 * 19, 6);
    const expected = reference(call, dy, dy);
    const db = zeros(call.b).map((d, i) => (i === 1 ? d : null));
    await groupedLoraBackward({ ...call, dy, db });
    close(db[1]!, expected.db[1]);
  });
});

describe('arrays', () => {
  const shape = shapes['mixed ranks, a gap, an empty segment, rows of no adapter'];
  const within = (x: Float32Array, buffer = new ArrayBuffer((x.length + 8) * 4)) => {
    const view = new Float32Array(buffer, 12, x.length);
    view.set(x);
    return view;
  };

  it('may be parts of larger buffers, of which nothing else changes', async () => {
    const call = makeCall(shape);
    const y = new Float32Array(29 * 21);
    const expected = reference(call, y, y);
    const all = new ArrayBuffer((y.length + 8) * 4);
    const part = within(y, all);
    await groupedLoraForward({
      ...call,
      x: within(call.x),
      a: call.a.map((a) => within(a)),
      b: call.b.map((b) => within(b)),
      y: part,
    });
    close(part, expected.y);
    expect([...new Float32Array(all, 0, 3), ...new Float32Array(all, 12 + y.length * 4)]).toEqual(Array(8).fill(0));
  });

  it('may be shared memory', async () => {
    const call = makeCall(shape);
    const y = new Float32Array(new SharedArrayBuffer(29 * 21 * 4));
    await groupedLoraForward({ ...call, y });
    close(y, reference(call, new Float32Array(29 * 21), y).y);
  });

  it('leaves rows of no adapter alone', async () => {
    const call = makeCall(shape);
    const y = floats(29 * 21, 3);
    const start = y.slice();
    await groupedLoraForward({ ...call, y });
    for (const row of [5, 9, 10, 11, 28])
      expect(y.slice(row * 21, (row + 1) * 21)).toEqual(start.slice(row * 21, (row + 1) * 21));
    expect(y).not.toEqual(start);
  });

  it('the list may change once the call is made, and calls may overlap', async () => {
    const call = makeCall(shape);
    const a = [...call.a];
    const ys = [0, 1, 2].map(() => new Float32Array(29 * 21));
    const running = ys.map((y) => groupedLoraForward({ ...call, a, y }));
    a.length = 0;
    await Promise.all(running);
    for (const y of ys) close(y, reference(call, new Float32Array(29 * 21), y).y);
  });

  it('rowSegments finds the runs', () => {
    expect(rowSegments([1, 1, -1, 0, 0, 0, 1])).toEqual({
      segments: Int32Array.of(0, 2, 3, 6, 6, 7),
      adapters: Int32Array.of(1, 0, 1),
    });
    expect(rowSegments([])).toEqual({ segments: new Int32Array(0), adapters: new Int32Array(0) });
  });
});

describe('refusals', () => {
  const shape: Shape = { in: 4, out: 3, rows: 5, ranks: [2, 1], segments: [0, 2, 2, 5], adapters: [0, 1] };
  const call = makeCall(shape);
  const y = new Float32Array(15);
  const base = { ...call, y };

  it.each<[string, object, string, RegExp]>([
    ['x of part of a row', { x: new Float32Array(19) }, 'BAD_SHAPE', /x has 19 elements; expected .* a multiple of 4/],
    ['x of another type', { x: new Float64Array(20) }, 'BAD_ARGUMENT', /x is a Float64Array; expected a Float32Array/],
    ['x missing', { x: undefined }, 'BAD_ARGUMENT', /x is undefined/],
    ['y too short', { y: new Float32Array(14) }, 'BAD_SHAPE', /y has 14 elements; expected 15 \(5 rows × out 3\)/],
    [
      'a of another width',
      { a: [call.a[0], new Float32Array(5)] },
      'BAD_SHAPE',
      /a\[1\] has 5 elements; .* multiple of 4/,
    ],
    ['a against the ranks', { ranks: [2, 3] }, 'BAD_SHAPE', /a\[1\] has 4 elements; expected 12 \(r 3 × in 4\)/],
    ['an empty a', { a: [call.a[0], new Float32Array(0)] }, 'BAD_SHAPE', /a\[1\] has 0 elements/],
    [
      'b of another rank',
      { b: [call.b[1], call.b[1]] },
      'BAD_SHAPE',
      /b\[0\] has 3 elements; expected 6 \(out 3 × r 2\)/,
    ],
    ['too few b', { b: [call.b[0]] }, 'BAD_SHAPE', /b has 1 entries; expected one for each of a: 2/],
    ['too few scales', { scales: [1] }, 'BAD_SHAPE', /scales has 1 entries/],
    ['a scale that is no number', { scales: [1, Number.NaN] }, 'BAD_ARGUMENT', /scales\[1\] is NaN/],
    ['a core', { cores: [new Float32Array(3), null] }, 'BAD_SHAPE', /cores\[0\] has 3 elements; expected 4/],
    ['an odd segment', { segments: Int32Array.of(0, 2, 2) }, 'BAD_SHAPE', /segments has 3 elements; expected 4/],
    ['segments that overlap', { segments: Int32Array.of(0, 3, 2, 5) }, 'BAD_SHAPE', /segment 1 is rows \[2, 5\)/],
    ['a segment past the rows', { segments: Int32Array.of(0, 2, 2, 6) }, 'BAD_SHAPE', /segment 1 .* up to row 5/],
    ['a segment backwards', { segments: Int32Array.of(2, 0, 2, 5) }, 'BAD_SHAPE', /segment 0 is rows \[2, 0\)/],
    [
      'an adapter that is not there',
      { adapters: Int32Array.of(0, 2) },
      'BAD_ARGUMENT',
      /adapters\[1\] is 2; there are 2/,
    ],
    ['an adapter below -1', { adapters: Int32Array.of(0, -2) }, 'BAD_ARGUMENT', /adapters\[1\] is -2/],
    ['in of zero', { in: 0 }, 'BAD_ARGUMENT', /in is 0/],
    ['a broken out', { out: 1.5 }, 'BAD_ARGUMENT', /out is 1.5/],
    ['no threads', { threads: 0 }, 'BAD_ARGUMENT', /threads is 0/],
    [
      'h too short',
      { h: new Float32Array(5) },
      'BAD_SHAPE',
      /h has 5 elements; expected 10 \(5 rows × largest rank 2\)/,
    ],
    [
      'y inside x',
      {
        x: new Float32Array(y.buffer, 0, 20 - 8),
        segments: Int32Array.of(0, 1, 1, 3),
        y: new Float32Array(y.buffer, 24, 9),
      },
      'BAD_ARGUMENT',
      /y and x share memory/,
    ],
  ])('%s', async (_, change, code, message) => {
    const error = await groupedLoraForward({ ...base, ...change } as never).catch((e: unknown) => e);
    expect(error).toBeInstanceOf(PluralignError);
    expect(error).toMatchObject({ code, message: expect.stringMatching(message) });
    expect(y).toEqual(new Float32Array(15));
  });

  it.each<[string, object, string, RegExp]>([
    ['dy too short', { dy: new Float32Array(14) }, 'BAD_SHAPE', /dy has 14 elements; expected 15/],
    ['dx too long', { dx: new Float32Array(21) }, 'BAD_SHAPE', /dx has 21 elements; expected 20/],
    ['too few da', { da: [null] }, 'BAD_SHAPE', /da has 1 entries/],
    ['da of another rank', { da: [null, new Float32Array(8)] }, 'BAD_SHAPE', /da\[1\] has 8 elements; expected 4/],
    ['db of another rank', { db: [new Float32Array(3), null] }, 'BAD_SHAPE', /db\[0\] has 3 elements; expected 6/],
    ['a gradient of no core', { dcores: [new Float32Array(4), null] }, 'BAD_ARGUMENT', /dcores\[0\] is given/],
    ['da inside x', { da: [call.x.subarray(0, 8), null] }, 'BAD_ARGUMENT', /da\[0\] and x share memory/],
  ])('%s', async (_, change, code, message) => {
    const full = { ...call, dy: new Float32Array(15), ...change } as never;
    await expect(groupedLoraBackward(full)).rejects.toMatchObject({ code, message: expect.stringMatching(message) });
  });

  it('matmul and adamw name the array', async () => {
    const [a, b, c] = [new Float32Array(6), new Float32Array(6), new Float32Array(4)];
    await expect(matmul({ m: 2, n: 2, k: 4, a, b, c })).rejects.toThrow('a has 6 elements; expected 8 (m 2 × k 4)');
    await expect(matmul({ m: 2, n: 2, k: 3, a, b, c: a })).rejects.toThrow('c has 6 elements; expected 4');
    await expect(matmul({ m: 2, n: 3, k: 3, a, b: new Float32Array(9), c: a })).rejects.toThrow('c and a share memory');
    await expect(adamw({ parameters: a, gradients: c, m: b, v: b, step: 1, learningRate: 1 })).rejects.toThrow(
      'gradients has 4 elements; expected 6',
    );
    await expect(adamw({ parameters: a, gradients: b, m: b, v: b, step: 0, learningRate: 1 })).rejects.toThrow('step');
  });

  it('an aborted signal', async () => {
    const signal = AbortSignal.abort();
    await expect(groupedLoraForward({ ...base, signal })).rejects.toMatchObject({ code: 'ABORTED' });
    expect(y).toEqual(new Float32Array(15));
  });

  it('a signal that is raised while the call waits', async () => {
    const controller = new AbortController();
    const size = 700;
    const big = { m: size, n: size, k: size, a: floats(size * size, 1), b: floats(size * size, 2) };
    const first = matmul({ ...big, c: new Float32Array(size * size), threads: 1 });
    const second = groupedLoraForward({ ...base, signal: controller.signal });
    controller.abort();
    await expect(second).rejects.toMatchObject({ code: 'ABORTED' });
    await first;
    expect(y).toEqual(new Float32Array(15));
  });
});

describe('the addon itself', () => {
  const call = makeCall({ in: 4, out: 3, rows: 5, ranks: [2, 1], segments: [0, 2, 2, 5], adapters: [0, 1] });
  const native = {
    ...call,
    a: [...call.a],
    b: [...call.b],
    cores: undefined,
    ranks: Int32Array.of(2, 1),
    scales: Float64Array.of(1, 1),
    threads: 1,
    y: new Float32Array(15),
    dy: new Float32Array(15),
  };

  it.each<[string, object]>([
    ['y', { y: new Float32Array(14), dy: new Float32Array(14) }],
    ['x', { x: new Float32Array(19) }],
    ['a', { a: [call.a[0], new Float32Array(3)] }],
    ['b', { b: [new Float32Array(5), call.b[1]] }],
    ['fewer b', { b: [call.b[0]] }],
    ['cores', { cores: [new Float32Array(3), null] }],
    ['ranks', { ranks: Int32Array.of(2, -1) }],
    ['large ranks', { ranks: Int32Array.of(2, 1 << 30) }],
    ['scales', { scales: new Float64Array(1) }],
    ['h', { h: new Float32Array(9) }],
    ['segments past the end', { segments: Int32Array.of(0, 2, 2, 6) }],
    ['segments below zero', { segments: Int32Array.of(-1, 2, 2, 5) }],
    ['fewer segments', { segments: Int32Array.of(0, 2) }],
    ['adapters', { adapters: Int32Array.of(0, 2) }],
    ['no call', { threads: undefined }],
    ['a width of nothing', { in: Number.NaN }],
  ])('stays inside its arrays: %s', (_, change) => {
    const wrong = { ...native, ...change } as never;
    const code = expect.stringMatching(/^BAD_(SHAPE|ARGUMENT)$/);
    for (const direction of ['groupedLoraForward', 'groupedLoraBackward'] as const)
      expect(() => addon().kernels[direction](wrong)).toThrow(expect.objectContaining({ code }));
  });

  it('stays inside the gradients', () => {
    for (const change of [{ da: [new Float32Array(7), null] }, { db: [null, new Float32Array(2)] }, { dx: call.b[0] }])
      expect(() => addon().kernels.groupedLoraBackward({ ...native, ...change } as never)).toThrow(/elements/);
  });
});

describe('the entry', () => {
  it('has the losses', () => {
    const one = Float64Array.of(1);
    const { loss, dChosen } = pairLoss(
      { chosen: one, rejected: one, refChosen: one, refRejected: one, chosenTokens: one, rejectedTokens: one },
      { type: 'sigmoid', beta: 0.1 },
    );
    expect(loss).toBeCloseTo(Math.log(2), 12);
    expect(dChosen[0]).toBeCloseTo(-0.05, 12);
  });
});
