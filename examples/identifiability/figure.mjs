const size = 300;
const margin = 44;
const range = 3.2;
const colours = ['#0072b2', '#d55e00'];

/** Where the starts of each experiment end, in the plane of (β₁, β₂), as an SVG text. */
export function figure(results, truth) {
  const x = (value, panel) => panel * (size + margin) + margin + ((value + range) / (2 * range)) * size;
  const y = (value) => margin + ((range - value) / (2 * range)) * size;
  const clamp = (value) => Math.max(-range, Math.min(range, value));
  const width = results.length * (size + margin) + margin;
  const height = size + 2 * margin + 18;
  const parts = results.map(({ title, starts, spread }, panel) => {
    const [left, right, top, bottom] = [x(-range, panel), x(range, panel), y(range), y(-range)];
    const ticks = [-2, 0, 2].map(
      (t) =>
        `<path d="M${x(t, panel)} ${bottom}v4M${left} ${y(t)}h-4"/>` +
        `<text x="${x(t, panel)}" y="${bottom + 16}" text-anchor="middle">${t}</text>` +
        `<text x="${left - 7}" y="${y(t) + 4}" text-anchor="end">${t}</text>`,
    );
    const crosses = truth.map(
      ([a, b]) =>
        `<path d="M${x(a, panel) - 8} ${y(b)}h16M${x(a, panel)} ${y(b) - 8}v16" stroke-width="2" class="truth"/>`,
    );
    const ends = starts.flatMap(({ rewards }) => {
      const [p, q] = rewards.map(([a, b]) => [x(clamp(a), panel), y(clamp(b))]);
      const line = `<path d="M${p.join(' ')}L${q.join(' ')}" class="pair"/>`;
      return [line, ...[p, q].map(([cx, cy], k) => `<circle cx="${cx}" cy="${cy}" r="4" fill="${colours[k]}"/>`)];
    });
    return `<g><rect x="${left}" y="${top}" width="${right - left}" height="${bottom - top}" class="frame"/>
<path d="M${x(0, panel)} ${top}V${bottom}M${left} ${y(0)}H${right}" class="axis"/>${ticks.join('')}
<text x="${(left + right) / 2}" y="${top - 22}" text-anchor="middle" class="title">${title}</text>
<text x="${(left + right) / 2}" y="${top - 7}" text-anchor="middle">log-likelihoods within ${spread.toExponential(0)}</text>
${ends.join('')}${crosses.join('')}<text x="${(left + right) / 2}" y="${bottom + 32}" text-anchor="middle">β₁</text></g>`;
  });
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}">
<title>Where EM ends from each start: pairs, rankings of three, and many pairs an annotator</title>
<style>text{font:12px sans-serif;fill:#222}.title{font-weight:600;font-size:14px}path,.frame{stroke:#888;fill:none}
.axis{stroke:#ddd}.pair{stroke:#bbb;stroke-dasharray:3 3}.truth{stroke:#000}</style>
<rect width="100%" height="100%" fill="#fff"/>
${parts.join('\n')}
<text x="${margin}" y="${height - 6}">● where the two types of each start end (dashed: one start)   ✚ truth</text>
</svg>
`;
}
