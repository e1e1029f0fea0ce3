import type { TasteAxis, VoterMap } from '../evaluation/plane.js';
import type { ReliabilityBin } from '../evaluation/reliability.js';
import { html, type Markup } from './html.js';
import { formatPercent } from './numbers.js';
import { type Evaluation, isRecord, type Metrics, type VotersFile } from './read.js';

const side = 420;
const margin = 30;

/** Voters on the plane of their two main tastes, each coloured by how well their held-out votes are met. */
function map({ voters }: VoterMap, own: Evaluation | undefined): Markup {
  const far = (of: (v: VoterMap['voters'][number]) => number) =>
    voters.reduce((top, v) => Math.max(top, Math.abs(of(v))), 1e-9);
  const [right, above] = [far((v) => v.x), far((v) => v.y)];
  // One scale for both axes, or distances would mean nothing; the picture is as high as it has to be.
  const scale = (side / 2 - margin) / Math.max(right, above);
  const height = Math.max(120, 2 * (above * scale + margin));
  const of = isRecord(own?.annotators) ? (own.annotators as Record<string, Metrics>) : {};
  const dot = ({ name, x, y }: VoterMap['voters'][number]) => {
    const accuracy = of[name]?.accuracy;
    const known = typeof accuracy === 'number';
    const text = known ? `${name}: ${formatPercent(accuracy)} of their held-out votes` : name;
    return html`<circle class="${known && accuracy < 0.5 ? 'bar-before' : 'bar-after'}" opacity=".55" r="3.2"
cx="${(side / 2 + scale * x).toFixed(1)}" cy="${(height / 2 - scale * y).toFixed(1)}"><title>${text}</title></circle>`;
  };
  return html`<svg class="scatter" width="${side}" height="${height.toFixed(0)}" role="img" aria-label="Voters by their two main tastes">
<line class="half" x1="${side / 2}" x2="${side / 2}" y1="${margin / 2}" y2="${height - margin / 2}"/>
<line class="half" y1="${height / 2}" y2="${height / 2}" x1="${margin / 2}" x2="${side - margin / 2}"/>${voters.map(dot)}
<text class="tick" x="${side - margin / 2}" y="${height / 2 + 16}" text-anchor="end">first taste</text>
<text class="tick" x="${side / 2 + 6}" y="${margin / 2 + 4}">second taste</text></svg>`;
}

function axisRows(axes: TasteAxis[]): Markup[] {
  const ends = [
    ['right', 'left'],
    ['above', 'below'],
  ];
  const list = (names: string[]) => names.map((name, i) => html`${i > 0 && ', '}<bdi>${name}</bdi>`);
  return axes.flatMap((axis, a) => [
    html`<tr><th scope="row">${ends[a][0]}</th><td>${list(axis.high)}</td><td>${formatPercent(axis.share)}</td></tr>`,
    html`<tr><th scope="row">${ends[a][1]}</th><td>${list(axis.low)}</td><td></td></tr>`,
  ]);
}

/** Share ordered right over stated confidence: on the line where a probability means what it says. */
function reliabilityChart(bins: ReliabilityBin[]): Markup {
  const size = 320;
  const at = (value: number) => 34 + ((value - 0.5) / 0.5) * (size - 68);
  const most = Math.max(...bins.map((bin) => bin.rows));
  const low = (value: number) => Math.max(0.5, value);
  const dot = ({ rows, confidence, accuracy }: ReliabilityBin) =>
    html`<circle class="bar-after" cx="${at(confidence).toFixed(1)}" cy="${(size - at(low(accuracy))).toFixed(1)}"
r="${(2 + 7 * Math.sqrt(rows / most)).toFixed(1)}"><title>said ${formatPercent(confidence)}, right ${formatPercent(accuracy)}, ${rows} pairs</title></circle>`;
  const line = bins
    .map(({ confidence, accuracy }) => `${at(confidence).toFixed(1)},${(size - at(low(accuracy))).toFixed(1)}`)
    .join(' ');
  const tick = (
    value: number,
  ) => html`<text class="tick" x="${at(value)}" y="${size - 16}" text-anchor="middle">${value}</text>
<text class="tick" x="28" y="${size - at(value) + 4}" text-anchor="end">${value}</text>`;
  return html`<svg class="scatter" width="${size}" height="${size}" role="img"
aria-label="Reliability: share of pairs ordered right over the stated confidence">
<rect x="34" y="34" width="${size - 68}" height="${size - 68}" fill="none" stroke="var(--edge)"/>
<line class="half" x1="${at(0.5)}" y1="${size - at(0.5)}" x2="${at(1)}" y2="${size - at(1)}"/>
<polyline points="${line}" fill="none" stroke="var(--accent)" opacity=".5"/>${bins.map(dot)}${[0.5, 0.75, 1].map(tick)}
<text class="tick" x="${size / 2}" y="${size - 2}" text-anchor="middle">stated confidence</text></svg>`;
}

/** Who likes what: of rewards on features, or of what is everyone's own of an adapter. */
export function mapSection(voters: VotersFile | null, own: Evaluation | undefined): Markup | null {
  const drawn = voters?.map;
  if (!drawn) return null;
  const items = voters.kind === 'items';
  const some = drawn.voters.length < drawn.of ? `${drawn.voters.length} of ${drawn.of} voters` : 'All voters';
  const what = items
    ? html`on the plane that holds most of how their rewards differ; the distance of two is how far their rewards are apart.
Voters to one side like the items named for it more than others do.`
    : html`on the plane that holds most of how their own factors differ, and what the third of them to each side chose in
training.`;
  return html`<section><h2>Voters ${items ? 'by taste' : 'by their factors'}</h2><p class="caption">${some} ${what}
Pale: fewer than half of their held-out votes are met.</p><div class="two"><div>${map(drawn, own)}</div>
<div class="scroll"><table><thead><tr><th scope="col">towards</th><th scope="col">${items ? 'items liked more' : 'prefer'}</th>
<th scope="col">of the spread</th></tr></thead><tbody>${axisRows(drawn.axes)}</tbody></table></div></div></section>`;
}

/** Whether probabilities hold. */
export function reliabilitySection(own: Evaluation | undefined): Markup | null {
  const bins = own?.reliability;
  if (!Array.isArray(bins) || bins.length === 0 || !bins.every(isBin)) return null;
  const row = (bin: ReliabilityBin) =>
    html`<tr><th scope="row">${formatPercent(bin.confidence)}</th><td>${formatPercent(bin.accuracy)}</td>
<td>${bin.rows.toLocaleString('en-US')}</td></tr>`;
  return html`<section><h2>Reliability</h2><p class="caption">Held-out pairs by how sure the rewards are of them: on the line,
a probability is right as often as it says. Accuracy below one half is drawn at one half; an area for the pairs.</p>
<div class="two"><div>${reliabilityChart(bins)}</div><div class="scroll"><table><thead><tr><th scope="col">stated confidence</th>
<th scope="col">ordered right</th><th scope="col">pairs</th></tr></thead><tbody>${bins.map(row)}</tbody></table></div></div>
</section>`;
}

const isBin = (bin: unknown): bin is ReliabilityBin =>
  isRecord(bin) && [bin.rows, bin.confidence, bin.accuracy].every((value) => typeof value === 'number');
