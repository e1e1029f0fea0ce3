// The text the demo's model is trained on: stories of the grammar in lib/demo.
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { tellStories } from '../../dist/demo/grammar.js';

const seed = 1;
const training = 40_000;
const held = 200;

const tell = (count, from) => tellStories(count, from).map(({ beginning, ending }) => beginning + ending);

/** Every training story, as text. */
export function corpus() {
  return tell(training, seed);
}

/** Writes train.jsonl and eval.jsonl. */
export function writeRows(folder) {
  mkdirSync(folder, { recursive: true });
  const rows = (texts) => texts.map((text) => `${JSON.stringify({ text })}\n`).join('');
  writeFileSync(join(folder, 'train.jsonl'), rows(corpus()));
  writeFileSync(join(folder, 'eval.jsonl'), rows(tell(held, seed + 1)));
}
