import { isShare } from './numbers.js';
import type { Metrics } from './read.js';

export interface Series {
  label: string;
  /** Index into the palette. */
  color: number;
  /** Drawn faintly, behind: the raw values of a smoothed line. */
  faint?: boolean;
  /** Left out of the legend. */
  unlisted?: boolean;
  /** Few points with gaps between them: draw the points and join them. */
  sparse?: boolean;
  values: (number | null)[];
}

/** A line chart over steps, as the page's script draws it. */
export interface Chart {
  title: string;
  unit: string;
  steps: number[];
  series: Series[];
  /** Fixed limits of the vertical axis. */
  range?: [number, number];
  /** Every how many points one is shown. */
  stride: number;
  /** What the horizontal axis counts; absent: steps. */
  x?: string;
}

interface Group {
  title: string;
  unit: string;
  keys: string[];
  /** The policy behind each key, in a run of several. */
  policies?: string[];
}

const maxPoints = 2000;
const smoothFrom = 40;
const bookkeeping = new Set(['step', 'epoch', 'time', 'seconds', 'wall_time', 'timestamp', 'round']);

const trainGroups: Group[] = [
  { title: 'Loss', unit: 'loss', keys: ['loss'] },
  { title: 'Accuracy', unit: 'share ordered right', keys: ['rewards/accuracies', 'accuracy'] },
  { title: 'Margin', unit: 'reward margin', keys: ['rewards/margins', 'margin'] },
  { title: 'Rewards', unit: 'implicit reward', keys: ['rewards/chosen', 'rewards/rejected'] },
  { title: 'Log-probabilities', unit: 'nats per completion', keys: ['logps/chosen', 'logps/rejected'] },
  { title: 'Gradient norm', unit: 'norm before clipping', keys: ['grad_norm'] },
  { title: 'Learning rate', unit: 'learning rate', keys: ['learning_rate'] },
];

const evalUnits: [RegExp, string][] = [
  [/accurac/, 'share ordered right'],
  [/log_likelihood/, 'nats per row'],
  [/margin/, 'reward margin'],
  [/loss/, 'loss'],
];

const isNumber = (value: unknown): value is number => typeof value === 'number' && Number.isFinite(value);

/** A chart of few points over something that is counted, points drawn; null without two of them. */
export function stepChart(
  title: string,
  unit: string,
  x: string,
  steps: number[],
  lines: { label: string; values: (number | null)[] }[],
  range?: [number, number],
): Chart | null {
  const told = lines.filter(({ values }) => values.some((value) => value !== null));
  if (steps.length < 2 || told.length === 0) return null;
  const series = told.map((line, color) => ({ ...line, color, sparse: true }));
  return { title, unit, steps, series, range, stride: 1, x };
}

/** Exponential moving average without bias towards the start, over a window of about `window` points. */
export function smooth(values: (number | null)[], window: number): (number | null)[] {
  const decay = 1 - 1 / window;
  let sum = 0;
  let weight = 0;
  return values.map((value) => {
    if (value === null) return null;
    sum = decay * sum + (1 - decay) * value;
    weight = decay * weight + (1 - decay);
    return sum / weight;
  });
}

function makeChart(metrics: Metrics[], group: Group): Chart | null {
  const present = metrics.filter((row) => group.keys.some((key) => isNumber(row[key])));
  const keys = group.keys.filter((key) => present.some((row) => isNumber(row[key])));
  // A single point is no line: its number stands in the tables.
  if (keys.length === 0 || present.length < 2) return null;
  const stride = Math.ceil(present.length / maxPoints);
  const keep = <T>(values: T[]) => values.filter((_, i) => i % stride === 0 || i === values.length - 1);
  const series: Series[] = [];
  for (const [color, key] of keys.entries()) {
    const values = present.map((row) => (isNumber(row[key]) ? row[key] : null));
    const label =
      keys.length === 1
        ? group.title.toLowerCase()
        : (group.policies?.[group.keys.indexOf(key)] ?? key.slice(key.indexOf('/') + 1));
    const sparse = present.length < smoothFrom;
    const smoothed = !sparse && key !== 'learning_rate';
    series.push({ label, color, faint: smoothed, unlisted: smoothed && keys.length > 1, sparse, values: keep(values) });
    if (smoothed) {
      const window = Math.max(5, Math.round(values.length / 40));
      const name = keys.length === 1 ? 'moving mean' : `${label}, mean`;
      series.push({ label: name, color, values: keep(smooth(values, window)) });
    }
  }
  const steps = keep(present.map((row) => row.step as number));
  return { title: group.title, unit: group.unit, steps, series, stride, range: isShare(keys[0]) ? [0, 1] : undefined };
}

function seriesKeys(metrics: Metrics[]): string[] {
  const keys = new Set<string>();
  for (const row of metrics) for (const key of Object.keys(row)) if (isNumber(row[key])) keys.add(key);
  return [...keys].filter((key) => !bookkeeping.has(key));
}

/** The policy of a key `POLICY/METRIC`, as a run of several policies logs them, where the metric is one of the group's. */
function policyOf(key: string, { keys }: Group): string | null {
  if (keys.includes(key) || key.startsWith('eval_')) return null;
  const metric = keys.find((known) => key.endsWith(`/${known}`));
  return metric === undefined ? null : key.slice(0, -metric.length - 1);
}

/** The group with every policy's metrics in place of its own, where policies have some. */
function withPolicies(group: Group, keys: readonly string[]): Group {
  const own = keys.filter((key) => policyOf(key, group) !== null);
  return own.length === 0 ? group : { ...group, keys: own, policies: own.map((key) => policyOf(key, group)!) };
}

/** The charts of a run's log: training in a fixed order, evaluation (keys `eval_…`), and whatever else was logged. */
export function makeCharts(metrics: Metrics[]): { train: Chart[]; eval: Chart[]; other: Chart[] } {
  const keys = seriesKeys(metrics);
  const training = trainGroups.map((group) => withPolicies(group, keys));
  const known = new Set([...trainGroups, ...training].flatMap((group) => group.keys));
  const evalKeys = keys.filter((key) => key.startsWith('eval_'));
  const otherKeys = keys.filter((key) => !key.startsWith('eval_') && !known.has(key));
  const present = (chart: Chart | null): chart is Chart => chart !== null;
  const evalGroup = (key: string): Group => {
    const name = key.slice('eval_'.length).replaceAll('_', ' ');
    const unit = evalUnits.find(([pattern]) => pattern.test(key))?.[1] ?? name;
    return { title: name.charAt(0).toUpperCase() + name.slice(1), unit, keys: [key] };
  };
  const order = (key: string) => {
    const at = evalUnits.findIndex(([pattern]) => pattern.test(key));
    return at < 0 ? evalUnits.length : at;
  };
  return {
    train: training.map((group) => makeChart(metrics, group)).filter(present),
    eval: evalKeys
      .sort((a, b) => order(a) - order(b))
      .map((key) => makeChart(metrics, evalGroup(key)))
      .filter(present),
    other: otherKeys.map((key) => makeChart(metrics, { title: key, unit: key, keys: [key] })).filter(present),
  };
}
