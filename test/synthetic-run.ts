import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';

/** A number in [0, 1) from a seed that advances by itself; no more random than a picture needs. */
function makeNoise(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 32;
  };
}

export interface SyntheticRun {
  steps?: number;
  annotators?: number;
  evalEvery?: number;
  before?: boolean;
  names?: string[];
}

/** The files of a finished `dpo` run, as `train` writes them. */
export function syntheticRun(options: SyntheticRun = {}): Record<string, string> {
  const { steps = 400, annotators = 12, evalEvery = 50, before = true, names = [] } = options;
  const noise = makeNoise(7);
  const jitter = (size: number) => size * (noise() + noise() - 1);
  const lines: object[] = [];
  for (let step = 1; step <= steps; step++) {
    const learned = 1 - Math.exp((-3 * step) / steps);
    lines.push({
      step,
      epoch: step / steps,
      loss: Math.LN2 - 0.35 * learned + jitter(0.08),
      grad_norm: 0.4 + 2 * Math.exp((-6 * step) / steps) + Math.abs(jitter(0.2)),
      learning_rate: 1e-4 * Math.min(1, step / 20) * (1 - step / steps),
      'rewards/accuracies': Math.round(8 * Math.min(1, Math.max(0, 0.5 + 0.33 * learned + jitter(0.2)))) / 8,
      'rewards/margins': 1.2 * learned + jitter(0.4),
      'rewards/chosen': 0.5 * learned + jitter(0.2),
      'rewards/rejected': -0.7 * learned + jitter(0.2),
      'logps/chosen': -61 + 4 * learned + jitter(3),
      'logps/rejected': -63 - 6 * learned + jitter(3),
      tokens_per_second: 14200 + jitter(900),
    });
    if (step % evalEvery === 0) {
      lines.push({
        step,
        eval_loss: 0.69 - 0.28 * learned,
        eval_accuracy: 0.5 + 0.26 * learned,
        eval_margin: 0.9 * learned,
        eval_log_likelihood: -0.69 + 0.28 * learned,
      });
    }
  }
  const everyone = Array.from({ length: annotators }, (_, i) => names[i] ?? `annotator ${i + 1}`);
  const people = (shift: number) =>
    Object.fromEntries(
      everyone.map((name, i) => {
        const rows = Math.max(1, Math.round(240 / (1 + i / 3)));
        const accuracy = Math.min(1, Math.max(0, 0.5 + shift + jitter(0.25)));
        return [name, { rows, accuracy: Math.round(accuracy * rows) / rows, margin: shift + jitter(0.2) }];
      }),
    );
  const overall = (accuracy: number) => ({
    rows: 1840,
    accuracy,
    log_likelihood: -1.05 * (1 - accuracy) - 0.17,
    margin: 3.1 * (accuracy - 0.49),
    ece: 0.031,
  });
  const summary = {
    method: 'dpo',
    steps,
    seconds: 754.2,
    train: { ...lines.findLast((line) => 'loss' in line), step: steps },
    eval: {
      overall: overall(0.748),
      annotators: people(0.25),
      types: { cautious: { rows: 900, accuracy: 0.77 }, playful: { rows: 940, accuracy: 0.73 } },
    },
    ...(before && { eval_before: { overall: overall(0.503), annotators: people(0.01) } }),
    data: {
      read: 12480,
      used: 12022,
      dropped: { over_length: 381, empty: 2 },
      duplicates: 75,
      annotators,
      train_pairs: 10182,
      eval_pairs: 1840,
    },
    paths: { run: 'runs/example', adapter: 'runs/example/adapter' },
    samples: [
      {
        prompt: 'Once upon a time, a small fox',
        before: ' went to the the park. The park was big. The fox saw a ball and the ball was big and the ball.',
        after:
          ' lived at the edge of a quiet wood. Every morning she counted the birds, and every evening she told them.',
      },
      {
        prompt: [{ role: 'user', content: 'Name a colour.' }],
        before: 'Colour colour.',
        after: 'Green, like moss after rain.',
      },
    ],
  };
  const config = `method: dpo
model: shared/models/tinystories-656k
data:
  train: rows.jsonl
  split: { by: annotator, eval: 0.15, seed: 0 }
  max_length: 1024
adapter: { r: 16, alpha: 32, targets: all-linear, dropout: 0, share: none }
loss: { type: sigmoid, beta: 0.1, reference: base, cache_reference: true }
train:
  epochs: 1
  batch_size: 8
  learning_rate: 1.0e-4
  schedule: linear
  warmup: 0.05
  max_grad_norm: 1.0
  dtype: float32
  seed: 0
output: runs/example
`;
  return {
    'metrics.jsonl': lines.map((line) => `${JSON.stringify(line)}\n`).join(''),
    'summary.json': `${JSON.stringify(summary, null, 2)}\n`,
    'config.yaml': config,
  };
}

export async function writeFiles(dir: string, files: Record<string, string>): Promise<void> {
  await mkdir(dir, { recursive: true });
  for (const [name, text] of Object.entries(files)) await writeFile(join(dir, name), text);
}
