// Planted voters: rewards linear in d features, w_u = V z_u with V [d, k] orthonormal and z_u standard normal; or ⟨V Z_u, Φ⟩
// for items that are matrices Φ [d, columns], kept column by column, with Z_u [k, columns].
import { featureModel, fitLinear, itemTable, votesByAnnotator } from 'pluralign';

/** sfc32, seeded; uniform in [0, 1) and standard normal. */
export function generator(seed) {
  let [a, b, c, counter] = [seed ^ 0x9e3779b9, seed ^ 0x85ebca6b, seed ^ 0xc2b2ae35, 1];
  const uniform = () => {
    const out = (((a + b) | 0) + counter) | 0;
    counter = (counter + 1) | 0;
    a = b ^ (b >>> 9);
    b = (c + (c << 3)) | 0;
    c = (((c << 21) | (c >>> 11)) + out) | 0;
    return (out >>> 0) / 2 ** 32;
  };
  for (let i = 0; i < 20; i++) uniform();
  const normal = () => Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform());
  return { uniform, normal, below: (n) => Math.floor(uniform() * n) };
}

/** Columns of a [d, k] matrix made orthonormal; random ones by default. */
function orthonormal(random, d, k, v = Float64Array.from({ length: d * k }, random.normal)) {
  for (let c = 0; c < k; c++) {
    for (let pass = 0; pass < 2; pass++) {
      for (let p = 0; p < c; p++) {
        let dot = 0;
        for (let j = 0; j < d; j++) dot += v[j * k + p] * v[j * k + c];
        for (let j = 0; j < d; j++) v[j * k + c] -= dot * v[j * k + p];
      }
    }
    let norm = 0;
    for (let j = 0; j < d; j++) norm += v[j * k + c] ** 2;
    for (let j = 0; j < d; j++) v[j * k + c] /= Math.sqrt(norm);
  }
  return v;
}

/**
 * `voters`: different, or identical (all have the first one's tastes). Each casts `pairs` votes, and `held` more. The
 * world's `d` counts all features of an item, `wide` those of a column.
 */
export function plant({
  N = 200,
  d: wide = 64,
  k = 4,
  columns = 1,
  pairs = 40,
  held = 10,
  items = 1000,
  seed = 0,
  voters = 'different',
}) {
  const random = generator(seed + 1);
  const d = wide * columns;
  const features = Float32Array.from({ length: items * d }, random.normal);
  const table = itemTable(
    'planted',
    Array.from({ length: items }, (_, i) => `${i}`),
    features,
    d,
  );
  const V = orthonormal(random, wide, k);
  // ‖w_u‖ is 2 on average whatever the rank.
  const size = 2 / Math.sqrt(k * columns);
  const W = new Float64Array(N * d);
  const first = Array.from({ length: k * columns }, random.normal);
  for (let u = 0; u < N; u++) {
    const z = voters === 'identical' ? first : Array.from({ length: k * columns }, random.normal);
    for (let j = 0; j < d; j++) {
      const [column, row] = [Math.floor(j / wide), j % wide];
      for (let c = 0; c < k; c++) W[u * d + j] += size * V[row * k + c] * z[column * k + c];
    }
  }
  const cast = (each) => {
    const m = N * each;
    const votes = {
      annotators: Array.from({ length: N }, (_, u) => `u${u}`),
      annotator: Int32Array.from({ length: m }, (_, v) => Math.floor(v / each)),
      offsets: Int32Array.from({ length: m + 1 }, (_, v) => 2 * v),
      items: new Int32Array(2 * m),
      stages: new Int32Array(m).fill(1),
      weights: new Float64Array(m).fill(1),
      margins: new Float64Array(m),
      rows: Int32Array.from({ length: m }, (_, v) => v),
      m,
    };
    for (let v = 0; v < m; v++) {
      const [a, b] = [random.below(items), random.below(items)];
      let x = 0;
      for (let j = 0; j < d; j++) x += W[votes.annotator[v] * d + j] * (features[a * d + j] - features[b * d + j]);
      const chooseA = random.uniform() < 1 / (1 + Math.exp(-x));
      votes.items.set(chooseA ? [a, b] : [b, a], 2 * v);
    }
    return votes;
  };
  return { table, V, W, N, d, wide, columns, k, votes: cast(pairs), held: cast(held) };
}

/** Fits a model; returns everyone's weights [N, d] (and the shared factor, where there is one). */
export async function fit(
  { table, votes, N, d, wide, columns },
  model,
  { rank = 4, l2 = 1, residual = l2, seed = 0 } = {},
) {
  const made = featureModel(model, d, rank, columns);
  const { parameters } = await made.fit(table, votes, { model, rank, l2, residual, seed });
  const weights = new Float64Array(N * d);
  const c = new Float64Array(made.k);
  for (let u = 0; u < N; u++) {
    made.user(parameters.shared, parameters.own.subarray(u * made.own, (u + 1) * made.own), c);
    weights.set(made.weights(parameters.shared, c), u * d);
  }
  return { weights, factor: parameters.shared.slice(0, wide * Math.min(rank, wide)) };
}

/** As the shared model, but the subspace is the true one: what no method can know. */
export function oracle({ table, votes, V, N, d, wide, columns, k }, l2 = 1) {
  const own = k * columns;
  const points = new Float64Array(table.n * own);
  for (let i = 0; i < table.n * columns; i++) {
    for (let j = 0; j < wide; j++)
      for (let c = 0; c < k; c++) points[i * k + c] += table.features[i * wide + j] * V[j * k + c];
  }
  const by = votesByAnnotator(votes);
  const weights = new Float64Array(N * d);
  for (let u = 0; u < N; u++) {
    const { z } = fitLinear({ votes, which: by.votes.subarray(by.offsets[u], by.offsets[u + 1]), points, k: own, l2 });
    for (let j = 0; j < d; j++) {
      const [column, row] = [Math.floor(j / wide), j % wide];
      for (let c = 0; c < k; c++) weights[u * d + j] += V[row * k + c] * z[column * k + c];
    }
  }
  return { weights, factor: V };
}

/** ‖ŵ_u − w_u‖² of every voter, divided by the mean ‖w_u‖². */
export function errors({ W, N, d }, weights) {
  const out = new Float64Array(N);
  let size = 0;
  for (let u = 0; u < N; u++) {
    for (let j = u * d; j < (u + 1) * d; j++) {
      out[u] += (weights[j] - W[j]) ** 2;
      size += W[j] ** 2 / N;
    }
  }
  return out.map((e) => e / size);
}

/** Mean log-likelihood of the held-out votes. */
export function heldOut({ table, held, d }, weights) {
  let sum = 0;
  for (let v = 0; v < held.m; v++) {
    const [a, b] = held.items.subarray(2 * v, 2 * v + 2);
    const at = held.annotator[v] * d;
    let x = 0;
    for (let j = 0; j < d; j++) x += weights[at + j] * (table.features[a * d + j] - table.features[b * d + j]);
    sum -= Math.max(0, -x) + Math.log1p(Math.exp(-Math.abs(x)));
  }
  return sum / held.m;
}

/** The fit with the best held-out likelihood among the given settings. */
export async function chosen(world, settings) {
  let best = null;
  for (const { model, ...options } of settings) {
    const result = await fit(world, model, options);
    const value = heldOut(world, result.weights);
    if (!best || value > best.value) best = { ...result, model, options, value };
  }
  return best;
}

/** What the best mean and `rank` directions for these voters, all known, leave of their rewards: Σ ‖w_u − ŵ_u‖² / Σ ‖w_u‖². */
export function leftBy({ W, N, d }, rank, rounds = 60) {
  const middle = Float64Array.from({ length: d }, (_, j) => mean(Array.from({ length: N }, (_, u) => W[u * d + j])));
  const away = W.map((w, at) => w - middle[at % d]);
  let v = orthonormal(generator(rank), d, rank);
  for (let round = 0; round <= rounds; round++) {
    const inside = new Float64Array(N * rank);
    for (let u = 0; u < N; u++)
      for (let j = 0; j < d; j++)
        for (let c = 0; c < rank; c++) inside[u * rank + c] += away[u * d + j] * v[j * rank + c];
    const square = (list) => list.reduce((sum, x) => sum + x * x, 0);
    if (round === rounds) return Math.max(0, square(away) - square(inside)) / square(W);
    const next = new Float64Array(d * rank);
    for (let u = 0; u < N; u++)
      for (let j = 0; j < d; j++)
        for (let c = 0; c < rank; c++) next[j * rank + c] += away[u * d + j] * inside[u * rank + c];
    v = orthonormal(null, d, rank, next);
  }
}

/** ‖(I − V Vᵀ) V̂‖_F: the distance between two subspaces of one rank. */
export function subspaceDistance({ V, wide: d, k }, factor) {
  let inside = 0;
  for (let a = 0; a < k; a++) {
    for (let b = 0; b < k; b++) {
      let dot = 0;
      for (let j = 0; j < d; j++) dot += V[j * k + a] * factor[j * k + b];
      inside += dot * dot;
    }
  }
  return Math.sqrt(Math.max(0, k - inside));
}

export const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;

/** The middle 95 % of a statistic over resamples of its list. */
export function bootstrap(list, statistic, rounds = 2000, seed = 7) {
  const random = generator(seed);
  const values = Array.from({ length: rounds }, () => statistic(list.map(() => list[random.below(list.length)])));
  values.sort((a, b) => a - b);
  return [values[Math.floor(0.025 * rounds)], values[Math.ceil(0.975 * rounds) - 1]];
}
