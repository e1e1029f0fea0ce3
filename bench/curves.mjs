// Cost curves as a figure and as the table of docs/benchmarks.md.
//
// npx pluralign bench train --curves --threads 2 --json > curves.json
// node bench/curves.mjs curves.json docs/cost-curves.svg
import { readFileSync, renameSync, writeFileSync } from 'node:fs';

const [across, up] = [170, 150];
const margin = { left: 46, top: 34, right: 14, between: 46, bottom: 40 };
const types = { float32: '#0072b2', bf16: '#d55e00' };
const measures = [
  { title: 'µs a token', of: (r) => r.forward_us_per_token + r.backward_us_per_token },
  { title: 'KB a token', of: (r) => r.activations_kb_per_token },
];

/** 1, 2 or 5 times a power of ten: at most `count` of them up to `top`. */
function ticks(top, count) {
  const rough = top / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough);
  return Array.from({ length: Math.floor(top / step + 1e-9) + 1 }, (_, i) => Number((i * step).toPrecision(6)));
}

const short = (n) => (n >= 1000 ? `${n / 1000}k` : String(n));

/** A panel for every curve and measure, on linear axes from zero: what is proportional or flat is a straight line. */
function figure(records) {
  const curves = [...new Set(records.map((r) => r.curve))];
  const panels = measures.flatMap(({ title, of }, row) => {
    const top = 1.08 * Math.max(...records.map(of));
    return curves.map((curve, column) => {
      const left = margin.left + column * (across + margin.right);
      const above = margin.top + row * (up + margin.between);
      const points = records.filter((r) => r.curve === curve);
      const end = 1.05 * Math.max(...points.map((r) => r.x));
      const x = (value) => (left + (value / end) * across).toFixed(1);
      const y = (value) => (above + up - (value / top) * up).toFixed(1);
      const grid = ticks(top, 5).map(
        (t) =>
          `<path d="M${left} ${y(t)}h${across}" class="grid"/>` +
          (column === 0 ? `<text x="${left - 6}" y="${Number(y(t)) + 4}" text-anchor="end">${t}</text>` : ''),
      );
      const scale = ticks(end, 4).map(
        (t) => `<text x="${x(t)}" y="${above + up + 15}" text-anchor="middle">${short(t)}</text>`,
      );
      const lines = Object.entries(types).map(([dtype, colour]) => {
        const at = points.filter((r) => r.dtype === dtype).map((r) => `${x(r.x)},${y(of(r))}`);
        const dots = at.map((p) => `<circle cx="${p.split(',')[0]}" cy="${p.split(',')[1]}" r="3" fill="${colour}"/>`);
        return `<polyline points="${at.join(' ')}" stroke="${colour}"/>${dots.join('')}`;
      });
      const name = row === 0 ? `<text x="${left}" y="${above - 10}" class="title">${curve}</text>` : '';
      const unit = column === 0 ? `<text x="${left + 6}" y="${above + 15}" class="unit">${title}</text>` : '';
      return `<g>${grid.join('')}<rect x="${left}" y="${above}" width="${across}" height="${up}" class="frame"/>
${scale.join('')}${lines.join('')}${name}${unit}</g>`;
    });
  });
  const width = margin.left + curves.length * (across + margin.right);
  const height = margin.top + measures.length * (up + margin.between) + margin.bottom - 20;
  const legend = Object.entries(types).map(
    ([dtype, colour], i) =>
      `<path d="M${margin.left + 100 * i} ${height - 16}h22" stroke="${colour}" stroke-width="2"/>` +
      `<text x="${margin.left + 100 * i + 28}" y="${height - 12}">${dtype}</text>`,
  );
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}">
<title>Time and activations of a token against what a pass holds</title>
<style>text{font:11.5px system-ui,sans-serif;fill:#222}.title{font-weight:600;font-size:13px}.unit{fill:#555}polyline{fill:none;stroke-width:2}
.frame{stroke:#888;fill:none}.grid{stroke:#e4e4e4}</style>
<rect width="100%" height="100%" fill="#fff"/>
${panels.join('\n')}
${legend.join('\n')}
</svg>
`;
}

/** The rows of the table: a line for every point, both types beside each other. */
function table(records) {
  const lines = ['| varied | | float32, µs | bf16, µs | float32, KB | bf16, KB |', '|---|---|---|---|---|---|'];
  for (const r of records.filter((one) => one.dtype === 'float32')) {
    const half = records.find((one) => one.dtype === 'bf16' && one.curve === r.curve && one.x === r.x);
    const time = (one) => `${one.forward_us_per_token} + ${one.backward_us_per_token}`;
    const memory = (one) => one.activations_kb_per_token;
    lines.push(`| ${r.curve} | ${r.x} | ${time(r)} | ${time(half)} | ${memory(r)} | ${memory(half)} |`);
  }
  return lines.join('\n');
}

const [source, target] = process.argv.slice(2);
if (!source || !target) {
  console.error('node bench/curves.mjs CURVES.json FIGURE.svg');
  process.exit(2);
}
const records = JSON.parse(readFileSync(source, 'utf8')).results;
writeFileSync(`${target}.part`, figure(records));
renameSync(`${target}.part`, target);
console.log(table(records));
