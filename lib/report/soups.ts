import type { WinRate } from '../evaluation/pairwise.js';
import type { Combinations } from '../soups/combinations.js';
import type { Front, FrontPoint } from '../soups/fronts.js';
import type { SearchResult } from '../soups/search.js';
import type { SoupsResult } from '../soups/train.js';
import { html, type Markup } from './html.js';
import { formatPercent, formatValue } from './numbers.js';

const colours = 8;
const [width, height, margin] = [640, 380, 52];

/** Names for people; what is not here goes by its own. */
const spoken: Readonly<Record<string, string>> = {
  cat: 'average of updates',
  svd: 'average cut in rank (svd)',
  factor_average: 'factor average',
  logits: 'logit mixing',
  backbones: 'Bone-Soup backbones',
  morl: 'MORL',
  modpo: 'MODPO',
};
const nameOf = (front: Front) => front.name.replace(/^\w+/, (name) => spoken[name] ?? name);

/** Fronts in the plane of two wishes: a dot for each mix, joined along the weights where they are on a line. */
function plane(result: SoupsResult, x: number, y: number): Markup {
  const all = result.fronts.flatMap((front) => front.points.map((p) => p.objectives));
  const places = [...all, result.front.map((name) => result.base[result.wishes.indexOf(name)])];
  const scale = (k: number, from: number, to: number) => {
    const values = places.map((p) => p[k]);
    const [low, high] = [Math.min(...values), Math.max(...values)];
    return (value: number) => from + ((value - low) / Math.max(1e-9, high - low)) * (to - from);
  };
  const across = scale(x, margin, width - 12);
  const up = scale(y, height - margin, 12);
  const ticks = (k: number) => {
    const values = places.map((p) => p[k]);
    const [low, high] = [Math.min(...values), Math.max(...values)];
    const step = [0.1, 0.2, 0.5, 1, 2, 5, 10].find((s) => (high - low) / s <= 6) ?? (high - low) / 6;
    const first = Math.ceil(low / step);
    return Array.from({ length: Math.max(0, Math.floor(high / step) - first + 1) }, (_, i) => (first + i) * step);
  };
  const label = (value: number) => fixed(value, 1);
  const at = (p: readonly number[]) => [across(p[x]).toFixed(1), up(p[y]).toFixed(1)];
  const tip = (front: Front, p: FrontPoint) =>
    `${nameOf(front)}, weights ${p.weights.map((w) => formatValue(w)).join(', ')}: ${p.objectives.map(formatValue).join(', ')}`;
  const drawn = result.fronts.map((front, f) => {
    const line = result.front.length === 2 && front.points.every((p) => Math.abs(sumOf(p.weights) - 1) < 1e-9);
    const path =
      line &&
      html`<polyline class="front-${f % colours}${front.name === 'chord' && ' chord'}" points="${front.points.map((p) => at(p.objectives).join(',')).join(' ')}"/>`;
    const dots = front.points.map((p) => {
      const [cx, cy] = at(p.objectives);
      const faint = p.efficient ? '1' : '.35';
      return html`<circle class="type-${f % colours}" cx="${cx}" cy="${cy}" r="4" opacity="${faint}"><title>${tip(front, p)}</title></circle>`;
    });
    return html`${path}${dots}`;
  });
  const [bx, by] = at(places[places.length - 1]);
  const names = [result.front[x], result.front[y]];
  return html`<svg class="front" viewBox="0 0 ${width} ${height}" role="img" aria-label="${names[0]} against ${names[1]}">
<line class="axis" x1="${margin}" y1="${height - margin}" x2="${width - 12}" y2="${height - margin}"/>
<line class="axis" x1="${margin}" y1="12" x2="${margin}" y2="${height - margin}"/>
${ticks(x).map((v) => html`<line class="grid" x1="${across(v).toFixed(1)}" y1="12" x2="${across(v).toFixed(1)}" y2="${height - margin}"/>`)}
${ticks(y).map((v) => html`<line class="grid" x1="${margin}" y1="${up(v).toFixed(1)}" x2="${width - 12}" y2="${up(v).toFixed(1)}"/>`)}${drawn}
<rect class="base-mark" x="${Number(bx) - 4}" y="${Number(by) - 4}" width="8" height="8"><title>base</title></rect>
<text class="tick" x="${Number(bx) + 9}" y="${Number(by) + 4}">base</text>
${ticks(x).map((v) => html`<text class="tick" x="${across(v).toFixed(1)}" y="${height - margin + 15}" text-anchor="middle">${label(v)}</text>`)}
${ticks(y).map((v) => html`<text class="tick" x="${margin - 6}" y="${(up(v) + 4).toFixed(1)}" text-anchor="end">${label(v)}</text>`)}
<text x="${(width + margin) / 2}" y="${height - 10}" text-anchor="middle">${names[0]}</text>
<text x="12" y="${(height - margin) / 2}" text-anchor="middle" transform="rotate(-90 12 ${(height - margin) / 2})">${names[1]}</text></svg>`;
}

/** With so many digits behind the point; what rounds to 0 has no sign. */
const fixed = (value: number, digits = 2) => {
  const text = Math.abs(value).toFixed(digits);
  return value < 0 && Number(text) !== 0 ? `−${text}` : text;
};

/** An interval of shares. */
const between = ([from, to]: readonly [number, number]) =>
  html`<span class="muted whole">${fixed(100 * from, 1)} – ${fixed(100 * to, 1)}</span>`;

const sumOf = (values: readonly number[]) => values.reduce((a, b) => a + b, 0);

function frontsSection(result: SoupsResult): Markup {
  const pairs = result.front.flatMap((_, x) => result.front.flatMap((__, y) => (y > x ? [[x, y]] : [])));
  const best = Math.max(...result.fronts.map((front) => front.hypervolume));
  const legend = result.fronts.map(
    (front, f) => html`<span><i class="key type-key-${f % colours}"></i>${nameOf(front)}</span>`,
  );
  const row = (front: Front) => html`<tr><th scope="row">${nameOf(front)}</th><td>${fixed(front.hypervolume)}</td>
<td>${formatPercent(best > 0 ? front.hypervolume / best : 0)}</td>
<td>${front.chord_margin ? fixed(front.chord_margin.mean) : '–'}</td>
<td>${front.chord_margin ? fixed(front.chord_margin.least) : '–'}</td>
<td>${fixed(front.controllability)}</td>
<td>${front.points.filter((p) => p.efficient).length} of ${front.points.length}</td></tr>`;
  return html`<section><h2>Fronts</h2>
<p class="caption">What mixes are worth to ${result.front.join(' and ')}, in deviations of the base, which is the square. Faint
dots: another of the same front is better. The chord is where outcomes mixed, not parameters, would land. Hypervolume counts
from ${formatValue(result.reference_point)} on.</p><div class="legend wrap">${legend}</div>
<div class="fronts">${pairs.map(([x, y]) => plane(result, x, y))}</div>
<div class="scroll"><table><thead><tr><th scope="col">mix</th><th scope="col">hypervolume</th><th scope="col">of the largest</th>
<th scope="col">over the chord, mean</th><th scope="col">least</th><th scope="col">rank correlation</th><th scope="col">efficient</th></tr></thead>
<tbody>${result.fronts.map(row)}</tbody></table></div></section>`;
}

function searchSection({ search, front }: SoupsResult): Markup | null {
  if (!search) return null;
  const row = (name: string, weights: readonly number[], objectives: readonly number[]) => {
    const worth = objectives.reduce((sum, value, k) => sum + search.target[k] * value, 0);
    return html`<tr><th scope="row">${name}</th>${weights.map((w) => html`<td>${fixed(w)}</td>`)}
${objectives.map((value) => html`<td>${fixed(value)}</td>`)}<td>${fixed(worth)}</td></tr>`;
  };
  // Runs of before layers had weights of their own say nothing of them.
  const layers: SearchResult['layers'] = search.layers ?? [[0, 0]];
  return html`<section><h2>Weights that were searched for</h2>
<p class="caption">For somebody who wants ${front.map((name, k) => `${fixed(search.target[k])} ${name}`).join(', ')}: the weights
of the experts that were best on answers to training prompts (${search.method}, ${formatValue(search.evaluations)} mixes tried),
beside those wants taken as weights. What they are worth is on prompts that were not searched on.</p>
<div class="scroll"><table><thead><tr><th scope="col"></th>${front.map((name) => html`<th scope="col">weight of ${name}</th>`)}
${front.map((name) => html`<th scope="col">${name}</th>`)}<th scope="col">worth</th></tr></thead><tbody>${row(
    'the wants themselves',
    search.target,
    search.plain,
  )}${layers.map(([first, last], b) => {
    const own = search.weights.slice(b * front.length, (b + 1) * front.length);
    const name = layers.length === 1 ? 'found' : `found, layers ${first} to ${last}`;
    return row(name, own, search.found);
  })}</tbody></table></div></section>`;
}

function winsSection({ combinations }: SoupsResult): Markup | null {
  if (!combinations) return null;
  const { policies, matrix, objectives, judged } = combinations;
  const cell = (a: number, b: number) => {
    const found = matrix[a][b];
    if (!found) return html`<td>–</td>`;
    const [from, to] = found.interval;
    const mark = from > 0.5 ? 'good' : to < 0.5 ? 'bad' : '';
    return html`<td class="${mark}">${formatPercent(found.rate)}<br>${between(found.interval)}</td>`;
  };
  const means = policies.map((_, p) => sumOf(objectives.map((row) => row[p])) / objectives.length);
  return html`<section><h2>Who wins</h2>
<p class="caption">How often the policy of a row beats that of a column, over ${combinations.combinations.length} combinations
of wishes, every prompt and every chosen wish; ties are halves. Below, 95 % intervals by the bootstrap over prompts. The last
column is the mean of what the chosen wishes make of the answers.</p>
<div class="scroll"><table><thead><tr><th scope="col"></th>${policies.map((name) => html`<th scope="col">${name}</th>`)}
<th scope="col">worth</th></tr></thead>
<tbody>${policies.map(
    (name, a) =>
      html`<tr><th scope="row">${name}</th>${policies.map((_, b) => cell(a, b))}<td>${fixed(means[a])}</td></tr>`,
  )}</tbody></table></div>${judged && judgedTable(policies, judged)}</section>`;
}

function judgedTable(policies: readonly string[], { model, rates, cost }: NonNullable<Combinations['judged']>): Markup {
  const row = (name: string, rate: WinRate | null) =>
    rate &&
    html`<tr><th scope="row">${name}</th><td>${formatPercent(rate.rate)}</td><td>${between(rate.interval)}</td>
<td>${formatPercent(rate.win)}</td><td>${formatPercent(rate.tie)}</td><td>${formatPercent(rate.lose)}</td></tr>`;
  return html`<p class="caption">${policies[0]} against each by ${model}, asked in both orders: ${formatValue(cost.asked)} questions
(${formatValue(cost.cached)} known already), ${formatValue(cost.inputTokens)} tokens read and ${formatValue(cost.outputTokens)} written${
    cost.money === null ? '' : `, ${cost.money.toFixed(4)} by the price given`
  }; ${formatValue(cost.unclear)} replies unclear.</p>
<div class="scroll"><table><thead><tr><th scope="col">against</th><th scope="col">wins and half of ties</th><th scope="col">95 %</th>
<th scope="col">wins</th><th scope="col">ties</th><th scope="col">losses</th></tr></thead>
<tbody>${policies.map((name, p) => row(name, rates[p]))}</tbody></table></div>`;
}

function movingSection({ samples, front }: SoupsResult): Markup | null {
  if (samples.length === 0) return null;
  const said = (value: unknown) => (typeof value === 'string' ? value : JSON.stringify(value));
  const mix = (weights: number[] | string) =>
    typeof weights === 'string'
      ? weights
      : weights
          .flatMap((w, k) => (w === 0 ? [] : [w === 1 ? front[k] : `${Number(w.toFixed(2))} ${front[k]}`]))
          .join(' + ');
  // Runs of earlier versions have no worth here.
  const worth = (objectives: readonly number[] | undefined) =>
    objectives?.map((value, k) => html`<span class="whole">${front[k]} ${fixed(value, 1)}</span> `);
  const sample = ({ prompt, answers }: SoupsResult['samples'][number]) => html`<div class="sample">
<div class="label">prompt</div><div class="text">${said(prompt)}</div><div class="texts moving">${answers.map(
    ({ weights, text, objectives }) =>
      html`<div><div class="label">${mix(weights)}</div><div class="text">${text}</div><div class="muted">${worth(objectives)}</div></div>`,
  )}</div></div>`;
  return html`<section><h2>As the weights move</h2>
<p class="caption">Answers of the base and of the average of updates at several weights, all drawn with the same numbers; below
each, what it is worth to the wishes, in deviations of the base.</p>${samples.map(sample)}</section>`;
}

/** What each expert's answers are worth to every wish, its own marked. */
function expertsSection({ experts, wishes, base }: SoupsResult): Markup {
  const row = (name: string, values: readonly number[], kl: number | null, length: number | null) =>
    html`<tr><th scope="row">${name}</th>${values.map(
      (value, k) => html`<td${wishes[k] === name && html` class="own"`}>${fixed(value)}</td>`,
    )}<td>${kl === null ? '–' : fixed(kl)}</td><td>${length === null ? '–' : fixed(length, 1)}</td></tr>`;
  return html`<section><h2>Experts</h2>
<p class="caption">What the answers of each expert (a row) are worth to every wish (a column), in deviations of the base; KL from
the base in nats of an answer; length in tokens.</p>
<div class="scroll"><table><thead><tr><th scope="col"></th>${wishes.map((name) => html`<th scope="col">${name}</th>`)}
<th scope="col">KL</th><th scope="col">length</th></tr></thead><tbody>${row('base', base, null, null)}${experts.map(
    (e) => row(e.name, e.objectives, e.kl, e.length),
  )}</tbody></table></div></section>`;
}

/** What a run of soups found; nothing for other runs. */
export function soupsSections(result: SoupsResult | null): Markup | null {
  if (!result) return null;
  return html`${frontsSection(result)}${expertsSection(result)}${searchSection(result)}${winsSection(result)}${movingSection(result)}`;
}

/** Lines and marks of the fronts. */
export const soupsStyle = (palette: readonly string[]): string => `
.fronts { display: grid; grid-template-columns: repeat(auto-fit, minmax(300px, 1fr)); gap: 16px; margin: 8px 0 12px; }
.front { width: 100%; max-width: 820px; height: auto; } .front text { fill: var(--muted); font-size: 12px; }
.front .tick { font-size: 11px; } .front .grid { stroke: var(--edge); opacity: .6; } .front .chord { stroke-dasharray: 5 4; }
.own { font-weight: 600; } .whole { white-space: nowrap; }
.sample .moving { grid-template-columns: repeat(auto-fit, minmax(130px, 1fr)); } .moving .text { font-size: 13.5px; }
.moving .muted { font-size: 12.5px; margin-top: 4px; }
.front .axis { stroke: var(--edge); } .front polyline { fill: none; stroke-width: 1.5; }
.front .base-mark { fill: none; stroke: var(--text); stroke-width: 1.5; } .legend.wrap { flex-wrap: wrap; }
${palette.map((c, k) => `.front-${k} { stroke: ${c}; }`).join('\n')}`;
