/** Low-rank rewards over votes, as the addon takes them (native/ops/bilinear/bilinear.h states the mathematics). */

type Values = Float32Array | Float64Array;

/** Votes grouped by voter, places best first. */
export interface NativeBallots {
  /** [voters + 1] into the votes. */
  voterStart: Int32Array;
  /** [votes + 1] into the places; absent: every vote is a pair. */
  voteStart?: Int32Array;
  /** Rows of the points. */
  places: Int32Array;
  /** [votes] Plackett–Luce stages; 0 on a pair: a tie. Absent: 1 each. */
  stages?: Int32Array;
  /** [votes] */
  weights?: Float64Array;
  /** [votes] */
  margins?: Float64Array;
  /** Davidson's ν; 0: ties say nothing. */
  tie: number;
}

interface Threaded {
  threads: number;
}

/** Rows of float32 features x [·, d] (all, or those at `rows`) beside points [count, stride] and v [k, d]. */
export interface NativeProjection extends Threaded {
  x: Float32Array;
  d: number;
  rows?: Int32Array;
  k: number;
  v: Values;
  points: Values;
  /** k rounded up to 64 bytes. */
  stride: number;
}

export interface NativeVoteLoss extends Threaded {
  ballots: NativeBallots;
  /** [n, stride] */
  points: Values;
  /** [voters, stride], or rows of which `voterRows` [voters] says the voters'. */
  users: Values;
  voterRows?: Int32Array;
  stride: number;
  /** Overwritten; both or neither. */
  dPoints?: Values;
  dUsers?: Values;
}

export interface NativeBilinear {
  /** points = x vᵀ; columns beyond k become zero. */
  project(call: NativeProjection): number;
  /** v = pointsᵀ x, overwritten. */
  projectBack(call: NativeProjection): number;
  /** Weighted sum of minus the log-likelihoods. */
  loss(call: NativeVoteLoss): number;
  /**
   * Every voter's first `free` coordinates at the minimum of loss + l2/2 ‖·‖², float64; `users` is where it starts and
   * ends. factors [voters, free, free]: lower Cholesky factors of the Hessians. Returns the most steps one took.
   */
  newton(
    call: Threaded & {
      ballots: NativeBallots;
      points: Float64Array;
      users: Float64Array;
      stride: number;
      free: number;
      l2: number;
      tolerance: number;
      factors?: Float64Array;
    },
  ): number;
  /** One Adam step of some rows of parameters [·, stride], each with its own count of steps. */
  adam(
    call: Threaded & {
      parameters: Float32Array;
      m: Float32Array;
      v: Float32Array;
      /** [rows of parameters] */
      steps: Int32Array;
      stride: number;
      /** Columns that move. */
      free: number;
      rows: Int32Array;
      /** [rows, stride]; l2 · share · parameters is added to gradientScale times it. */
      gradient: Float32Array;
      share?: Float32Array;
      l2: number;
      gradientScale: number;
      learningRate: number;
      beta1: number;
      beta2: number;
      eps: number;
    },
  ): number;
  /** Reads x once (sum of squares). */
  read(call: Threaded & { x: Float32Array }): number;
}
