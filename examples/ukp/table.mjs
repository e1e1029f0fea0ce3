// The table of README.md from finished runs.   node examples/ukp/table.mjs RUN…
import { readFileSync } from 'node:fs';
import { basename, join } from 'node:path';

const least = 50;
const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;

for (const run of process.argv.slice(2)) {
  const summary = JSON.parse(readFileSync(join(run, 'summary.json'), 'utf8'));
  for (const [when, evaluation] of [
    ['before', summary.eval_before],
    ['after', summary.eval],
  ]) {
    const { rows, accuracy, margin, log_likelihood } = evaluation.overall;
    const often = Object.values(evaluation.annotators).filter((a) => a.rows >= least);
    const accuracies = often.map((a) => a.accuracy);
    console.log(
      `${basename(run)} ${when}: ${rows} rows, accuracy ${accuracy.toFixed(3)}, margin ${margin.toFixed(3)}, ` +
        `log-likelihood ${log_likelihood.toFixed(3)}; ${often.length} annotators with ${least} votes or more: accuracy ` +
        `${mean(accuracies).toFixed(3)} (${Math.min(...accuracies).toFixed(2)} to ${Math.max(...accuracies).toFixed(2)}), ` +
        `margin ${mean(often.map((a) => a.margin)).toFixed(3)}`,
    );
  }
}
