/**
 * The page's own script. It reads the charts from the element `charts` and draws them with uPlot into the elements
 * `chart-0`, `chart-1` …, again when the width or the colour scheme changes, and in light colours on paper.
 */
export const clientScript = `(() => {
  'use strict';
  const charts = JSON.parse(document.getElementById('charts').textContent);
  const dark = window.matchMedia('(prefers-color-scheme: dark)');
  const palettes = {
    light: { text: '#57606a', grid: '#e6e8eb', lines: ['#1f5fbf', '#b3501a', '#2c7a4b', '#7a4aa8'], faint: '4d' },
    dark: { text: '#9aa4af', grid: '#2a3038', lines: ['#6ea8ff', '#f0985e', '#6fcf97', '#c39bf0'], faint: '59' },
  };
  const minus = (text) => text.replace(/-/g, '\\u2212');
  const short = (v) => {
    if (v == null || !Number.isFinite(v)) return '\\u2013';
    if (v === 0) return '0';
    const size = Math.abs(v);
    const text = size < 1e-3 || size >= 1e6 ? v.toExponential(2).replace('e+', 'e') : String(Number(v.toPrecision(4)));
    return minus(text);
  };
  const ticks = (u, splits) => {
    const size = Math.max(...splits.map(Math.abs));
    if (size > 0 && (size < 1e-2 || size >= 1e5)) {
      return splits.map((v) => (v === 0 ? '0' : minus(Number(v.toPrecision(4)).toExponential().replace('e+', 'e'))));
    }
    const exact = (digits) => splits.every((v) => Math.abs(v - Number(v.toFixed(digits))) < 1e-6 * size);
    let digits = 0;
    while (digits < 6 && !exact(digits)) digits += 1;
    return splits.map((v) => minus(v.toFixed(digits)));
  };
  const whole = (u, splits) => splits.map((v) => (Number.isInteger(v) ? v.toLocaleString('en-US') : ''));
  let plots = [];
  let drawn = '';
  const draw = (paper) => {
    const p = paper || !dark.matches ? palettes.light : palettes.dark;
    const width = (i) => Math.floor(document.getElementById('chart-' + i).clientWidth);
    const key = (p === palettes.dark) + ':' + charts.map((_, i) => width(i)).join();
    if (key === drawn) return;
    drawn = key;
    for (const plot of plots) plot.destroy();
    plots = [];
    charts.forEach((chart, i) => {
      const place = document.getElementById('chart-' + i);
      if (width(i) === 0) return;
      const axis = {
        stroke: p.text, font: '12px system-ui, sans-serif', labelFont: '12px system-ui, sans-serif',
        grid: { stroke: p.grid, width: 1 }, ticks: { stroke: p.grid, width: 1, size: 4 }, gap: 4,
      };
      const last = chart.steps.length - 1;
      plots.push(new uPlot({
        width: width(i), height: 220,
        padding: [8, 26, 0, 0],
        cursor: { y: false, points: { size: 7 }, sync: { key: chart.x || 'step' } },
        legend: { live: true },
        scales: {
          x: { time: false, range: (u, min, max) => (min === max ? [min - 1, max + 1] : [min, max]) },
          y: chart.range ? { range: chart.range } : {},
        },
        axes: [
          { ...axis, label: chart.x || 'step', labelSize: 18, labelGap: 0, size: 28, space: 70, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500,
            1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 2e5, 5e5, 1e6, 2e6, 5e6, 1e7, 1e8, 1e9], values: whole },
          { ...axis, label: chart.unit, labelSize: 18, labelGap: 4, size: 52, space: 36, values: ticks },
        ],
        series: [
          { label: chart.x || 'step', value: (u, v) => (v == null ? chart.steps[last].toLocaleString('en-US') : v.toLocaleString('en-US')) },
          ...chart.series.map((s) => ({
            label: s.label,
            ...(s.unlisted && { class: 'unlisted' }),
            stroke: p.lines[s.color % p.lines.length] + (s.faint ? p.faint : ''),
            width: s.faint ? 1 : 1.75,
            spanGaps: true,
            points: { show: Boolean(s.sparse), size: 5, fill: p.lines[s.color % p.lines.length] },
            value: (u, v, si, index) => short(index == null ? s.values.findLast((x) => x != null) : v),
          })),
        ],
      }, [chart.steps, ...chart.series.map((s) => s.values)], place));
    });
  };
  draw(false);
  dark.addEventListener('change', () => draw(false));
  window.addEventListener('beforeprint', () => draw(true));
  window.addEventListener('afterprint', () => draw(false));
  document.querySelectorAll('details').forEach((d) => d.addEventListener('toggle', () => draw(false)));
  let timer = 0;
  window.addEventListener('resize', () => { clearTimeout(timer); timer = setTimeout(() => draw(false), 100); });
})();
`;
