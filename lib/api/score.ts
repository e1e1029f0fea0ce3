import { mixtureLogp } from '../aggregation/mixture-file.js';
import { pack, splitByTokens, tokensAPass } from '../data/pack.js';
import type { ScoreFeaturesOptions } from '../features/run.js';
import { sumTokens } from '../losses/index.js';
import { PluralignError } from '../native/errors.js';
import { progress } from '../training/progress.js';
import { packUnder } from '../training/scorer.js';
import { stopOf } from '../training/signals.js';
import { openPolicies, openRows, type PolicyOptions, scorerOf, speakersOf } from './policies.js';

export interface ScoreRow {
  /** Natural log-probability of every completion in row order, summed over its tokens with the closing EOS. */
  logps?: Record<string, number[]>;
  /** Reward of every completion in row order. */
  rewards?: Record<string, number[]>;
}

/** `pluralign score`: all policies in one pass over each pack. */
export async function scoreCommand(
  options: PolicyOptions & { data: string[] } & Omit<ScoreFeaturesOptions, 'signal'>,
): Promise<{ policies: string[]; rows: ScoreRow[] }> {
  const { signal, flag: abort } = stopOf(options.stop);
  if (options.run !== undefined) {
    const { isFeatureRun, scoreFeatures } = await import('../features/run.js');
    const { lower, alpha, voters, equalGroups } = options;
    if (await isFeatureRun(options.run))
      return scoreFeatures(options.run, options.data, { lower, alpha, voters, equalGroups, signal });
  }
  if (options.lower !== undefined || options.alpha !== undefined) {
    throw new PluralignError('BAD_ARGUMENT', '--lower and --alpha are for runs of rewards on features');
  }
  const opened = await openPolicies(options);
  const { model, bank, policies } = opened;
  using _model = model;
  const groups = await openRows(options.data, model, { overLength: 'error', signal });
  const rows: ScoreRow[] = groups.map(() => ({}));
  const put = (at: number, read: 'logps' | 'reward', policy: string, values: number[]) => {
    const key = read === 'reward' ? 'rewards' : 'logps';
    rows[at][key] ??= {};
    rows[at][key][policy] = values;
  };
  const voters = new Map(policies.filter((p) => p.voters).map((p) => [p, scorerOf(p, opened, groups)]));
  const bar = progress(groups.length, 'score');
  let done = 0;
  for (const run of splitByTokens(groups, policies.length, tokensAPass)) {
    for (const read of ['logps', 'reward'] as const) {
      const readers = policies.filter((p) => p.reward === (read === 'reward'));
      for (const policy of readers.filter((p) => p.voters)) {
        const { adapter, bank: own } = voters.get(policy)!;
        const p = packUnder(run, adapter, { grad: false, read });
        const sums = sumTokens((await model.score(p, own, read, { abort })).values, p.offsets);
        run.forEach((_, g) => {
          put(done + g, read, policy.name, [...sums.subarray(p.treeOffsets[g], p.treeOffsets[g + 1])]);
        });
      }
      const used = readers.filter((p) => !p.voters);
      if (used.length === 0) continue;
      const adapters = [...new Set(used.flatMap(speakersOf))];
      const p = pack(run, { policies: adapters.map((adapter) => ({ adapter, grad: false })), read, merge: true });
      const { values } = await model.score(p, bank, read, { abort });
      const sums = sumTokens(values, p.offsets);
      const count = p.groupOffsets[run.length];
      const of = (adapter: number, c: number) => sums[adapters.indexOf(adapter) * count + c];
      for (const policy of used) {
        const value = (c: number) =>
          policy.mixture
            ? mixtureLogp(
                policy.mixture.adapters.map((adapter) => of(adapter, c)),
                policy.mixture.weights,
              )
            : of(policy.adapter, c);
        run.forEach((group, g) => {
          const values = group.completions.map((_, i) => value(p.groupOffsets[g] + i));
          put(done + g, read, policy.name, values);
        });
      }
    }
    done += run.length;
    bar.update(done);
  }
  bar.stop();
  return { policies: policies.map((p) => p.name), rows };
}
