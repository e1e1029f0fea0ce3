// Preference losses on arrays, each with the gradient with respect to its scores: `node examples/kernels/losses.mjs`.
import { cpu, packRankings, pairLoss, rankingLoss } from 'pluralign/kernels';

console.log(`kernels run on ${cpu().isa}`);

// Three votes: summed log-probabilities of the chosen and the rejected answer under the policy and the reference. The
// third vote counts half.
const votes = {
  chosen: Float64Array.of(-12.1, -30.4, -8.8),
  rejected: Float64Array.of(-13.0, -29.9, -8.1),
  refChosen: Float64Array.of(-12.5, -30.1, -9.0),
  refRejected: Float64Array.of(-12.6, -30.2, -8.9),
  chosenTokens: Float64Array.of(9, 21, 6),
  rejectedTokens: Float64Array.of(10, 20, 6),
  weights: Float64Array.of(1, 1, 0.5),
};
for (const type of ['sigmoid', 'ipo', 'hinge', 'simpo']) {
  const { loss, dChosen } = pairLoss(votes, { type, beta: 0.1 });
  console.log(
    `${type.padEnd(8)} loss ${loss.toFixed(4)}  d/d chosen ${Array.from(dChosen, (d) => d.toFixed(4)).join(' ')}`,
  );
}

// Two rankings of rewards: a full one of three answers, and the best two of four.
const { loss, dScores } = rankingLoss(
  {
    scores: Float64Array.of(0.3, 1.2, -0.4, 0.9, 0.1, -0.2, 0.5),
    offsets: Int32Array.of(0, 3, 7),
    ...packRankings([
      [1, 0, 2],
      [0, 3],
    ]),
  },
  { type: 'plackett_luce', beta: 1 },
);
console.log(`Plackett–Luce loss ${loss.toFixed(4)}  gradient ${Array.from(dScores, (d) => d.toFixed(3)).join(' ')}`);
