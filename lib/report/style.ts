import { soupsStyle } from './soups.js';

/** Types are told apart by these, on either ground (Okabe and Ito's palette, adjusted for both). */
const typeColours = ['#2f7ed8', '#e08a00', '#1b9e77', '#c25596', '#8a6fd1', '#b5a100', '#d1495b', '#5b8c99'];

/** The page's style sheet: a light and a dark scheme, and paper. */
export const style = `
:root {
  color-scheme: light dark;
  --ground: #f6f7f8; --card: #ffffff; --edge: #dfe3e7; --text: #1c2126; --muted: #57606a;
  --accent: #1f5fbf; --before: #a9b4c0; --good: #1f7a45; --bad: #b3361a; --half: #9aa4af; --code: #f2f4f6;
  --note: #fff6df; --note-edge: #ecd9a0;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #12161b; --card: #1a2027; --edge: #2c343d; --text: #e4e8ec; --muted: #9aa4af;
    --accent: #6ea8ff; --before: #5b6774; --good: #6fcf97; --bad: #ff9274; --half: #6b7682; --code: #141a20;
    --note: #2b2615; --note-edge: #574a1e;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--text);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, "Noto Sans", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 40px 24px 64px; }
header { margin-bottom: 24px; }
h1 { font-size: 26px; line-height: 1.25; margin: 0 0 2px; letter-spacing: -.01em; overflow-wrap: anywhere; }
h2 { font-size: 17px; margin: 0 0 4px; }
h3 { font-size: 14px; margin: 0 0 6px; font-weight: 600; }
p { margin: 0 0 10px; }
.path, .caption, .muted { color: var(--muted); }
.path { overflow-wrap: anywhere; font-size: 13.5px; }
.caption { font-size: 13.5px; max-width: 75ch; }
section { background: var(--card); border: 1px solid var(--edge); border-radius: 10px; padding: 20px 22px 22px; margin: 16px 0; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin: 16px 0; }
.tile { background: var(--card); border: 1px solid var(--edge); border-radius: 10px; padding: 12px 16px; min-width: 0; }
.tile .label { color: var(--muted); font-size: 13px; }
.tile .value { font-size: 22px; font-weight: 600; font-variant-numeric: tabular-nums; line-height: 1.35; overflow-wrap: anywhere; }
.tile .sub { color: var(--muted); font-size: 13px; font-variant-numeric: tabular-nums; }
.note { background: var(--note); border: 1px solid var(--note-edge); border-radius: 8px; padding: 8px 14px; margin: 10px 0; }
.charts { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 22px 28px; margin-top: 14px; }
.chart { min-width: 0; overflow: hidden; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100%; font-size: 14px; }
th, td { padding: 5px 12px 5px 0; text-align: right; border-bottom: 1px solid var(--edge); vertical-align: top; }
th:first-child { text-align: left; }
td:last-child, th:last-child { padding-right: 0; }
thead th { color: var(--muted); font-weight: 500; }
tbody th { font-weight: 400; overflow-wrap: anywhere; }
.two { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 16px; align-items: start; }
.two > section { margin: 0; height: 100%; }
.scroll { overflow-x: auto; }
.num { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.good { color: var(--good); } .bad { color: var(--bad); }
details { margin-top: 12px; } section > details:first-child { margin-top: 0; }
summary { cursor: pointer; color: var(--accent); font-size: 14px; }
details[open] > summary { margin-bottom: 8px; }
pre { background: var(--code); border: 1px solid var(--edge); border-radius: 8px; padding: 12px 14px; margin: 8px 0 0;
  white-space: pre-wrap; overflow-wrap: anywhere; font: 13px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.legend { display: flex; gap: 18px; font-size: 13px; color: var(--muted); margin: 4px 0 10px; }
.key { display: inline-block; width: 18px; height: 9px; border-radius: 2px; margin-right: 6px; }
.key-after { background: var(--accent); } .key-before { background: var(--before); height: 4px; vertical-align: middle; }
.bars-row, .bars-axis { display: grid; grid-template-columns: minmax(80px, 180px) minmax(0, 1fr) 64px 56px; gap: 12px; align-items: center; }
.bars-row { font-size: 13.5px; line-height: 22px; }
.bars-head { color: var(--muted); font-size: 13px; }
.bar-name { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.bar { display: block; width: 100%; overflow: visible; }
.bar-after { fill: var(--accent); } .bar-before { fill: var(--before); }
${typeColours.map((c, k) => `.type-${k} { fill: ${c}; } .type-key-${k} { background: ${c}; }`).join('\n')}
.whisker { stroke: var(--text); stroke-width: 1; opacity: .65; }
.half { stroke: var(--half); stroke-dasharray: 3 3; }
.ticks { position: relative; height: 24px; border-top: 1px solid var(--edge); font-size: 12px; color: var(--muted); }
.ticks span { position: absolute; top: 3px; transform: translateX(-50%); white-space: nowrap; font-variant-numeric: tabular-nums; }
.scatter { display: block; max-width: 100%; overflow: visible; } .tick { font-size: 12px; fill: var(--muted); }
.axis-title { text-align: center; font-size: 12px; color: var(--muted); }
td.words, th.words { text-align: left; padding-left: 12px; }
.responsibilities { display: block; width: 100%; height: 120px; margin: 4px 0 14px; border-radius: 4px; }
.sample { border-top: 1px solid var(--edge); padding-top: 14px; margin-top: 14px; }
.sample:first-of-type { border-top: 0; }
.sample .texts { display: grid; grid-template-columns: repeat(auto-fit, minmax(210px, 1fr)); gap: 6px 24px; margin-top: 8px; }
.sample .label { color: var(--muted); font-size: 13px; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; }
footer { color: var(--muted); font-size: 13px; margin-top: 20px; }
.u-legend { text-align: left; margin: 2px 0 0 52px; font-size: 13px; color: var(--muted); font-variant-numeric: tabular-nums; }
.u-legend, .u-legend tbody { width: auto; }
.u-legend th, .u-legend td { border: 0; padding: 0; text-align: left; font-weight: 400; }
.u-legend .u-series > * { padding: 0 2px; }
.u-legend.u-inline tr { margin-right: 12px; }
.u-legend .u-marker { width: 14px; height: 4px; }
.u-legend .unlisted, .u-legend .u-series:first-child .u-marker { display: none !important; }
.u-cursor-x { border-color: var(--muted) !important; }
${soupsStyle(typeColours)}
@media (max-width: 760px) {
  .charts, .two { grid-template-columns: minmax(0, 1fr); }
  main { padding: 20px 12px 40px; } section { padding: 16px; }
  .bars-row, .bars-axis { grid-template-columns: 90px minmax(0, 1fr) 56px 44px; gap: 8px; }
}
@media print {
  :root { --ground: #fff; --card: #fff; --edge: #d0d5da; --text: #000; --muted: #444; --accent: #1f5fbf; --before: #a9b4c0;
    --good: #1f7a45; --bad: #b3361a; --half: #9aa4af; --code: #fff; --note: #fff; color-scheme: light; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  main { max-width: none; padding: 0; } body { font-size: 11pt; }
  section { border: 0; padding: 0; margin: 18pt 0; } .chart, .sample, .tile, .bars-row, tr { break-inside: avoid; }
  h2 { break-after: avoid; } .two { display: block; } .two > section { height: auto; margin: 18pt 0; } .u-cursor-x { display: none; }
}
`;
