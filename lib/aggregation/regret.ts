import { PluralignError } from '../native/errors.js';

/** A rectangular matrix as rows. */
export type Matrix = readonly (readonly number[])[];

/** Columns of a matrix; throws `BAD_DATA` naming `what` unless it is rectangular, not empty and finite. */
export function checkMatrix(what: string, matrix: Matrix): number {
  const bad = (message: string) => new PluralignError('BAD_DATA', `${what}: ${message}`);
  if (!Array.isArray(matrix) || matrix.length === 0) throw bad('found no rows, expected a list of rows of numbers');
  const columns = Array.isArray(matrix[0]) ? matrix[0].length : 0;
  if (columns === 0) throw bad('row 1 is empty or no list, expected numbers');
  matrix.forEach((row, k) => {
    if (!Array.isArray(row) || row.length !== columns)
      throw bad(`row ${k + 1} has ${Array.isArray(row) ? row.length : 0} entries, expected ${columns} as in row 1`);
    row.forEach((value, j) => {
      if (typeof value !== 'number' || !Number.isFinite(value))
        throw bad(`row ${k + 1}, entry ${j + 1}: found ${JSON.stringify(value)}, expected a finite number`);
    });
  });
  return columns;
}

/**
 * Rewards of each type under each policy, [K, J]: β L.
 *
 * `L` [K, J]: `L_kk' = E_{y∼π_k'}[log π_k(y|x) / π_ref(y|x)]`. Throws `BAD_DATA`, `BAD_ARGUMENT` for β ≤ 0.
 */
export function rewardMatrix(L: Matrix, beta = 1): number[][] {
  checkMatrix('L', L);
  if (!(beta > 0) || !Number.isFinite(beta))
    throw new PluralignError('BAD_ARGUMENT', `beta: found ${beta}, expected a number above 0`);
  return L.map((row) => row.map((value) => beta * value));
}

/**
 * Regret of each type under each policy, [K, J]: R_kj = u_k* − u_kj, with u_k* the type's reward under its own policy
 * (the diagonal) where the matrix is square, else its best. Entries of a square matrix may be negative: an estimate, or a
 * policy that serves a type better than its own.
 *
 * Source: Chidambaram et al. 2024 (arXiv 2405.15065), regret_k(w) = β Σ_k' w_k' (L_kk − L_kk').
 */
export function regretMatrix(rewards: Matrix): number[][] {
  const columns = checkMatrix('rewards', rewards);
  const square = columns === rewards.length;
  return rewards.map((row, k) => {
    const best = square ? row[k] : Math.max(...row);
    return row.map((value) => best - value);
  });
}

/** The matrix with a row of zeros behind it, [K+1, J]: max_p pᵀRw is then max_k [regret_k(w)]₊. */
export function withZeroRow(regret: Matrix): number[][] {
  return [...regret.map((row) => [...row]), new Array<number>(regret[0].length).fill(0)];
}

/** M w, [rows]. */
export function times(matrix: Matrix, w: ArrayLike<number>): number[] {
  return matrix.map((row) => row.reduce((sum, value, j) => sum + value * w[j], 0));
}
