import { byWorst } from '../evaluation/wilson.js';
import { html, type Markup } from './html.js';
import { formatPercent, formatSigned, formatValue } from './numbers.js';
import { type Evaluation, isRecord, type Metrics } from './read.js';

interface Voter {
  name: string;
  rows: number;
  own: number;
  generic: number;
}

const hardest = 15;
const share = (value: unknown): number | null => (typeof value === 'number' && value >= 0 && value <= 1 ? value : null);

/** Everyone who is judged both ways, hardest first (see `byWorst`); ties by name. */
function votersOf(own: Evaluation | undefined, generic: Evaluation | undefined): Voter[] {
  const other = isRecord(generic?.annotators) ? generic.annotators : {};
  const voters: Voter[] = [];
  for (const [name, metrics] of Object.entries(isRecord(own?.annotators) ? own.annotators : {})) {
    const [a, b] = [
      share((metrics as Metrics | null)?.accuracy),
      share((other[name] as Metrics | undefined)?.accuracy),
    ];
    const rows = Number((metrics as Metrics | null)?.rows);
    if (a !== null && b !== null && rows > 0) voters.push({ name, rows, own: a, generic: b });
  }
  const judged = (v: Voter) => ({ accuracy: v.own, rows: v.rows });
  return voters.sort((a, b) => byWorst(judged(a), judged(b)) || (a.name < b.name ? -1 : 1));
}

const side = 340;
const margin = 48;
const at = (value: number) => margin + value * (side - 2 * margin);

/** Own accuracy over the generic adapter's; an area for the votes. The picture keeps its size, so its text is not scaled. */
function scatter(voters: Voter[], thing: string): Markup {
  const most = Math.max(...voters.map((v) => v.rows));
  const dot = ({ name, rows, own, generic }: Voter) =>
    html`<circle class="bar-after" opacity=".55" cx="${at(generic).toFixed(1)}" cy="${(side - at(own)).toFixed(1)}"
r="${(2 + 6 * Math.sqrt(rows / most)).toFixed(1)}"><title>${name}: own ${formatPercent(own)}, generic ${formatPercent(generic)}, ${rows} votes</title></circle>`;
  const tick = (
    value: number,
  ) => html`<text class="tick" x="${at(value)}" y="${side - margin + 16}" text-anchor="middle">${value}</text>
<text class="tick" x="${margin - 6}" y="${side - at(value) + 4}" text-anchor="end">${value}</text>`;
  return html`<svg class="scatter" width="${side}" height="${side}" role="img"
aria-label="Accuracy under the own ${thing} over accuracy under the generic one, a circle for each annotator">
<rect x="${margin}" y="${margin}" width="${side - 2 * margin}" height="${side - 2 * margin}" fill="none" stroke="var(--edge)"/>
<line class="half" x1="${at(0)}" y1="${side - at(0)}" x2="${at(1)}" y2="${side - at(1)}"/>
${[0, 0.25, 0.5, 0.75, 1].map(tick)}${voters.map(dot)}
<text class="tick" x="${side / 2}" y="${side - 4}" text-anchor="middle">accuracy under the generic ${thing}</text>
<text class="tick" x="12" y="${side / 2}" text-anchor="middle" transform="rotate(-90 12 ${side / 2})">under their own</text></svg>`;
}

/** Annotators' own adapters against the generic one on the same held-out rows: a picture, the balance, the hardest voters. */
export function voterSection(
  own: Evaluation | undefined,
  generic: Evaluation | undefined,
  thing: 'adapter' | 'reward' = 'adapter',
): Markup | null {
  const voters = votersOf(own, generic);
  if (voters.length === 0) return null;
  const better = voters.filter((v) => v.own > v.generic).length;
  const worse = voters.filter((v) => v.own < v.generic).length;
  const mean = (of: (v: Voter) => number) => voters.reduce((sum, v) => sum + of(v), 0) / voters.length;
  const points = (v: { own: number; generic: number }) => formatSigned(100 * (v.own - v.generic), (x) => x.toFixed(1));
  const row = (v: Voter) => html`<tr><th scope="row"><bdi>${v.name}</bdi></th><td>${formatValue(v.rows)}</td>
<td>${formatPercent(v.own)}</td><td>${formatPercent(v.generic)}</td>
<td class="${v.own > v.generic ? 'good' : v.own < v.generic ? 'bad' : ''}">${points(v)}</td></tr>`;
  const all = { own: mean((v) => v.own), generic: mean((v) => v.generic) };
  return html`<section><h2>${thing === 'adapter' ? 'Adapters' : 'Rewards'} by annotator against the generic one</h2>
<p class="caption">The same held-out votes, each under its annotator’s ${thing} and all under the one for whoever is unknown:
${better} of ${voters.length} annotators fare better with their own, ${worse} worse. Mean of annotators:
${formatPercent(all.own)} against ${formatPercent(all.generic)} (${points(all)} points).</p>
<div class="two"><div>${scatter(voters, thing)}</div><div class="scroll"><h3>Hardest voters</h3><table><thead><tr>
<th scope="col">annotator</th><th scope="col">votes</th><th scope="col">own</th><th scope="col">generic</th>
<th scope="col">points</th></tr></thead><tbody>${voters.slice(0, hardest).map(row)}</tbody></table></div></div></section>`;
}
