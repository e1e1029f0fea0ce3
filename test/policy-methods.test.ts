// RLOO, GRPO, REINFORCE++ and PPO on fixed rollouts, against formulas written out by definition and finite differences.
import { describe, expect, it } from 'vitest';
import { Random } from '../lib/base/random.js';
import { Grpo, type GrpoOptions } from '../lib/methods/grpo.js';
import { type PolicyMethod, type Rollout, surrogate, type UpdatePart, whiten } from '../lib/methods/policy.js';
import { Ppo, type PpoOptions } from '../lib/methods/ppo.js';
import { ReinforcePlusPlus } from '../lib/methods/reinforce.js';
import { Rloo } from '../lib/methods/rloo.js';

const mean = (v: ArrayLike<number>) => Array.from(v).reduce((a, b) => a + b, 0) / v.length;
const deviation = (v: ArrayLike<number>) =>
  Math.sqrt(Array.from(v).reduce((a, x) => a + (x - mean(v)) ** 2, 0) / (v.length - 1));

/** Completions of 1 to 5 tokens; `size` for each of `prompts` prompts. */
function rollout(prompts: number, size: number, seed = 1): Rollout {
  const random = new Random(seed);
  const count = prompts * size;
  const lengths = Array.from({ length: count }, () => 1 + random.below(5));
  const offsets = Int32Array.from([0, ...lengths.map((_, c) => lengths.slice(0, c + 1).reduce((a, b) => a + b, 0))]);
  const tokens = offsets[count];
  const logps = () => Float32Array.from({ length: tokens }, () => -0.2 - 2 * random.uniform());
  const scores = () => Float64Array.from({ length: count }, () => random.normal());
  const parts = [scores(), scores()];
  const weights = [0.7, -0.4];
  return {
    groups: Array.from({ length: prompts }, (_, index) => ({
      index,
      kind: 'text' as const,
      prompt: Int32Array.of(1),
      completions: lengths.slice(index * size, (index + 1) * size).map((n) => new Int32Array(n)),
      weight: 1,
      origin: { file: 'fixed', line: index + 1 },
    })),
    groupOffsets: Int32Array.from({ length: prompts + 1 }, (_, g) => g * size),
    offsets,
    old: logps(),
    reference: logps(),
    scores: parts[0].map((s, c) => 0.7 * s - 0.4 * parts[1][c]),
    parts,
    weights,
    ended: new Uint8Array(count).fill(1),
    values: Float32Array.from({ length: tokens }, () => random.normal()),
  };
}

/** The rollout as one update sees it, some way off the policy that sampled it. */
function partOf(r: Rollout, advantages: Float64Array, away = 0.4): UpdatePart {
  const random = new Random(9);
  const logps = r.old.map((logp) => logp + away * random.normal());
  return { offsets: r.offsets, logps, old: r.old, reference: r.reference, advantages };
}

const totalsOf = (r: Rollout) => ({
  completions: r.offsets.length - 1,
  tokens: r.old.length,
  rolloutTokens: r.old.length,
  longest: 7,
});

/** The gradient of a loss against differences of its own value, away from the corners of clipping. */
function expectGradient(method: PolicyMethod, part: UpdatePart, r: Rollout): void {
  const { gradient } = method.loss(part, totalsOf(r));
  const h = 1 / 1024;
  for (let t = 0; t < part.logps.length; t++) {
    const at = (d: number) => {
      const logps = part.logps.slice();
      logps[t] += d;
      return method.loss({ ...part, logps }, totalsOf(r));
    };
    const [up, here, down] = [at(h), at(0), at(-h)];
    if (up.clipped !== down.clipped) continue;
    expect(gradient[t]).toBeCloseTo((up.loss - down.loss) / (2 * h), 4);
    expect(here.loss).toBeCloseTo(at(0).loss, 12);
  }
  expect(gradient.some((g) => g !== 0)).toBe(true);
}

/** Of one token or sequence, by the definition. */
const clippedLoss = (ratio: number, a: number, low: number, high: number) =>
  -Math.min(ratio * a, Math.min(Math.max(ratio, 1 - low), 1 + high) * a);

const tokensOf = (r: Rollout, c: number) =>
  Array.from({ length: r.offsets[c + 1] - r.offsets[c] }, (_, i) => r.offsets[c] + i);

describe('the clipped surrogate', () => {
  it('follows min(ρ A, clip(ρ) A) on both sides of both bounds', () => {
    for (const advantage of [-1.3, 0.8])
      for (const difference of [-0.9, -0.1, 0, 0.1, 0.9]) {
        const { loss, slope } = surrogate(difference, advantage, 0.2, 0.3);
        expect(loss).toBeCloseTo(clippedLoss(Math.exp(difference), advantage, 0.2, 0.3), 12);
        const at = (d: number) => clippedLoss(Math.exp(difference + d), advantage, 0.2, 0.3);
        expect(slope).toBeCloseTo((at(1e-6) - at(-1e-6)) / 2e-6, 5);
      }
  });
});

describe('rloo', () => {
  const options = {
    group_size: 4,
    beta: 0.3,
    target: null,
    horizon: 100,
    epochs: 1,
    minibatches: 1,
    clip: 0.2,
    normalise_advantages: false,
  };
  const r = rollout(3, 4);

  it('takes the mean of the others off a reward with the KL of the sequence', () => {
    const { advantages } = new Rloo(options).estimate(r);
    for (let c = 0; c < 12; c++) {
      const reward = (i: number) =>
        r.scores[i] - 0.3 * tokensOf(r, i).reduce((s, t) => s + r.old[t] - r.reference[t], 0);
      const others = [0, 1, 2, 3].map((k) => 4 * Math.floor(c / 4) + k).filter((i) => i !== c);
      const expected = reward(c) - mean(others.map(reward));
      for (const t of tokensOf(r, c)) expect(advantages[t]).toBeCloseTo(expected, 10);
    }
  });

  it('clips the ratio of whole sequences, and its gradient is that of its loss', () => {
    const method = new Rloo(options);
    const { advantages } = method.estimate(r);
    const part = partOf(r, advantages, 0.1);
    const expected = mean(
      Array.from({ length: 12 }, (_, c) => {
        const difference = tokensOf(r, c).reduce((s, t) => s + part.logps[t] - r.old[t], 0);
        return clippedLoss(Math.exp(difference), advantages[r.offsets[c]], 0.2, 0.2);
      }),
    );
    expect(method.loss(part, totalsOf(r)).loss).toBeCloseTo(expected, 10);
    expectGradient(method, part, r);
  });

  it('is plain policy gradient where the policy has not moved', () => {
    const method = new Rloo(options);
    const { advantages } = method.estimate(r);
    const { gradient, clipped } = method.loss(partOf(r, advantages, 0), totalsOf(r));
    expect(clipped).toBe(0);
    for (const [t, g] of gradient.entries()) expect(g).toBeCloseTo(-advantages[t] / 12, 6);
  });

  it('moves β towards the target after a step, and keeps it over a resume', () => {
    const kl = mean(
      Array.from({ length: 12 }, (_, c) => tokensOf(r, c).reduce((s, t) => s + r.old[t] - r.reference[t], 0)),
    );
    const method = new Rloo({ ...options, target: 1e6 });
    const first = method.estimate(r);
    expect(first.metrics).toEqual({ beta: 0.3 });
    expect(first.advantages).toEqual(new Rloo(options).estimate(r).advantages);
    const error = Math.max(-0.2, kl / 1e6 - 1);
    const beta = 0.3 * (1 + (error * 12) / 100);
    expect(method.estimate(r).metrics.beta).toBeCloseTo(beta, 12);
    const other = new Rloo({ ...options, target: 1e6 });
    other.restore(method.state());
    const [a, b] = [other.estimate(r), method.estimate(r)];
    expect(a).toEqual(b);
    expect(a.metrics.beta).toBeLessThan(beta);
    expect(a.advantages).not.toEqual(first.advantages);
    const still = new Rloo(options);
    still.estimate(r);
    expect(still.state()).toEqual({ beta: 0.3 });
  });

  it('can bring advantages to deviation 1', () => {
    const { advantages } = new Rloo({ ...options, normalise_advantages: true }).estimate(r);
    const each = Array.from({ length: 12 }, (_, c) => advantages[r.offsets[c]]);
    expect(mean(each)).toBeCloseTo(0, 10);
    expect(deviation(each)).toBeCloseTo(1, 6);
  });
});

describe('grpo', () => {
  const options: GrpoOptions = {
    group_size: 4,
    beta: 0.07,
    epochs: 1,
    minibatches: 1,
    clip: 0.2,
    clip_high: 0.28,
    loss: 'grpo',
    scale: 'group',
    aggregation: 'sum_then_normalise',
  };
  const r = rollout(3, 4, 2);
  const groupOf = (c: number, v: ArrayLike<number>) =>
    Array.from(v).slice(4 * Math.floor(c / 4), 4 * Math.floor(c / 4) + 4);

  it.each([
    ['group', (c: number) => deviation(groupOf(c, r.scores)) + 1e-4],
    ['batch', () => deviation(r.scores) + 1e-4],
    ['none', () => 1],
  ] as const)('compares with the group, over the deviation of the %s', (scale, by) => {
    const { advantages } = new Grpo({ ...options, scale }).estimate(r);
    for (let c = 0; c < 12; c++)
      expect(advantages[r.offsets[c]]).toBeCloseTo((r.scores[c] - mean(groupOf(c, r.scores))) / by(c), 10);
  });

  it('normalises each of several rewards before it adds them up', () => {
    const { advantages } = new Grpo({ ...options, aggregation: 'normalise_then_sum' }).estimate(r);
    const sums = Array.from({ length: 12 }, (_, c) =>
      r.parts.reduce((s, part, k) => {
        const group = groupOf(c, part);
        return s + (r.weights[k] * (part[c] - mean(group))) / (deviation(group) + 1e-4);
      }, 0),
    );
    for (let c = 0; c < 12; c++)
      expect(advantages[r.offsets[c]]).toBeCloseTo((sums[c] - mean(sums)) / (deviation(sums) + 1e-4), 10);
  });

  it.each(['grpo', 'dr_grpo', 'dapo', 'bnpo'] as const)('averages token losses as %s', (loss) => {
    const method = new Grpo({ ...options, loss });
    const { advantages } = method.estimate(r);
    const part = partOf(r, advantages);
    const totals = { completions: 12, tokens: r.old.length, rolloutTokens: r.old.length + 5, longest: 7 };
    const token = (t: number) => {
      const d = r.reference[t] - part.logps[t];
      return clippedLoss(Math.exp(part.logps[t] - r.old[t]), advantages[t], 0.2, 0.28) + 0.07 * (Math.exp(d) - d - 1);
    };
    const rows = Array.from({ length: 12 }, (_, c) => tokensOf(r, c).map(token));
    const all = rows.flat();
    const sum = all.reduce((a, b) => a + b, 0);
    const expected = {
      grpo: mean(rows.map((row) => mean(row))),
      dr_grpo: sum / (12 * 7),
      bnpo: mean(all),
      dapo: sum / (all.length + 5),
    };
    expect(method.loss(part, totals).loss).toBeCloseTo(expected[loss], 10);
    expectGradient(method, part, r);
  });
});

describe('reinforce++', () => {
  const options = { group_size: 1, beta: 0.2, epochs: 1, minibatches: 1, clip: 0.2 };

  it.each([1, 4])('sums rewards to come and normalises over the batch, %i samples a prompt', (group_size) => {
    const r = rollout(12 / group_size, group_size, 3);
    const method = new ReinforcePlusPlus({ ...options, group_size });
    const { advantages } = method.estimate(r);
    const returns: number[] = [];
    for (let c = 0; c < 12; c++) {
      const first = group_size * Math.floor(c / group_size);
      const base = group_size > 1 ? mean(r.scores.slice(first, first + group_size)) : 0;
      for (const t of tokensOf(r, c))
        returns.push(
          r.scores[c] -
            base -
            0.2 *
              tokensOf(r, c)
                .filter((s) => s >= t)
                .reduce((s, u) => s + r.old[u] - r.reference[u], 0),
        );
    }
    const scale = Math.sqrt(deviation(returns) ** 2 + 1e-8);
    for (const [t, value] of returns.entries()) expect(advantages[t]).toBeCloseTo((value - mean(returns)) / scale, 9);
    expectGradient(method, partOf(r, advantages), r);
  });
});

describe('ppo', () => {
  const options: PpoOptions = {
    epochs: 4,
    minibatches: 1,
    beta: 0.2,
    target: 6,
    horizon: 10000,
    gamma: 0.9,
    lambda: 0.8,
    clip: 0.2,
    value_clip: 0.2,
    vf_coef: 0.1,
    whiten_rewards: false,
    whiten_advantages: false,
    stop_kl: null,
  };
  const r = rollout(6, 1, 4);
  const rewardOf = (c: number, t: number) =>
    -0.2 * (r.old[t] - r.reference[t]) + (t === r.offsets[c + 1] - 1 ? r.scores[c] : 0);

  it('estimates advantages by GAE: the sum over s of (γλ)^s δ_{t+s}', () => {
    const { advantages, returns } = new Ppo(options).estimate(r);
    for (let c = 0; c < 6; c++) {
      const tokens = tokensOf(r, c);
      for (const t of tokens) {
        let expected = 0;
        for (const s of tokens.filter((u) => u >= t)) {
          const next = tokens.includes(s + 1) ? r.values![s + 1] : 0;
          expected += (0.9 * 0.8) ** (s - t) * (rewardOf(c, s) + 0.9 * next - r.values![s]);
        }
        expect(advantages[t]).toBeCloseTo(expected, 9);
        expect(returns![t]).toBeCloseTo(expected + r.values![t], 9);
      }
    }
  });

  it('with λ = γ = 1 returns are the rewards to come, whatever the critic says', () => {
    const { returns } = new Ppo({ ...options, gamma: 1, lambda: 1 }).estimate(r);
    for (let c = 0; c < 6; c++)
      for (const t of tokensOf(r, c)) {
        const rest = tokensOf(r, c).filter((s) => s >= t);
        expect(returns![t]).toBeCloseTo(
          rest.reduce((s, u) => s + rewardOf(c, u), 0),
          6,
        );
      }
  });

  it('whitens advantages to mean 0 and deviation 1, rewards with their mean kept', () => {
    const plain = new Ppo(options).estimate(r).advantages;
    const white = new Ppo({ ...options, whiten_advantages: true }).estimate(r).advantages;
    for (const [t, a] of plain.entries()) expect(white[t]).toBeCloseTo((a - mean(plain)) / deviation(plain), 6);
    const kept = whiten(Float64Array.of(1, 2, 6), true);
    expect(mean(kept)).toBeCloseTo(3, 10);
    expect(deviation(kept)).toBeCloseTo(1, 6);
    // GAE is linear in the rewards, so that whitening them by hand must give what the option gives.
    const rewards = Array.from(r.old, (_, t) =>
      rewardOf(
        r.offsets.findLastIndex((from) => from <= t),
        t,
      ),
    );
    const scaled = whiten(Float64Array.from(rewards), true);
    const { advantages } = new Ppo({ ...options, whiten_rewards: true, gamma: 1, lambda: 0 }).estimate(r);
    for (let c = 0; c < 6; c++)
      for (const t of tokensOf(r, c)) {
        const next = t + 1 < r.offsets[c + 1] ? r.values![t + 1] : 0;
        expect(advantages[t]).toBeCloseTo(scaled[t] + next - r.values![t], 9);
      }
  });

  it('moves β towards the target, by a fifth of n / horizon at most', () => {
    const kl = mean(
      Array.from({ length: 6 }, (_, c) => tokensOf(r, c).reduce((s, t) => s + r.old[t] - r.reference[t], 0)),
    );
    for (const target of [0.01, Math.abs(kl) * 1.1, 1e6]) {
      const method = new Ppo({ ...options, target });
      method.estimate(r);
      const error = Math.max(-0.2, Math.min(0.2, kl / target - 1));
      expect(method.beta).toBeCloseTo(0.2 * (1 + (error * 6) / 10000), 12);
      const other = new Ppo({ ...options, target });
      other.restore(method.state());
      expect(other.beta).toBe(method.beta);
    }
    const still = new Ppo({ ...options, target: null });
    still.estimate(r);
    expect(still.beta).toBe(0.2);
  });

  it('clips the loss of the critic, and its gradient is that of its loss', () => {
    const { critic } = new Ppo(options);
    const values = Float32Array.of(0.1, 0.9, -0.6, 2, 0);
    const old = Float32Array.of(0, 0, 0, 0, 0);
    const returns = Float64Array.of(1, -1, 0.05, 3, 0);
    const expected = mean(
      Array.from(values, (v, t) => {
        const bounded = Math.min(Math.max(v, -0.2), 0.2);
        return 0.1 * 0.5 * Math.max((v - returns[t]) ** 2, (bounded - returns[t]) ** 2);
      }),
    );
    const { loss, gradient } = critic(values, old, returns, 5);
    expect(loss).toBeCloseTo(expected, 9);
    values.forEach((_, t) => {
      const at = (d: number) =>
        critic(
          values.map((v, i) => (i === t ? v + d : v)),
          old,
          returns,
          5,
        ).loss;
      expect(gradient[t]).toBeCloseTo((at(1 / 1024) - at(-1 / 1024)) * 512, 4);
    });
  });

  it('has the gradient of its loss', () => {
    const method = new Ppo(options);
    const { advantages } = method.estimate(r);
    const part = partOf(r, advantages);
    const expected = mean(
      Array.from(part.logps, (logp, t) => clippedLoss(Math.exp(logp - r.old[t]), advantages[t], 0.2, 0.2)),
    );
    expect(method.loss(part, totalsOf(r)).loss).toBeCloseTo(expected, 10);
    expectGradient(method, part, r);
  });
});
