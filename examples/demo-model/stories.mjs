// The text the demo's model is trained on: stories of the grammar in lib/demo. Needs `npm run build` first.
//   node examples/demo-model/stories.mjs OUTPUT_FOLDER      writes train.jsonl and eval.jsonl
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { tellStories } from '../../dist/demo/grammar.js';

const seed = 1;
const training = 40_000;
const held = 200;

const textOf = ({ beginning, ending }) => beginning + ending;

export function corpus() {
  return tellStories(training, seed).map(textOf);
}

if (import.meta.url === pathToFileURL(process.argv[1]).href) {
  const folder = process.argv[2];
  if (!folder) {
    process.stderr.write('usage: node stories.mjs OUTPUT_FOLDER\n');
    process.exit(2);
  }
  mkdirSync(folder, { recursive: true });
  const rows = (texts) => texts.map((text) => `${JSON.stringify({ text })}\n`).join('');
  writeFileSync(join(folder, 'train.jsonl'), rows(corpus()));
  writeFileSync(join(folder, 'eval.jsonl'), rows(tellStories(held, seed + 1).map(textOf)));
}
