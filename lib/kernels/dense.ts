import { addon } from '../native/loader.js';
import { apart, bad, finite, floats, launch, type RunOptions, whole } from './check.js';

/** Matrices are row-major. */
export interface Matmul extends RunOptions {
  m: number;
  n: number;
  k: number;
  /** [m × k], or [k × m] with `transposeA`. */
  a: Float32Array;
  /** [k × n], or [n × k] with `transposeB` (as a linear layer stores its weight). */
  b: Float32Array;
  /** Result, [m × n]. */
  c: Float32Array;
  /** Added to every row, [n]. */
  bias?: Float32Array;
  transposeA?: boolean;
  transposeB?: boolean;
  /** Default 1. */
  alpha?: number;
  /** Add to what `c` holds; default: overwrite it. */
  accumulate?: boolean;
}

/**
 * C = α A B (+ bias) (+ C), float32. Sums over k run in one order, so that a row of C does not depend on the other rows or
 * on threads. Runs off the main thread; leave the arrays unchanged until the promise settles. Rejects with `BAD_SHAPE`
 * naming the array, `BAD_ARGUMENT`, `ABORTED`.
 */
export async function matmul(call: Matmul): Promise<void> {
  const { transposeA = false, transposeB = false, accumulate = false } = call;
  const m = whole('m', call.m, 0);
  const n = whole('n', call.n, 0);
  const k = whole('k', call.k, 0);
  const a = floats('a', call.a, m * k, transposeA ? `k ${k} × m ${m}` : `m ${m} × k ${k}`);
  const b = floats('b', call.b, k * n, transposeB ? `n ${n} × k ${k}` : `k ${k} × n ${n}`);
  const c = floats('c', call.c, m * n, `m ${m} × n ${n}`);
  const bias = call.bias && floats('bias', call.bias, n, `n ${n}`);
  const alpha = finite('alpha', call.alpha ?? 1);
  const read: [string, Float32Array][] = [
    ['a', a],
    ['b', b],
  ];
  apart(['c', c], bias ? [...read, ['bias', bias]] : read);
  await launch(call, (threads, abort) =>
    addon().kernels.matmul({ m, n, k, a, b, c, bias, transposeA, transposeB, accumulate, alpha, threads, abort }),
  );
}

/** One step over whole arrays of one length, changed in place but for `gradients`. */
export interface AdamW {
  parameters: Float32Array;
  gradients: Float32Array;
  /** Running mean of the gradients; zeros before the first step. */
  m: Float32Array;
  /** Running mean of their squares; zeros before the first step. */
  v: Float32Array;
  /** Steps taken with this one, from 1. */
  step: number;
  learningRate: number;
  /** Default 0.9. */
  beta1?: number;
  /** Default 0.999. */
  beta2?: number;
  /** Default 1e-8. */
  eps?: number;
  /** Default 0. */
  weightDecay?: number;
  /** Gradients are multiplied by this first; default 1. */
  gradScale?: number;
}

/**
 * m ← β₁ m + (1−β₁) g, v ← β₂ v + (1−β₂) g², p ← p (1 − η λ) − η m̂ / (√v̂ + ε), with m̂ = m / (1−β₁ᵗ) and
 * v̂ = v / (1−β₂ᵗ). AdamW, Loshchilov & Hutter 2019, algorithm 2. Rejects with `BAD_SHAPE` or `BAD_ARGUMENT`.
 */
export async function adamw(call: AdamW): Promise<void> {
  const parameters = floats('parameters', call.parameters);
  const size = parameters.length;
  const like = (name: 'gradients' | 'm' | 'v') => floats(name, call[name], size, 'as many as parameters');
  const [gradients, m, v] = [like('gradients'), like('m'), like('v')];
  const rate = (name: 'beta1' | 'beta2', value: number): number => {
    if (!(value >= 0 && value < 1)) bad(`${name} is ${value}; expected a number in [0, 1)`);
    return value;
  };
  await addon().adamw(parameters, gradients, m, v, {
    spans: Int32Array.of(0, size),
    steps: Int32Array.of(whole('step', call.step, 1)),
    decay: Uint8Array.of(1),
    learningRate: finite('learningRate', call.learningRate),
    beta1: rate('beta1', call.beta1 ?? 0.9),
    beta2: rate('beta2', call.beta2 ?? 0.999),
    eps: finite('eps', call.eps ?? 1e-8),
    weightDecay: finite('weightDecay', call.weightDecay ?? 0),
    gradScale: finite('gradScale', call.gradScale ?? 1),
  });
}
