import { Random } from '../../base/random.js';
import { namedInits } from '../../config/load.js';
import type { Group } from '../../data/types.js';
import { PluralignError } from '../../native/errors.js';
import { agreement, bestCriterion, bic, choiceNames } from '../criteria.js';
import { eStep } from '../estep.js';
import type { Criterion } from '../summary.js';
import { annotatorsOf } from './annotators.js';
import type { Fit } from './fit.js';
import { type Fits, subset } from './setup.js';
import type { FitSize } from './whole.js';

/** What was fitted: the kept fit, every start of its number of types, and the lines of the choice. */
export interface Fitted {
  fit: Fit;
  starts: { fit: Fit; kept: boolean }[];
  criteria?: Criterion[];
}

/** Log-likelihood of a vote at a fit's end. */
export const likelihoodOf = (fit: Fit): number => fit.state.history[fit.state.history.length - 1];

const nameOf = (types: number, start: number) => `types-${types}-start-${start + 1}`;

/** Fits what the configuration asks for: every start of every number of types; the best is kept. */
export async function fitTypes(fits: Fits): Promise<Fitted> {
  const { em, shop } = fits;
  const counts = Array.isArray(em.types) ? [...new Set(em.types)] : [em.types];
  const { rows, annotators } = shop;
  const most = Math.max(...counts);
  if (most > annotators.names.length)
    throw new PluralignError(
      'BAD_CONFIG',
      `em.types: found ${most}, expected at most the number of annotators, ${annotators.names.length}`,
    );
  const whole = { rows, annotators };
  const one = em.compare_one && most > 1 ? [{ types: 1, rows: rows.length }] : [];
  if (counts.length === 1) {
    fits.plan([...startsOf(fits, counts[0], whole), ...one]);
    return bestStart(fits, counts[0], whole, { alone: true });
  }
  if (!namedInits.includes(em.init))
    throw new PluralignError(
      'BAD_CONFIG',
      'em.init: is a file, which has one number of types, but em.types lists several',
    );
  const sides = splitAnnotators(rows, 0.2, shop.config.train.seed);
  const judged = (types: number) => (canJudge(types, sides) ? startsOf(fits, types, sides.fit) : []);
  fits.plan([...counts.flatMap((types) => [...startsOf(fits, types, whole), ...judged(types)]), ...one]);
  const tried: Fitted[] = [];
  const criteria: Criterion[] = [];
  for (const types of counts) {
    const fitted = await bestStart(fits, types, whole, {});
    tried.push(fitted);
    criteria.push(await judge(fits, types, fitted.fit, sides));
  }
  const best = bestCriterion(criteria, em.choose_by);
  const judges = sides.held.annotators.names.length;
  const few =
    em.choose_by === 'held_out' && judges < 5 ? `, of ${judges} held-out annotator${judges === 1 ? '' : 's'} only` : '';
  shop.note(`chose ${counts[best]} type${counts[best] === 1 ? '' : 's'} by ${choiceNames[em.choose_by]}${few}`);
  tried.forEach(({ starts }, i) => {
    if (i !== best) for (const { fit } of starts) fit.dispose();
  });
  return { ...tried[best], criteria };
}

type Part = { rows: readonly Group[]; annotators: ReturnType<typeof annotatorsOf> };

/** The sizes of the fits that `bestStart` makes. */
function startsOf({ em }: Fits, types: number, { rows }: Part): FitSize[] {
  const fromFile = !namedInits.includes(em.init);
  const count = types === 1 || fromFile ? 1 : em.restarts;
  return Array.from({ length: count }, () => ({ types, rows: rows.length }));
}

async function bestStart(
  fits: Fits,
  types: number,
  part: Part,
  { alone = false, prefix = '' }: { alone?: boolean; prefix?: string },
): Promise<Fitted> {
  const count = startsOf(fits, types, part).length;
  const starts: Fitted['starts'] = [];
  let kept = 0;
  for (let start = 0; start < count; start++) {
    const name = alone && count === 1 ? null : `${prefix}${nameOf(types, start)}`;
    const fit = await fits.open({ types, start, name, ...part });
    await fit.fit();
    starts.push({ fit, kept: false });
    if (likelihoodOf(fit) > likelihoodOf(starts[kept].fit)) kept = start;
  }
  starts[kept].kept = true;
  return { fit: starts[kept].fit, starts };
}

/** Whole annotators on either side; the same for the same seed. */
function splitAnnotators(rows: readonly Group[], share: number, seed: number): { fit: Part; held: Part } {
  const { names } = annotatorsOf(rows);
  const order = new Random(seed, 0x5e1d).shuffle(names.slice());
  const held = new Set(order.slice(0, Math.floor(order.length * share)));
  return {
    fit: subset(rows, (row) => !held.has(row.annotator!)),
    held: subset(rows, (row) => held.has(row.annotator!)),
  };
}

const canJudge = (types: number, { fit, held }: { fit: Part; held: Part }) =>
  types <= fit.annotators.names.length && held.rows.length > 0;

/** What speaks for a number of types: a fit without a fifth of the annotators, and how it does on them. */
async function judge(fits: Fits, types: number, whole: Fit, sides: { fit: Part; held: Part }): Promise<Criterion> {
  const line: Criterion = {
    types,
    log_likelihood: likelihoodOf(whole),
    parameters: Number.NaN,
    bic: Number.NaN,
    held_out_log_likelihood: Number.NaN,
  };
  if (!canJudge(types, sides)) return line;
  const { fit: part, starts } = await bestStart(fits, types, sides.fit, { prefix: 'held-out-' });
  const held = await evidenceOf(part, sides.held);
  for (const { fit } of starts) fit.dispose();
  line.held_out_log_likelihood = held.mean;
  if (held.error !== null) line.held_out_error = held.error;
  line.stability = agreement(
    { names: whole.options.annotators.names, gamma: whole.state.gamma },
    { names: sides.fit.annotators.names, gamma: part.state.gamma },
  );
  // Takeuchi: a fit flatters itself by about one parameter a vote.
  line.parameters = Math.max(types - 1, (likelihoodOf(part) - held.mean) * sides.fit.rows.length);
  const m = whole.options.rows.length;
  line.bic = bic(line.log_likelihood * m, line.parameters, m);
  return line;
}

/** Log-likelihood of a vote of annotators whom the fit does not know, and its standard error over them (null: of one alone). */
async function evidenceOf(fit: Fit, part: Part): Promise<{ mean: number; error: number | null }> {
  const { policies } = fit.options;
  const votes = await policies.votes(part.rows);
  const values = Array.from({ length: policies.types }, (_, k) =>
    Float64Array.from(votes, ({ group, rewards }) => policies.logLikelihood(group, rewards[k])),
  );
  const { evidence } = eStep(values, part.annotators.of, part.annotators.names.length, fit.state.weights);
  const m = part.rows.length;
  const mean = evidence.reduce((a, b) => a + b, 0) / m;
  // Of a ratio of sums over annotators.
  const squares = evidence.reduce((sum, own, u) => sum + (own - mean * part.annotators.votes[u]) ** 2, 0);
  return { mean, error: part.annotators.names.length > 1 ? Math.sqrt(squares) / m : null };
}
