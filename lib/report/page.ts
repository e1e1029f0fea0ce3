import { createHash } from 'node:crypto';
import { basename } from 'node:path';
import { aggregationSection } from './aggregation.js';
import { annotatorSection } from './annotators.js';
import { type Chart, makeCharts } from './charts.js';
import { clientScript } from './client.js';
import { html, Markup, scriptJson } from './html.js';
import { mapSection, reliabilitySection } from './map.js';
import type { RunData } from './read.js';
import {
  configSection,
  dataSection,
  groupSections,
  metricsSection,
  samplesSection,
  tiles,
  triedSection,
} from './sections.js';
import { soupsSections } from './soups.js';
import { style } from './style.js';
import { typesSection } from './types.js';
import { voterSection } from './voters.js';

/** uPlot's files: script, style sheet and licence. */
export interface ChartLibrary {
  script: string;
  style: string;
  licence: string;
}

const digest = (text: string) => `'sha256-${createHash('sha256').update(text).digest('base64')}'`;

function chartGrid(charts: Chart[], all: Chart[]): Markup {
  const place = (chart: Chart) => {
    const every = chart.stride > 1 && html`<span class="muted"> · 1 in ${chart.stride} points</span>`;
    return html`<div class="chart"><h3>${chart.title}${every}</h3><div id="chart-${all.push(chart) - 1}"></div></div>`;
  };
  return html`<div class="charts">${charts.map(place)}</div>`;
}

/**
 * The whole page. Its policy lets no request out and runs only the two scripts it was written with, so that a name in
 * the data could do nothing even if it got past the escaping.
 */
export function renderPage(run: RunData, library: ChartLibrary, version: string): string {
  const { summary } = run;
  const charts = makeCharts(run.metrics);
  const all: Chart[] = [];
  const name = basename(run.dir);
  const smoothed = charts.train.some((chart) => chart.series.some((series) => series.faint));
  const training =
    charts.train.length > 0
      ? html`<p class="caption">${smoothed && 'Faint lines are the logged values, strong ones their moving mean. '}The numbers
under a chart are those at the pointer, else the last ones.</p>${chartGrid(charts.train, all)}`
      : html`<p class="muted">${run.metrics.length === 0 ? 'No logged training steps.' : 'Logged once; a line would need two points.'}</p>`;
  const evaluated = run.metrics.some((row) => Object.keys(row).some((key) => key.startsWith('eval_')));
  const evaluation =
    charts.eval.length > 0
      ? html`<section><h2>Evaluation</h2>${chartGrid(charts.eval, all)}</section>`
      : !evaluated &&
        html`<section><h2>Evaluation</h2><p class="muted">No evaluation rows were logged during training.</p></section>`;
  const other =
    charts.other.length > 0 &&
    html`<section><details><summary>Other logged metrics (${charts.other.length})</summary>
${chartGrid(charts.other, all)}</details></section>`;
  const types = typesSection(run, (some) => chartGrid(some, all));
  // Types have the section of their own.
  const others = types ? { ...summary?.eval, types: undefined } : summary?.eval;
  const body = html`<main><header><h1>${name}</h1><p class="path">${run.dir}</p>
${run.notes.map((note) => html`<p class="note">${note}</p>`)}</header>${tiles(run)}
${run.soups ? '' : html`<section><h2>Training</h2>${training}</section>${evaluation}`}
${types}
${annotatorSection(summary?.eval, summary?.eval_before)}${voterSection(summary?.eval, summary?.eval_generic, run.voters?.kind === 'items' ? 'reward' : 'adapter')}
${mapSection(run.voters, summary?.eval)}${reliabilitySection(summary?.eval)}
${groupSections(others, summary?.eval_before)}
${aggregationSection(run.aggregation)}${soupsSections(run.soups)}${metricsSection(summary)}${triedSection(summary)}${samplesSection(summary)}
<div class="two">${dataSection(summary)}${configSection(run.config)}</div>${other}
<footer>Written by pluralign ${version}. Charts: uPlot (MIT licence, in the page’s source).</footer></main>`;
  const script = `/*\n${library.licence.trim().replaceAll('*/', '* /')}\n*/\n${library.script}`;
  if (/<\/script|<!--/i.test(script + clientScript)) throw new Error('a script of the page would end its own element');
  const policy =
    `default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; ` +
    `script-src ${digest(script)} ${digest(clientScript)}`;
  const page = html`<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="${policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>${name} · pluralign</title>
<style>${new Markup(library.style)}</style><style>${new Markup(style)}</style></head>
<body>${body}
<script type="application/json" id="charts">${scriptJson(all)}</script>
<script>${new Markup(script)}</script><script>${new Markup(clientScript)}</script>
</body></html>
`;
  return page.text;
}
