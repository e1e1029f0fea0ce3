import { type Chart, stepChart } from './charts.js';
import { type Content, html, type Markup } from './html.js';
import { formatMetric, formatPercent, formatSigned, formatValue } from './numbers.js';
import { isRecord, type Metrics, type RunData } from './read.js';

const colours = 8;
const mostColumns = 500;
const mostRows = 3;

interface Description {
  type: number;
  weight: number;
  annotators: number;
  likes: string[];
  dislikes: string[];
  rows: { difference: number; prompt?: string; preferred?: string; other?: string; file?: string; line?: number }[];
}

interface Types {
  weights: number[];
  description: Description[];
  criteria?: Metrics[];
  collapsed?: [number, number][];
  one_type_is_enough?: boolean;
  adjusted_rand_index?: number;
  responsibility_ece?: number;
  log_likelihood?: number;
  one_type_log_likelihood?: number;
}

const topOf = (gamma: readonly number[]) => gamma.indexOf(Math.max(...gamma));

/** A column for each annotator, its height split by responsibility; by type, the surest first. */
function picture(responsibilities: ReadonlyMap<string, readonly number[]>): Markup {
  const all = [...responsibilities].sort(([, a], [, b]) => topOf(a) - topOf(b) || Math.max(...b) - Math.max(...a));
  const shown =
    all.length <= mostColumns
      ? all
      : Array.from({ length: mostColumns }, (_, i) => all[Math.floor((i * all.length) / mostColumns)]);
  const gap = shown.length <= 150 ? 0.12 : 0;
  const column = ([name, gamma]: [string, readonly number[]], i: number) => {
    let y = 0;
    const own = topOf(gamma);
    // The likeliest type stands at the bottom.
    const order = [...gamma.keys()].sort((a, b) => Number(a === own) - Number(b === own) || a - b);
    const parts = order.map((k) => {
      const height = 100 * gamma[k];
      const part = html`<rect class="type-${k % colours}" x="${(i + gap / 2).toFixed(2)}" y="${y.toFixed(2)}" width="${1 - gap}" height="${height.toFixed(2)}"/>`;
      y += height;
      return height >= 0.05 && part;
    });
    return html`<g><title>${name}: ${gamma.map((g) => formatPercent(g)).join(', ')}</title>${parts}</g>`;
  };
  const some = shown.length < all.length && html` ${shown.length} of ${all.length} annotators are drawn.`;
  return html`<p class="caption">Each column is an annotator, split by how likely each type is.${some}</p>
<svg class="responsibilities" viewBox="0 0 ${shown.length} 100" preserveAspectRatio="none" role="img"
aria-label="Responsibilities of ${all.length} annotators">${shown.map(column)}</svg>`;
}

function table(types: Types, held: Record<string, Metrics>): Markup {
  const tested = Object.keys(held).length > 0;
  // One type has no others to differ from.
  const words =
    types.description.length > 1 && types.description.some((d) => d.likes.length > 0 || d.dislikes.length > 0);
  const row = (d: Description) => {
    const metrics = held[`type_${d.type}`];
    const result: Content = tested && [
      html`<td>${formatMetric('accuracy', metrics?.accuracy)}</td>`,
      html`<td>${formatValue(metrics?.log_likelihood)}</td>`,
    ];
    const said: Content = words && [
      html`<td class="words">${d.likes.join(', ') || '–'}</td>`,
      html`<td class="words">${d.dislikes.join(', ') || '–'}</td>`,
    ];
    return html`<tr><th scope="row"><i class="key type-key-${(d.type - 1) % colours}"></i>type ${d.type}</th>
<td>${formatPercent(d.weight)}</td><td>${formatValue(d.annotators)}</td>${result}${said}</tr>`;
  };
  const results: Content = tested && html`<th scope="col">held-out accuracy</th><th scope="col">nats per vote</th>`;
  const titles: Content =
    words &&
    html`<th scope="col" class="words">chosen more than by others</th><th scope="col" class="words">left more</th>`;
  return html`<div class="scroll"><table><thead><tr><th scope="col">type</th><th scope="col">share</th>
<th scope="col">annotators</th>${results}${titles}</tr></thead><tbody>${types.description.map(row)}</tbody></table></div>`;
}

/** Likelihood and shares by round. */
function roundCharts(metrics: readonly Metrics[], types: number): (Chart | null)[] {
  const rounds = metrics.filter((row) => typeof row.round === 'number');
  const x = rounds.map((row) => row.round as number);
  const values = (key: string) => rounds.map((row) => (typeof row[key] === 'number' ? (row[key] as number) : null));
  const lines = [{ label: 'log-likelihood', values: values('log_likelihood') }];
  const shares = Array.from({ length: types }, (_, k) => ({
    label: `type ${k + 1}`,
    values: values(`weight_${k + 1}`),
  }));
  return [
    stepChart('Log-likelihood of a vote', 'nats', 'round', x, lines),
    stepChart('Share of each type, as it was found', 'share', 'round', x, shares, [0, 1]),
  ];
}

/** The choice of K. */
function choiceCharts(criteria: readonly Metrics[]): (Chart | null)[] {
  const sorted = [...criteria].sort((a, b) => (a.types as number) - (b.types as number));
  const x = sorted.map((line) => line.types as number);
  const numbers = (of: (line: Metrics) => unknown) =>
    sorted.map((line) => {
      const value = of(line);
      return typeof value === 'number' && Number.isFinite(value) ? value : null;
    });
  const shifted = (sign: number) => (line: Metrics) =>
    (line.held_out_log_likelihood as number) + sign * (line.held_out_error as number);
  const held = [{ label: 'held out', values: numbers((line) => line.held_out_log_likelihood) }];
  if (sorted.some((line) => typeof line.held_out_error === 'number')) {
    held.push({ label: 'plus a standard error', values: numbers(shifted(1)) });
    held.push({ label: 'minus', values: numbers(shifted(-1)) });
  }
  return [
    stepChart('Log-likelihood of a vote of held-out annotators', 'nats', 'types', x, held),
    stepChart('BIC', 'BIC', 'types', x, [{ label: 'BIC', values: numbers((line) => line.bic) }]),
    stepChart(
      'Stability',
      'adjusted Rand',
      'types',
      x,
      [{ label: 'stability', values: numbers((line) => line.stability) }],
      [0, 1],
    ),
  ];
}

function examples({ type, rows }: Description): Markup | false {
  const told = rows.filter((row) => row.preferred !== undefined).slice(0, mostRows);
  if (told.length === 0) return false;
  const one = (row: Description['rows'][number]) => html`<div class="sample"><div class="label">${row.prompt}</div>
<div class="texts"><div><div class="label">preferred</div><div class="text">${row.preferred}</div></div>
<div><div class="label">other · ${formatSigned(row.difference, formatValue)} nats for type ${type}</div>
<div class="text">${row.other}</div></div></div></div>`;
  return html`<details><summary>Votes that type ${type} finds likelier than another type does</summary>${told.map(one)}</details>`;
}

/** What a run over types found: who is of which, how they differ, how EM went. Null for other runs. */
export function typesSection(run: RunData, grid: (charts: Chart[]) => Markup): Markup | null {
  const types = (run.summary as { em?: Types } | null)?.em;
  if (!types || !Array.isArray(types.description) || types.description.length === 0) return null;
  const held = (isRecord(run.summary?.eval?.types) ? run.summary.eval.types : {}) as Record<string, Metrics>;
  const there = (chart: Chart | null): chart is Chart => chart !== null;
  const charts = [
    ...roundCharts(run.metrics, types.weights.length),
    ...(types.criteria ? choiceCharts(types.criteria) : []),
  ].filter(there);
  const facts: string[] = [];
  if (types.one_type_log_likelihood !== undefined && types.log_likelihood !== undefined)
    facts.push(
      `A vote has a log-likelihood of ${formatValue(types.log_likelihood)} under the types and of ` +
        `${formatValue(types.one_type_log_likelihood)} under one type for all.`,
    );
  if (types.one_type_is_enough === true) facts.push('One type is enough: the others predict held-out votes no better.');
  for (const [k, l] of types.collapsed ?? []) facts.push(`Types ${k} and ${l} have become one.`);
  if (types.adjusted_rand_index !== undefined)
    facts.push(
      `Agreement with the groups that rows name: adjusted Rand index ${formatValue(types.adjusted_rand_index)}, ` +
        `calibration error of the responsibilities ${formatValue(types.responsibility_ece)}.`,
    );
  return html`<section><h2>Types of annotators</h2>${facts.map((fact) => html`<p>${fact}</p>`)}
${table(types, held)}${run.responsibilities && picture(run.responsibilities)}${types.description.length > 1 && types.description.map(examples)}
${charts.length > 0 && grid(charts)}</section>`;
}
