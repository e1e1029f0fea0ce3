import { readFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { writeFileAtomic } from '../base/files.js';
import { type ChartLibrary, renderPage } from './page.js';
import { readRun } from './read.js';

/** uPlot as it is installed; it goes into the page whole, so that the page needs no network. */
async function chartLibrary(): Promise<ChartLibrary> {
  const require = createRequire(import.meta.url);
  const folder = dirname(require.resolve('uplot/package.json'));
  const read = (path: string) => readFile(join(folder, path), 'utf8');
  const [script, style, licence] = await Promise.all([
    read('dist/uPlot.iife.min.js'),
    read('dist/uPlot.min.css'),
    read('LICENSE'),
  ]);
  return { script, style, licence };
}

/**
 * Writes RUN/report.html, one self-contained page of charts and tables, and returns its path. A run that has not
 * finished gets a page of what there is so far. Throws `NOT_FOUND` naming the missing file, `BAD_DATA` naming file and
 * line, `IO` where the page cannot be written.
 */
export async function writeReport(runDir: string): Promise<string> {
  const [run, library, manifest] = await Promise.all([
    readRun(runDir),
    chartLibrary(),
    readFile(new URL('../../package.json', import.meta.url), 'utf8'),
  ]);
  const path = join(run.dir, 'report.html');
  await writeFileAtomic(path, renderPage(run, library, (JSON.parse(manifest) as { version: string }).version));
  return path;
}
