import { PluralignError } from '../native/errors.js';
import { checkMatrix, type Matrix, times } from './regret.js';

export interface GameSolution {
  /** Mixture over columns that minimises the worst row, [columns]. */
  w: number[];
  /** Mixture over rows that maximises the best column, [rows]. */
  p: number[];
  /** max_i (M w)_i: what `w` guarantees; the game's value where `w` is optimal. */
  value: number;
}

function largest(matrix: Matrix): number {
  return matrix.reduce((most, row) => row.reduce((m, value) => Math.max(m, Math.abs(value)), most), 0);
}

const pivotFloor = 1e-12;

/**
 * min_w max_p pᵀ M w over two simplices, exactly, by the simplex method in float64.
 *
 * With M shifted to be positive it is the linear program max Σ y, M y ≤ 1, y ≥ 0 (w = y / Σ y), whose slack basis is
 * feasible; p is its dual. Bland's rule, so that ties never cycle. `M` [rows, columns]; throws `BAD_DATA`.
 */
export function solveGame(M: Matrix): GameSolution {
  const columns = checkMatrix('matrix', M);
  const rows = M.length;
  const scale = largest(M) || 1;
  const width = columns + rows + 1;
  // Scaled entries lie in [−1, 1]; the shift makes them 1 … 3.
  const tableau = M.map((row, i) => {
    const line = new Float64Array(width);
    row.forEach((value, j) => {
      line[j] = value / scale + 2;
    });
    line[columns + i] = 1;
    line[width - 1] = 1;
    return line;
  });
  const cost = new Float64Array(width).fill(-1, 0, columns);
  const basis = Array.from({ length: rows }, (_, i) => columns + i);
  for (let iteration = 0; ; iteration++) {
    const entering = cost.findIndex((c, j) => j < width - 1 && c < -pivotFloor);
    if (entering < 0) break;
    let leaving = -1;
    let best = Number.POSITIVE_INFINITY;
    for (let i = 0; i < rows; i++) {
      if (tableau[i][entering] <= pivotFloor) continue;
      const ratio = tableau[i][width - 1] / tableau[i][entering];
      if (ratio < best || (ratio === best && basis[i] < basis[leaving])) {
        best = ratio;
        leaving = i;
      }
    }
    if (leaving < 0 || iteration > 10_000)
      throw new PluralignError('INTERNAL', `the linear program of a ${rows} × ${columns} matrix was not solved`);
    pivot(tableau, cost, leaving, entering);
    basis[leaving] = entering;
  }
  const y = new Array<number>(columns).fill(0);
  basis.forEach((variable, i) => {
    if (variable < columns) y[variable] = Math.max(0, tableau[i][width - 1]);
  });
  const dual = Array.from({ length: rows }, (_, i) => Math.max(0, cost[columns + i]));
  const w = normalised(y);
  return { w, p: normalised(dual), value: Math.max(...times(M, w)) };
}

function pivot(tableau: Float64Array[], cost: Float64Array, row: number, column: number): void {
  const line = tableau[row];
  const by = line[column];
  for (let j = 0; j < line.length; j++) line[j] /= by;
  for (const other of [...tableau, cost]) {
    const factor = other[column];
    if (other === line || factor === 0) continue;
    for (let j = 0; j < other.length; j++) other[j] -= factor * line[j];
  }
}

function normalised(values: readonly number[]): number[] {
  const sum = values.reduce((a, b) => a + b, 0);
  return values.map((value) => value / sum);
}

export interface HedgeOptions {
  /** η, on the matrix scaled to largest entry 1. Default .05. */
  stepSize?: number;
  /** T. Default 10,000. */
  iterations?: number;
}

/**
 * min_w max_p pᵀ M w by optimistic Hedge:
 * w_t ∝ w_{t−1} exp(−η(2Mᵀp_{t−1} − Mᵀp_{t−2})), p_t ∝ p_{t−1} exp(+η(2Mw_{t−1} − Mw_{t−2})); returns the averages.
 *
 * Source: Chidambaram et al. 2024 (arXiv 2405.15065), η .05 and T 10,000 as there. The gap to the game's value falls as
 * log(rows · columns) / (η T), about .009 of the largest entry for 8 types. `M` [rows, columns]; throws `BAD_DATA`.
 */
export function optimisticHedge(M: Matrix, options: HedgeOptions = {}): GameSolution {
  const columns = checkMatrix('matrix', M);
  const rows = M.length;
  const { stepSize = 0.05, iterations = 10_000 } = options;
  const scale = largest(M) || 1;
  const flat = Float64Array.from(M.flat(), (value) => value / scale);
  const w = new Float64Array(columns).fill(1 / columns);
  const p = new Float64Array(rows).fill(1 / rows);
  const logW = new Float64Array(columns);
  const logP = new Float64Array(rows);
  const meanW = new Float64Array(columns);
  const meanP = new Float64Array(rows);
  const loss = { now: new Float64Array(columns), before: new Float64Array(columns) };
  const gain = { now: new Float64Array(rows), before: new Float64Array(rows) };
  for (let t = 0; t < iterations; t++) {
    for (let j = 0; j < columns; j++) meanW[j] += w[j] / iterations;
    for (let i = 0; i < rows; i++) meanP[i] += p[i] / iterations;
    loss.now.fill(0);
    for (let i = 0; i < rows; i++) {
      let sum = 0;
      for (let j = 0; j < columns; j++) {
        const m = flat[i * columns + j];
        sum += m * w[j];
        loss.now[j] += m * p[i];
      }
      gain.now[i] = sum;
    }
    for (let j = 0; j < columns; j++) logW[j] -= stepSize * (2 * loss.now[j] - loss.before[j]);
    for (let i = 0; i < rows; i++) logP[i] += stepSize * (2 * gain.now[i] - gain.before[i]);
    softmax(logW, w);
    softmax(logP, p);
    loss.before.set(loss.now);
    gain.before.set(gain.now);
  }
  return { w: [...meanW], p: [...meanP], value: Math.max(...times(M, meanW)) };
}

function softmax(logits: Float64Array, out: Float64Array): void {
  let most = Number.NEGATIVE_INFINITY;
  for (const value of logits) most = Math.max(most, value);
  let sum = 0;
  for (let i = 0; i < logits.length; i++) {
    out[i] = Math.exp(logits[i] - most);
    sum += out[i];
  }
  for (let i = 0; i < logits.length; i++) out[i] /= sum;
}
