import { byWorst } from '../evaluation/wilson.js';
import { type Content, html, type Markup } from './html.js';
import { formatDuration, formatMetric, formatSigned, formatValue, isShare } from './numbers.js';
import { type Evaluation, isRecord, type Metrics, type RunData, type Summary } from './read.js';

const isNumber = (value: unknown): value is number => typeof value === 'number' && Number.isFinite(value);

/** Metrics where less is better; for the others that have a direction, more is. */
const lower = /loss|perplexity|ece|calibration|brier|regret/;
const higher = /accurac|margin|log_likelihood|win_?rate/;

function change(name: string, before: unknown, after: unknown): Markup {
  if (name === 'rows' || !isNumber(before) || !isNumber(after)) return html`<td>–</td>`;
  const difference = after - before;
  const text = isShare(name)
    ? `${formatSigned(100 * difference, (v) => v.toFixed(1))} points`
    : formatSigned(difference, formatValue);
  const direction = lower.test(name) ? -1 : higher.test(name) ? 1 : 0;
  const mark = Math.sign(difference) * direction;
  return html`<td class="${mark > 0 ? 'good' : mark < 0 ? 'bad' : ''}">${text}</td>`;
}

function tile(label: string, value: string, sub?: string): Markup {
  return html`<div class="tile"><div class="label">${label}</div><div class="value">${value}</div>
${sub && html`<div class="sub">${sub}</div>`}</div>`;
}

function lastValue(metrics: Metrics[], keys: string[]): unknown {
  for (const row of [...metrics].reverse()) for (const key of keys) if (isNumber(row[key])) return row[key];
  return undefined;
}

/** Before its first step a policy is its own reference: every reward is 0, and ties count as wrong. */
function allTied(summary: Summary | null): boolean {
  const before = summary?.eval_before?.overall;
  return before?.accuracy === 0 && before.margin === 0;
}

/** The few numbers a reader looks for first. */
export function tiles(run: RunData): Markup {
  const { summary, metrics } = run;
  const steps = summary?.steps ?? metrics.at(-1)?.step;
  const loss = summary?.train?.loss ?? lastValue(metrics, ['loss']);
  const overall = summary?.eval?.overall;
  const accuracy = overall?.accuracy ?? lastValue(metrics, ['eval_accuracy', 'eval_rewards/accuracies']);
  const before = summary?.eval_before?.overall?.accuracy;
  const worst = Object.values(isRecord(summary?.eval?.annotators) ? summary.eval.annotators : {})
    .filter((m): m is Metrics => isNumber((m as Metrics | null)?.accuracy))
    .sort(byWorst);
  const was =
    isNumber(before) && (allTied(summary) ? 'before, all pairs tied' : `${formatMetric('accuracy', before)} before`);
  const parts: Content[] = [
    summary?.method !== undefined && tile('Method', String(summary.method)),
    run.soups !== null &&
      tile(
        'Took',
        formatDuration(summary?.seconds),
        `${run.soups.experts.length} experts, ${run.soups.fronts.length} fronts`,
      ),
    isNumber(steps) &&
      run.soups === null &&
      tile('Steps', formatValue(steps), isNumber(summary?.seconds) ? formatDuration(summary.seconds) : ''),
    isNumber(loss) && tile('Final training loss', formatValue(loss)),
    isNumber(accuracy) && tile('Evaluation accuracy', formatMetric('accuracy', accuracy), was || ''),
    worst.length > 1 &&
      tile(
        'Worst annotator',
        formatMetric('accuracy', worst[0].accuracy),
        `${isNumber(worst[0].rows) ? `${formatValue(worst[0].rows)} votes, ` : ''}of ${formatValue(worst.length)} annotators`,
      ),
  ];
  return html`<div class="tiles">${parts}</div>`;
}

/** Final metrics: training as they ended, evaluation before and after. */
export function metricsSection(summary: Summary | null): Markup | null {
  const train = Object.entries(isRecord(summary?.train) ? summary.train : {}).filter(
    ([k, v]) => k !== 'step' && isNumber(v),
  );
  const after = isRecord(summary?.eval?.overall) ? summary.eval.overall : {};
  const before = isRecord(summary?.eval_before?.overall) ? summary.eval_before.overall : null;
  const names = Object.keys({ ...before, ...after }).filter(
    (name) => isNumber(after[name]) || isNumber(before?.[name]),
  );
  if (train.length === 0 && names.length === 0) return null;
  const row = (name: string) => {
    const cells: Content = before && [
      html`<td>${formatMetric(name, before[name])}</td>`,
      html`<td>${formatMetric(name, after[name])}</td>`,
      change(name, before[name], after[name]),
    ];
    return html`<tr><th scope="row">${name}</th>${cells || html`<td>${formatMetric(name, after[name])}</td>`}</tr>`;
  };
  const titles = before
    ? html`<th scope="col">before</th><th scope="col">after</th><th scope="col">change</th>`
    : html`<th scope="col">value</th>`;
  const evaluation =
    names.length > 0 &&
    html`<section><h2>Final evaluation</h2>${
      allTied(summary) &&
      html`<p class="caption">Before the first step policy and reference are one: all pairs tie, and a tie counts as wrong.</p>`
    }<div class="scroll"><table><thead><tr><th scope="col">metric</th>${titles}</tr>
</thead><tbody>${names.map(row)}</tbody></table></div></section>`;
  const training =
    train.length > 0 &&
    html`<section><h2>Final training metrics</h2><div class="scroll"><table><thead><tr><th scope="col">metric</th>
<th scope="col">value</th></tr></thead><tbody>${train.map(
      ([name, value]) => html`<tr><th scope="row">${name}</th><td>${formatMetric(name, value)}</td></tr>`,
    )}</tbody></table></div></section>`;
  return html`<div class="two">${evaluation}${training}</div>`;
}

/** Evaluation by anything but annotator (types, groups): one table each. */
export function groupSections(after: Evaluation | undefined, before: Evaluation | undefined): Markup[] {
  const sections: Markup[] = [];
  for (const [title, groups] of Object.entries(after ?? {})) {
    if (title === 'overall' || title === 'annotators' || !isRecord(groups)) continue;
    const rows = Object.entries(groups).filter((entry): entry is [string, Metrics] => isRecord(entry[1]));
    const columns = [...new Set(rows.flatMap(([, m]) => Object.keys(m).filter((key) => isNumber(m[key]))))];
    if (columns.length === 0) continue;
    const old = before?.[title];
    const earlier = (name: string) => (isRecord(old) && isRecord(old[name]) ? old[name].accuracy : undefined);
    const hasOld = rows.some(([name]) => isNumber(earlier(name)));
    const row = ([name, m]: [string, Metrics]) => html`<tr><th scope="row"><bdi>${name}</bdi></th>
${columns.map((key) => html`<td>${formatMetric(key, m[key])}</td>`)}
${hasOld && html`<td>${formatMetric('accuracy', earlier(name))}</td>`}</tr>`;
    sections.push(html`<section><h2>Evaluation by ${title}</h2><div class="scroll"><table><thead><tr>
<th scope="col">${title}</th>${columns.map((key) => html`<th scope="col">${key}</th>`)}
${hasOld && html`<th scope="col">accuracy before</th>`}</tr></thead><tbody>${rows.map(row)}</tbody></table></div></section>`);
  }
  return sections;
}

/** The settings that `features.choose` chose from, likeliest first. */
export function triedSection(summary: Summary | null): Markup | null {
  const tried = (Array.isArray(summary?.tried) ? summary.tried : []).filter(isRecord);
  if (tried.length === 0) return null;
  const columns = [...new Set(tried.flatMap((setting) => Object.keys(setting)))];
  const cell = (value: unknown) => (typeof value === 'number' ? formatValue(value) : (value ?? '–'));
  const row = (setting: Metrics) => {
    const [first, ...rest] = columns.map((key) => String(cell(setting[key])));
    return html`<tr><th scope="row">${first}</th>${rest.map((text) => html`<td>${text}</td>`)}</tr>`;
  };
  return html`<section><h2>Settings tried</h2><p class="caption">By the mean likelihood of held-out votes of the training rows;
the first was fitted to all of them.</p><div class="scroll"><table><thead><tr>${columns.map(
    (key) => html`<th scope="col">${key}</th>`,
  )}</tr></thead><tbody>${tried.slice(0, 50).map(row)}</tbody></table></div></section>`;
}

function flatten(value: Record<string, unknown>, prefix = ''): [string, unknown][] {
  return Object.entries(value).flatMap(([key, v]) =>
    isRecord(v) ? flatten(v, `${prefix}${key}.`) : [[prefix + key, v] as [string, unknown]],
  );
}

/** What became of the rows that were read. */
export function dataSection(summary: Summary | null): Markup {
  const all = flatten(isRecord(summary?.data) ? summary.data : {});
  // Of the many things that can be wrong with rows, those that are.
  const rows = all.filter(
    ([, value]) => value !== 0 && value !== null && !(Array.isArray(value) && value.length === 0),
  );
  const row = ([name, value]: [string, unknown]) => {
    const text = Array.isArray(value) ? value.map(formatValue).join(', ') : formatValue(value);
    return html`<tr><th scope="row">${name.replaceAll('_', ' ').replaceAll('.', ' · ')}</th><td>${text}</td></tr>`;
  };
  const body =
    rows.length > 0
      ? html`<div class="scroll"><table><tbody>${rows.map(row)}</tbody></table></div>`
      : html`<p class="muted">No counts were recorded.</p>`;
  return html`<section><h2>Data</h2>${body}</section>`;
}

export function configSection(config: string | null): Markup {
  const body = config === null ? html`<p class="muted">No config.yaml.</p>` : html`<pre>${config.trimEnd()}</pre>`;
  return html`<section><h2>Configuration</h2>${body}</section>`;
}

/** Plain text, or the turns of a conversation. */
function sampleText(value: unknown): string {
  if (typeof value === 'string') return value;
  if (Array.isArray(value) && value.every(isRecord)) return value.map((m) => `${m.role}: ${m.content}`).join('\n');
  return JSON.stringify(value);
}

/** Prompts with what the model said before and after; further fields stand beside them under their own names. */
export function samplesSection(summary: Summary | null): Markup | null {
  const samples = (Array.isArray(summary?.samples) ? summary.samples : []).filter(isRecord);
  if (samples.length === 0) return null;
  const block = (label: string, value: unknown) =>
    html`<div><div class="label">${label}</div><div class="text">${sampleText(value)}</div></div>`;
  const sample = ({ prompt, ...texts }: Record<string, unknown>) => {
    const fields = Object.entries(texts).filter(([, value]) => value !== undefined && value !== null);
    return html`<div class="sample">${prompt !== undefined && block('prompt', prompt)}
<div class="texts">${fields.map(([name, value]) => block(name, value))}</div></div>`;
  };
  return html`<section><h2>Samples</h2>${samples.map(sample)}</section>`;
}
