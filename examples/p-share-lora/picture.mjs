import { mean } from './planted.mjs';

const [across, up] = [190, 190];
const margin = { left: 44, top: 30, bottom: 66, right: 12 };
const lines = [
  ['local', '#999999', 'one for each'],
  ['global', '#d55e00', 'one for all'],
  ['shared', '#0072b2', 'shared'],
  ['oracle', '#009e73', 'subspace known'],
  ['excess', '#0072b2', 'shared less subspace known'],
];

/** Errors over each axis on log axes, a panel for each; the dotted line has the slope of the theory. As an SVG text. */
export function picture(panels) {
  const all = panels.flatMap(({ series }) =>
    series.flatMap((list) => lines.map(([name]) => mean(list.map((r) => r[name])))),
  );
  const bottom = 10 ** Math.floor(Math.log10(Math.min(...all)));
  const top = 2;
  const y = (value) => margin.top + (Math.log(top / value) / Math.log(top / bottom)) * up;
  const width = panels.length * (across + margin.left) + margin.right;
  const height = margin.top + up + margin.bottom;
  const ticks = [];
  for (let value = bottom; value <= 1.001; value *= 10) ticks.push(value);
  const parts = panels.map(({ title, xs, series, slope }, p) => {
    const left = p * (across + margin.left) + margin.left;
    const x = (value) => left + (0.06 + 0.88 * (Math.log(value / xs[0]) / Math.log(xs.at(-1) / xs[0]))) * across;
    const points = (of) => xs.map((value, i) => `${x(value).toFixed(1)},${y(of(series[i])).toFixed(1)}`).join(' ');
    const drawn = lines.map(([name, colour]) => {
      const dash = name === 'excess' ? ' stroke-dasharray="5 3"' : '';
      return `<polyline points="${points((list) => mean(list.map((r) => r[name])))}" stroke="${colour}"${dash}/>`;
    });
    const middle = Math.exp(mean(series.map((list) => Math.log(mean(list.map((r) => r.excess))))));
    const centre = Math.exp(mean(xs.map(Math.log)));
    const law = points(() => 1)
      .split(' ')
      .map((point, i) => {
        const at = middle * (xs[i] / centre) ** slope.theory;
        return `${point.split(',')[0]},${y(at).toFixed(1)}`;
      });
    const labels = xs.map(
      (value) => `<text x="${x(value).toFixed(1)}" y="${margin.top + up + 16}" text-anchor="middle">${value}</text>`,
    );
    const scale = ticks.map(
      (value) =>
        `<path d="M${left} ${y(value).toFixed(1)}h${across}" class="grid"/>` +
        (p === 0
          ? `<text x="${left - 6}" y="${(y(value) + 4).toFixed(1)}" text-anchor="end">${Number(value.toPrecision(1))}</text>`
          : ''),
    );
    return `<g>${scale.join('')}<rect x="${left}" y="${margin.top}" width="${across}" height="${up}" class="frame"/>
${drawn.join('')}<polyline points="${law.join(' ')}" class="law"/>${labels.join('')}
<text x="${left + across / 2}" y="18" text-anchor="middle" class="title">${title}</text></g>`;
  });
  const legend = [...lines, ['law', '#000', 'theory’s slope']].map(([name, colour, text], i) => {
    const at = margin.left + [0, 120, 230, 320, 450, 650][i];
    const dash = name === 'excess' ? '5 3' : name === 'law' ? '1 3' : 'none';
    return `<path d="M${at} ${height - 17}h22" stroke="${colour}" stroke-dasharray="${dash}" stroke-width="2"/>
<text x="${at + 27}" y="${height - 13}">${text}</text>`;
  });
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}">
<title>Relative squared error of rewards against voters, votes, rank and dimensions</title>
<style>text{font:11.5px system-ui,sans-serif;fill:#222}.title{font-weight:600;font-size:13.5px}polyline{fill:none;stroke-width:2}
.frame{stroke:#888;fill:none}.grid{stroke:#e4e4e4}.law{stroke:#000;stroke-width:1.5;stroke-dasharray:1 3}</style>
<rect width="100%" height="100%" fill="#fff"/>
${parts.join('\n')}
${legend.join('\n')}
</svg>
`;
}
