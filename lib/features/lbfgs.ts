import { PluralignError } from '../native/errors.js';
import { dot } from './linalg.js';

export interface LbfgsOptions {
  /** Steps at most; default 500. */
  maxSteps?: number;
  /** Ends where the largest element of the gradient is below it; default 1e-6. */
  tolerance?: number;
  /** Ends where this many steps together gained less than `relative` of the value; default 10 and 1e-10. */
  patience?: number;
  relative?: number;
  memory?: number;
  signal?: AbortSignal;
}

export interface LbfgsResult {
  value: number;
  steps: number;
  /** The largest element of the last gradient. */
  gradient: number;
  converged: boolean;
}

/** Writes the gradient at x and returns the value. */
export type Objective = (x: Float64Array, gradient: Float64Array) => number;

/**
 * Minimises a smooth function from x, in place: limited-memory BFGS (Liu and Nocedal 1989) with a line search for the
 * weak Wolfe conditions by bisection (Lewis and Overton 2013).
 *
 * @throws PluralignError `NON_FINITE` where the value at the start is not finite, `ABORTED`
 */
export function lbfgs(objective: Objective, x: Float64Array, options: LbfgsOptions = {}): LbfgsResult {
  const search = minimise(x, options);
  let turn = search.next();
  while (!turn.done) turn = search.next(objective(turn.value.at, turn.value.gradient));
  return turn.value;
}

/** The same, letting other work in between evaluations: a fit of minutes hears a stop signal, and a bar can move. */
export async function lbfgsInTurns(
  objective: Objective,
  x: Float64Array,
  options: LbfgsOptions = {},
): Promise<LbfgsResult> {
  const search = minimise(x, options);
  let since = performance.now();
  let turn = search.next();
  while (!turn.done) {
    turn = search.next(objective(turn.value.at, turn.value.gradient));
    if (performance.now() - since < 50) continue;
    await new Promise((resolve) => setImmediate(resolve));
    since = performance.now();
  }
  return turn.value;
}

/** Asks for the value and gradient at one point after another; x is the best so far. */
function* minimise(
  x: Float64Array,
  options: LbfgsOptions,
): Generator<{ at: Float64Array; gradient: Float64Array }, LbfgsResult, number> {
  const { maxSteps = 500, tolerance = 1e-6, patience = 10, relative = 1e-10, memory = 10, signal } = options;
  const n = x.length;
  let g = new Float64Array(n);
  let value = yield { at: x, gradient: g };
  if (!Number.isFinite(value)) throw new PluralignError('NON_FINITE', `the loss is ${value} at the start of the fit`);
  const ss: Float64Array[] = [];
  const ys: Float64Array[] = [];
  const rho: number[] = [];
  const values = [value];
  const direction = new Float64Array(n);
  const trial = new Float64Array(n);
  let trialG = new Float64Array(n);
  const largest = () => g.reduce((top, element) => Math.max(top, Math.abs(element)), 0);
  let steps = 0;
  for (; steps < maxSteps; steps++) {
    if (signal?.aborted) throw new PluralignError('ABORTED', 'stopped on request');
    if (largest() <= tolerance) return { value, steps, gradient: largest(), converged: true };
    if (steps >= patience && values[steps - patience] - value <= relative * Math.max(1, Math.abs(value))) {
      return { value, steps, gradient: largest(), converged: true };
    }
    // Two loops.
    for (let i = 0; i < n; i++) direction[i] = -g[i];
    const alphas = new Float64Array(ss.length);
    for (let h = ss.length - 1; h >= 0; h--) {
      alphas[h] = rho[h] * dot(ss[h], direction);
      for (let i = 0; i < n; i++) direction[i] -= alphas[h] * ys[h][i];
    }
    const last = ss.length - 1;
    const scale =
      last >= 0 ? 1 / (rho[last] * dot(ys[last], ys[last])) : Math.min(1, 1 / Math.sqrt(Math.max(dot(g, g), 1e-300)));
    for (let i = 0; i < n; i++) direction[i] *= scale;
    for (let h = 0; h < ss.length; h++) {
      const beta = rho[h] * dot(ys[h], direction);
      for (let i = 0; i < n; i++) direction[i] += (alphas[h] - beta) * ss[h][i];
    }
    let slope = dot(g, direction);
    if (!(slope < 0)) {
      for (let i = 0; i < n; i++) direction[i] = -g[i];
      slope = -dot(g, g);
      ss.length = ys.length = rho.length = 0;
    }
    let low = 0;
    let high = Number.POSITIVE_INFINITY;
    let step = 1;
    let next = Number.NaN;
    let found = false;
    for (let attempt = 0; attempt < 40; attempt++) {
      for (let i = 0; i < n; i++) trial[i] = x[i] + step * direction[i];
      next = yield { at: trial, gradient: trialG };
      if (!(next <= value + 1e-4 * step * slope)) high = step;
      else if (dot(trialG, direction) < 0.9 * slope) {
        low = step;
        found = true;
      } else {
        found = true;
        break;
      }
      step = Number.isFinite(high) ? (low + high) / 2 : 2 * step;
    }
    if (!(next < value) || !found) {
      // No descent within rounding: as good as it gets, unless the memory misled.
      if (ss.length > 0) {
        ss.length = ys.length = rho.length = 0;
        values.push(value);
        continue;
      }
      return { value, steps, gradient: largest(), converged: largest() <= 1e3 * tolerance };
    }
    const s = new Float64Array(n);
    const y = new Float64Array(n);
    for (let i = 0; i < n; i++) {
      s[i] = trial[i] - x[i];
      y[i] = trialG[i] - g[i];
    }
    const sy = dot(s, y);
    if (sy > 1e-14 * Math.sqrt(dot(s, s) * dot(y, y))) {
      ss.push(s);
      ys.push(y);
      rho.push(1 / sy);
      if (ss.length > memory) {
        ss.shift();
        ys.shift();
        rho.shift();
      }
    }
    x.set(trial);
    [g, trialG] = [trialG, g];
    value = next;
    values.push(value);
  }
  return { value, steps, gradient: largest(), converged: false };
}
