import { byWorst, wilson } from '../evaluation/wilson.js';
import { type Content, html, type Markup } from './html.js';
import { formatMetric, formatPercent, formatSigned } from './numbers.js';
import { type Evaluation, isRecord, type Metrics } from './read.js';

export interface AnnotatorBar {
  name: string;
  rows: number;
  accuracy: number;
  before: number | null;
}

const mostVotes = 20;
const worst = 10;

const share = (value: unknown): number | null => (typeof value === 'number' && value >= 0 && value <= 1 ? value : null);

/** Annotators with an accuracy, best first; ties by more rows, then by name. */
export function annotatorBars(after: Evaluation | undefined, before: Evaluation | undefined): AnnotatorBar[] {
  const earlier = new Map(Object.entries(isRecord(before?.annotators) ? before.annotators : {}));
  const bars: AnnotatorBar[] = [];
  for (const [name, metrics] of Object.entries(isRecord(after?.annotators) ? after.annotators : {})) {
    const accuracy = share((metrics as Metrics | null)?.accuracy);
    if (accuracy === null) continue;
    const rows = Number((metrics as Metrics).rows);
    const old = share((earlier.get(name) as Metrics | undefined)?.accuracy);
    bars.push({ name, rows: Number.isFinite(rows) ? rows : 0, accuracy, before: old });
  }
  return bars.sort((a, b) => b.accuracy - a.accuracy || b.rows - a.rows || (a.name < b.name ? -1 : 1));
}

/** All bars while they are few; else those with the most votes and those who are worst for certain, in the order they came. */
export function selectBars(bars: AnnotatorBar[]): AnnotatorBar[] {
  if (bars.length <= mostVotes + worst) return bars;
  const chosen = new Set([...bars].sort((a, b) => b.rows - a.rows).slice(0, mostVotes));
  for (const bar of [...bars].sort(byWorst).slice(0, worst)) chosen.add(bar);
  return bars.filter((bar) => chosen.has(bar));
}

const percent = (value: number) => `${(100 * value).toFixed(2)}%`;

/** A bar that stretches with the page: every horizontal length is a percentage, so no text is ever scaled. */
function barSvg(bar: AnnotatorBar): Markup {
  const [low, high] = wilson(bar.accuracy, bar.rows);
  const before =
    bar.before === null
      ? ''
      : html`<rect class="bar-before" x="0" y="13" width="${percent(bar.before)}" height="4" rx="1"/>`;
  return html`<svg class="bar" height="20" aria-hidden="true">
<line class="half" x1="50%" x2="50%" y1="0" y2="20"/>
<rect class="bar-after" x="0" y="3" width="${percent(bar.accuracy)}" height="9" rx="1.5"/>${before}
<line class="whisker" x1="${percent(low)}" x2="${percent(high)}" y1="7.5" y2="7.5"/>
<line class="whisker" x1="${percent(low)}" x2="${percent(low)}" y1="5" y2="10"/>
<line class="whisker" x1="${percent(high)}" x2="${percent(high)}" y1="5" y2="10"/></svg>`;
}

function axis(): Markup {
  const ticks = [0, 25, 50, 75, 100];
  const label = (tick: number) => html`<span style="left:${tick}%">${tick} %</span>`;
  return html`<div class="bars-axis"><div></div><div class="ticks">${ticks.map(label)}</div><div></div><div></div></div>
<div class="bars-axis"><div></div><div class="axis-title">accuracy: share of the annotator’s votes ordered right</div>
<div></div><div></div></div>`;
}

function fullTable(bars: AnnotatorBar[], withBefore: boolean): Markup {
  const row = (bar: AnnotatorBar) => {
    const [low, high] = wilson(bar.accuracy, bar.rows);
    const difference = bar.before === null ? Number.NaN : 100 * (bar.accuracy - bar.before);
    const change: Content = withBefore && [
      html`<td>${formatPercent(bar.before)}</td>`,
      html`<td>${formatSigned(difference, (v) => v.toFixed(1))}</td>`,
    ];
    return html`<tr><th scope="row"><bdi>${bar.name}</bdi></th><td>${bar.rows.toLocaleString('en-US')}</td>
<td>${formatPercent(bar.accuracy)}</td><td>${formatPercent(low)} … ${formatPercent(high)}</td>${change}</tr>`;
  };
  const titles: Content = withBefore && html`<th scope="col">before</th><th scope="col">change, points</th>`;
  return html`<details><summary>${bars.length === 1 ? 'The annotator' : html`All ${bars.length} annotators`} as a table</summary><div class="scroll"><table>
<thead><tr><th scope="col">annotator</th><th scope="col">votes</th><th scope="col">accuracy</th>
<th scope="col">95 % interval</th>${titles}</tr></thead><tbody>${bars.map(row)}</tbody></table></div></details>`;
}

/** Accuracy of every annotator as bars with counts, before and after where both are known, and the table behind them. */
export function annotatorSection(after: Evaluation | undefined, before: Evaluation | undefined): Markup | null {
  const bars = annotatorBars(after, before);
  if (bars.length === 0) return null;
  const shown = selectBars(bars);
  const withBefore = bars.some((bar) => bar.before !== null);
  const row = (bar: AnnotatorBar) => {
    const text = `${formatMetric('accuracy', bar.accuracy)} of ${bar.rows} votes`;
    return html`<div class="bars-row"><div class="bar-name" title="${bar.name}"><bdi>${bar.name}</bdi></div>
<div role="img" aria-label="${text}">${barSvg(bar)}</div><div class="num">${formatPercent(bar.accuracy)}</div>
<div class="num muted">${bar.rows.toLocaleString('en-US')}</div></div>`;
  };
  const which =
    shown.length < bars.length &&
    html` Of ${bars.length} annotators, the ${mostVotes} with the most votes and the ${worst} whose interval ends
lowest are drawn.`;
  const legend = withBefore && html`<span><i class="key key-before"></i>before training</span>`;
  return html`<section><h2>Accuracy by annotator</h2>
<p class="caption">Held-out votes, most accurate first; whiskers are Wilson’s 95 % interval, the dashed line is
one half.${which}</p>
<div class="legend"><span><i class="key key-after"></i>after training</span>${legend}</div>
<div class="bars"><div class="bars-row bars-head"><div>annotator</div><div></div><div class="num">accuracy</div>
<div class="num">votes</div></div>${shown.map(row)}${axis()}</div>${fullTable(bars, withBefore)}</section>`;
}
