// Three people see the same items and want different things of them. Each person's wish is a low-rank change of one linear
// map; A is shared by all three and B is each one's own. Trains them together on arrays: `node examples/kernels/grouped-lora.mjs`.
import { adamw, groupedLoraBackward, groupedLoraForward, rowSegments } from 'pluralign/kernels';

const [width, out, rank, people, rowsEach, steps] = [12, 6, 2, 3, 40, 300];
let state = 7;
const uniform = () => {
  state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
  return state / 2 ** 31 - 1;
};
const random = (n) => Float32Array.from({ length: n }, uniform);
const perPerson = (make) => Array.from({ length: people }, make);

const rows = people * rowsEach;
const x = random(rows * width);
const layer = { in: width, out, x, scales: perPerson(() => 1) };
const who = rowSegments(Array.from({ length: rows }, (_, row) => Math.floor(row / rowsEach)));
const wish = { a: Array(people).fill(random(rank * width)), b: perPerson(() => random(out * rank)) };
const target = new Float32Array(rows * out);
await groupedLoraForward({ ...layer, ...who, ...wish, y: target });

// One flat buffer of parameters: the shared A, then a B per person (zero at first, as in LoRA).
const parameters = new Float32Array(rank * width + people * out * rank);
parameters.set(random(rank * width));
const gradients = new Float32Array(parameters.length);
const [m, v] = [new Float32Array(parameters.length), new Float32Array(parameters.length)];
const factors = (flat) => ({
  a: Array(people).fill(flat.subarray(0, rank * width)), // the same array: its gradient adds up over people
  b: perPerson((_, i) => flat.subarray(rank * width + i * out * rank, rank * width + (i + 1) * out * rank)),
});
for (let step = 1; step <= steps; step++) {
  const y = new Float32Array(rows * out);
  await groupedLoraForward({ ...layer, ...who, ...factors(parameters), y });
  const dy = y.map((value, i) => (value - target[i]) / rows);
  const loss = dy.reduce((sum, d) => sum + 0.5 * d * d * rows, 0);
  if (step === 1 || step % 100 === 0) console.log(`step ${step}  loss ${loss.toExponential(2)}`);
  gradients.fill(0);
  const { a: da, b: db } = factors(gradients);
  await groupedLoraBackward({ ...layer, ...who, ...factors(parameters), dy, da, db });
  await adamw({ parameters, gradients, m, v, step, learningRate: 0.03 });
}
