// Writes rows of many annotators with one vote each: node examples/p-share-lora/million.mjs FOLDER [annotators]
import { createWriteStream } from 'node:fs';
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { finished } from 'node:stream/promises';
import { generator } from './planted.mjs';

const [folder, count = '1000000'] = process.argv.slice(2);
if (!folder || !(Number(count) > 0)) {
  console.error('usage: node examples/p-share-lora/million.mjs FOLDER [annotators]');
  process.exit(2);
}
const [items, d] = [1000, 32];
const { uniform, below } = generator(7);
const table = Array.from({ length: items }, () =>
  Array.from({ length: d }, () => uniform() + uniform() + uniform() - 1.5),
);
await mkdir(folder, { recursive: true });
const lines = table.map((features, i) => `${JSON.stringify({ id: `i${i}`, features })}\n`);
await writeFile(join(folder, 'items.jsonl'), lines.join(''));
const rows = createWriteStream(join(folder, 'rows.jsonl'));
let text = '';
for (let u = 0; u < Number(count); u++) {
  const [a, b] = [below(items), below(items)];
  const first = uniform() < 1 / (1 + Math.exp(3 * (table[b][0] - table[a][0])));
  const [chosen, rejected] = first ? [a, b] : [b, a];
  text += `{"chosen":"i${chosen}","rejected":"i${rejected}","annotator":"voter-${u}"}\n`;
  if (text.length < 1e6) continue;
  rows.write(text);
  text = '';
}
rows.end(text);
await finished(rows);
const config = [
  'method: reward',
  'model: features',
  'data: { train: rows.jsonl, items: items.jsonl }',
  'features: { model: low-rank, rank: 4 }',
  'output: run',
];
await writeFile(join(folder, 'config.yaml'), `${config.join('\n')}\n`);
console.log(`/usr/bin/time -v node dist/cli/main.js train ${join(folder, 'config.yaml')}`);
