import { html, type Markup } from './html.js';
import { formatPercent, formatValue } from './numbers.js';
import type { Aggregation, PolicyRegrets } from './read.js';

const colours = 8;
const percent = (value: number) => `${(100 * value).toFixed(2)}%`;

/** One thin bar for each type, from 0 to its regret, with its interval. */
function bars(policy: PolicyRegrets, place: (regret: number) => number): Markup {
  const zero = place(0);
  const bar = (regret: number, k: number) => {
    const [from, to] = [Math.min(zero, place(regret)), Math.max(zero, place(regret))];
    const [low, high] = policy.regret_intervals[k].map((value) => percent(place(value)));
    const y = 9 * k + 2;
    return html`<rect class="type-${k % colours}" x="${percent(from)}" y="${y}" width="${percent(to - from)}" height="6" rx="1"/>
<line class="whisker" x1="${low}" x2="${high}" y1="${y + 3}" y2="${y + 3}"/>`;
  };
  const height = 9 * policy.regrets.length + 3;
  return html`<svg class="bar" height="${height}" aria-hidden="true">
<line class="half" x1="${percent(zero)}" x2="${percent(zero)}" y1="0" y2="${height}"/>${policy.regrets.map(bar)}</svg>`;
}

/** What every aggregator costs each type, side by side; null where nothing was aggregated. */
export function aggregationSection(found: Aggregation | null): Markup | null {
  if (!found) return null;
  const { types, sampling } = found;
  const policies = [
    ...found.rules.map((rule) => ({ ...rule, name: rule.rule, weights: rule.weights as number[] | null })),
    ...found.others.map((other) => ({ ...other, weights: null as number[] | null })),
  ].sort((a, b) => a.worst_regret - b.worst_regret);
  const ends = policies.flatMap((p) => p.regret_intervals.flat());
  const [low, high] = [Math.min(0, ...ends), Math.max(1e-12, ...ends)];
  const place = (regret: number) => (regret - low) / (high - low);
  const legend = types.map((type, k) => html`<span><i class="key type-key-${k % colours}"></i>${type}</span>`);
  const row = (p: (typeof policies)[number]) => {
    const text = `${p.name}: ${types.map((type, k) => `${type} ${formatValue(p.regrets[k])}`).join(', ')}`;
    const said = p.weights ? p.weights.map((w) => formatPercent(w)).join(' · ') : 'one policy';
    return html`<div class="bars-row"><div class="bar-name" title="${said}"><bdi>${p.name}</bdi></div>
<div role="img" aria-label="${text}">${bars(p, place)}</div><div class="num">${formatValue(p.worst_regret)}</div>
<div></div></div>`;
  };
  const cell = (value: number, [from, to]: [number, number]) =>
    html`<td>${formatValue(value)} <span class="muted">[${formatValue(from)}, ${formatValue(to)}]</span></td>`;
  const line = (p: (typeof policies)[number]) => html`<tr><th scope="row">${p.name}</th>
${types.map((_, k) => html`<td>${p.weights ? formatPercent(p.weights[k]) : '–'}</td>`)}
${p.regrets.map((regret, k) => cell(regret, p.regret_intervals[k]))}${cell(p.worst_regret, p.worst_regret_interval)}</tr>`;
  return html`<section><h2>One policy for all types</h2>
<p class="caption">Regret of each type: how much of its own reward, β log π/π<sub>ref</sub> in nats, it loses against its own
policy. Least worst regret first; ${sampling.prompts} prompts × ${sampling.per_prompt}, lines are 95 % bootstrap intervals
over prompts, and run from ${formatValue(low)} to ${formatValue(high)}.</p>
<div class="legend">${legend}</div>
<div class="bars"><div class="bars-row bars-head"><div>policy</div><div></div><div class="num">worst</div><div></div></div>
${policies.map(row)}</div>
<details><summary>Weights and regrets as a table</summary><div class="scroll"><table><thead><tr><th scope="col">policy</th>
${types.map((type) => html`<th scope="col">share of ${type}</th>`)}
${types.map((type) => html`<th scope="col">regret of ${type}</th>`)}<th scope="col">worst</th></tr></thead>
<tbody>${policies.map(line)}</tbody></table></div></details></section>`;
}
