/** The table of pessimism.mjs: z and kind chosen on the even seeds, what they change measured on the odd ones. */
import { pairedBootstrap } from '../../dist/index.js';
import { counts } from './choices.mjs';

const fixed = (v, digits = 2) => v.toFixed(digits).replace('-', '−');
const mean = (v) => v.reduce((a, b) => a + b, 0) / v.length;
const interval = (by) => {
  const { mean: middle, low, high } = pairedBootstrap(by);
  return `${middle > 0 ? '+' : ''}${fixed(middle)} [${fixed(low)}, ${fixed(high)}]`;
};

/** By seed, what f says of each voter with so many votes. */
const over = (runs, setting, votes, f) =>
  runs.map((run) => run[setting].flatMap((entry) => (entry.votes === votes ? [f(entry)] : [])));
const changeBy = (name) => (entry) => entry.best[name] - entry.best.plain;

/** Of all rewards to choose by, the one that is best on some seeds, and its change on others. */
function chosen(setting, votes, [some, others]) {
  const names = Object.keys(some[0][setting][0].best).filter((name) => name !== 'oracle');
  const worth = (name) => mean(over(some, setting, votes, changeBy(name)).flat());
  const best = names.reduce((a, b) => (worth(b) > worth(a) ? b : a));
  return best === 'plain' ? 'plain' : `${best} ${interval(over(others, setting, votes, changeBy(best)))}`;
}

export function tableOf(settings, runs) {
  const halves = [0, 1].map((odd) => runs.filter((_, seed) => seed % 2 === odd));
  const shown = counts.filter((votes) => [60, 12, 3, 1].includes(votes));
  const lines = [
    `${runs.length} seeds. z chosen on half of them, its change of the true reward [95 %] on the others; plain: no z is better`,
    `${''.padEnd(20)}${shown.map((votes) => `${votes} ${votes > 1 ? 'votes' : 'vote'} each`.padEnd(32)).join('')}`,
  ];
  let title = '';
  for (const [s, { truth, pairing, fit }] of settings.entries()) {
    const now = `true rewards ${truth}, pairs ${pairing}`;
    if (now !== title) lines.push('', now);
    title = now;
    lines.push(`  ${fit.padEnd(18)}${shown.map((votes) => chosen(s, votes, halves).padEnd(32)).join('')}`);
  }
  lines.push(
    '',
    'all seeds: short of the oracle’s choice by the reward as learnt; change by one deviation off each answer, z 1;',
  );
  lines.push('voters whose choice is worse than the base’s mean, as learnt and at z 1');
  lines.push(`${''.padEnd(20)}${'60 votes: short, z 1'.padEnd(32)}${'3 votes: short, z 1'.padEnd(32)}worse off`);
  for (const [s, { truth, pairing, fit }] of settings.entries()) {
    const now = `true rewards ${truth}, pairs ${pairing}`;
    if (now !== title) lines.push('', now);
    title = now;
    const cells = [60, 3].map((votes) => {
      const short = mean(over(runs, s, votes, ({ best }) => best.oracle - best.plain).flat());
      return `${fixed(short).padEnd(8)}${interval(over(runs, s, votes, changeBy('bound 1'))).padEnd(24)}`;
    });
    const worse = (name) => {
      const of = over(runs, s, 3, ({ best, base }) => (best[name] < base ? 100 : 0));
      return `${fixed(mean(of.flat()), 0)} %`;
    };
    lines.push(`  ${fit.padEnd(18)}${cells.join('')}${worse('plain')}, ${worse('bound 1')}`);
  }
  return lines;
}
