// Remakes assets/demo-model: writes the stories, trains the tokenizer, trains the model, and stores it in bf16.
//   npm run build && node examples/demo-model/make.mjs
// Takes the settings of pretrain.yaml; --set key=value changes one, --output DIR writes elsewhere.
import { copyFileSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { loadConfig } from '../../dist/config/index.js';
import { readSafetensors, safetensorsInfo, writeSafetensors } from '../../dist/model/safetensors.js';
import { train } from '../../dist/training/train.js';
import { writeRows } from './stories.mjs';
import { writeTokenizer } from './train-tokenizer.mjs';

const here = fileURLToPath(new URL('.', import.meta.url));
const { values } = parseArgs({
  options: {
    set: { type: 'string', multiple: true, default: [] },
    output: { type: 'string', default: join(here, '../../assets/demo-model') },
  },
});

const data = join(here, 'runs/data');
writeRows(data);
writeTokenizer(data);

const config = loadConfig(join(here, 'pretrain.yaml'), values.set);
rmSync(config.output, { recursive: true, force: true });
const { paths, eval: evaluation } = await train(config);

mkdirSync(values.output, { recursive: true });
const weights = join(paths.model, 'model.safetensors');
const shapes = new Map(safetensorsInfo(weights).tensors.map(({ name, shape }) => [name, shape]));
const { metadata, tensors } = readSafetensors(weights);
const halved = [...tensors].map(([name, { data }]) => ({ name, shape: shapes.get(name), data, dtype: 'BF16' }));
await writeSafetensors(join(values.output, 'model.safetensors'), halved, metadata);
const model = JSON.parse(readFileSync(join(paths.model, 'config.json'), 'utf8'));
writeFileSync(
  join(values.output, 'config.json'),
  `${JSON.stringify({ ...model, dtype: 'bfloat16', torch_dtype: 'bfloat16' }, null, 2)}\n`,
);
for (const name of ['tokenizer.json', 'tokenizer_config.json'])
  copyFileSync(join(data, name), join(values.output, name));
process.stderr.write(`wrote ${values.output}; held-out loss ${evaluation.overall.loss.toFixed(4)} nats a token\n`);
