const [across, up] = [320, 190];
const margin = { left: 46, top: 56, bottom: 74, right: 10 };
const range = { x: 2.8, y: 1.66 };
/** What each experiment asks of an annotator. */
const titles = {
  'J = 2': 'One pair each',
  'J = 3': 'One ranking of three each',
  'J = 2, many votes': 'Twenty pairs each',
};
const colours = ['#0072b2', '#d55e00'];

/** 1.6e-4 → 2 · 10⁻⁴ */
function power(value) {
  const [digits, exponent] = value.toExponential(0).split('e');
  const raised = [...exponent.replace('+', '')].map((c) => (c === '-' ? '⁻' : '⁰¹²³⁴⁵⁶⁷⁸⁹'[Number(c)])).join('');
  return `${digits} · 10${raised}`;
}

/** Where the starts of each experiment end, in the plane of (β₁, β₂), as an SVG text. */
export function figure(results, truth) {
  const clamp = (value, limit) => Math.max(-limit, Math.min(limit, value));
  const x = (value, panel) =>
    panel * (across + margin.left) + margin.left + ((clamp(value, range.x) + range.x) / (2 * range.x)) * across;
  const y = (value) => margin.top + ((range.y - clamp(value, range.y)) / (2 * range.y)) * up;
  const width = results.length * (across + margin.left) + margin.right;
  const height = margin.top + up + margin.bottom;
  const parts = results.map(({ title, starts, spread }, panel) => {
    const [left, right, top, bottom] = [x(-range.x, panel), x(range.x, panel), y(range.y), y(-range.y)];
    const minus = (t) => String(t).replace('-', '−');
    const ticks = [
      ...[-2, -1, 0, 1, 2].map(
        (t) =>
          `<path d="M${x(t, panel)} ${bottom}v4"/>` +
          `<text x="${x(t, panel)}" y="${bottom + 17}" text-anchor="middle">${minus(t)}</text>`,
      ),
      ...[-1, 0, 1].map(
        (t) =>
          `<path d="M${left} ${y(t)}h-4"/>` +
          `<text x="${left - 7}" y="${y(t) + 4}" text-anchor="end">${minus(t)}</text>`,
      ),
    ];
    // Rings leave what ends at the truth in sight.
    const rings = truth.map(([a, b]) => `<circle cx="${x(a, panel)}" cy="${y(b)}" r="9" class="truth"/>`);
    const ends = starts.flatMap(({ rewards }) => {
      const [p, q] = rewards.map(([a, b]) => [x(a, panel), y(b)]);
      const line = `<path d="M${p.join(' ')}L${q.join(' ')}" class="pair"/>`;
      return [
        line,
        ...[p, q].map(([cx, cy], k) => `<circle cx="${cx}" cy="${cy}" r="4" fill="${colours[k]}" fill-opacity=".8"/>`),
      ];
    });
    return `<g><rect x="${left}" y="${top}" width="${right - left}" height="${bottom - top}" class="frame"/>
<path d="M${x(0, panel)} ${top}V${bottom}M${left} ${y(0)}H${right}" class="axis"/>${ticks.join('')}
<text x="${(left + right) / 2}" y="${top - 26}" text-anchor="middle" class="title">${titles[title] ?? title}</text>
<text x="${(left + right) / 2}" y="${top - 9}" text-anchor="middle" class="small">${starts.length} starts, log-likelihoods within ${power(spread)}</text>
${ends.join('')}${rings.join('')}<text x="${(left + right) / 2}" y="${bottom + 34}" text-anchor="middle">β₁</text>
<text x="${left - 26}" y="${y(0) + 4}" text-anchor="middle">β₂</text></g>`;
  });
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}">
<title>Where EM ends from each start: pairs, rankings of three, and many pairs an annotator</title>
<style>text{font:12px system-ui,sans-serif;fill:#222}.title{font-weight:600;font-size:14.5px}.small{fill:#555}path,.frame{stroke:#888;fill:none}
.axis{stroke:#ddd}.pair{stroke:#bbb;stroke-dasharray:3 3}.truth{stroke:#000;stroke-width:1.6;fill:none}</style>
<rect width="100%" height="100%" fill="#fff"/>
${parts.join('\n')}
<g transform="translate(${margin.left}, ${height - 16})"><circle cx="5" cy="0" r="4" fill="${colours[0]}"/><circle cx="17" cy="0" r="4" fill="${colours[1]}"/>
<text x="28" y="4">where a start’s two types end (joined by a dashed line)</text><circle cx="400" cy="0" r="8" class="truth"/>
<text x="415" y="4">the two types that voted</text></g>
</svg>
`;
}
