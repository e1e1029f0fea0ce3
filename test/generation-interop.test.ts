// Greedy texts, token for token, as transformers writes them. Needs a Python that has bench/peers/requirements.txt, named in
// PLURALIGN_PYTHON, and TinyStories-656K in ../shared; skipped without.
import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { Random } from '../lib/base/random.js';
import { generate } from '../lib/generation/engine.js';
import { Model } from '../lib/model/model.js';
import { root } from './support/runs.js';

const python = process.env.PLURALIGN_PYTHON;
const folder = join(root, '../shared/models/tinystories-656k');

describe.skipIf(!python || !existsSync(folder))("greedy is transformers' greedy (PLURALIGN_PYTHON, ../shared)", () => {
  it('on 200 random prompts', async () => {
    using model = await Model.load(folder, { dtype: 'float32' });
    const random = new Random(3);
    const { bosId } = model.tokenizer;
    const prompts = Array.from({ length: 200 }, () =>
      Int32Array.from([
        ...(bosId === null ? [] : [bosId]),
        ...Array.from({ length: 1 + random.below(30) }, () => 3 + random.below(2040)),
      ]),
    );
    const mine = await generate(
      model,
      null,
      prompts.map((prompt) => ({ prompt, maxNewTokens: 32 })),
      { text: 'none' },
    );
    const script = join(root, 'bench/peers/hf_generate.py');
    const input = `${JSON.stringify({ prompts: prompts.map((p) => [...p]), new: 32 })}\n`;
    const argv = [script, folder, '--dtype', 'float64', '--greedy', '--threads', '1'];
    const { status, stdout, stderr } = spawnSync(python!, argv, { input, encoding: 'utf8', maxBuffer: 1 << 26 });
    if (status !== 0) throw new Error(stderr);
    const theirs = JSON.parse(stdout.slice(stdout.indexOf('{'))) as { ids: number[][]; gap: number };
    console.log(`smallest gap between the two best logits: ${theirs.gap.toExponential(1)}`);
    expect(mine.map(({ tokens }) => [...tokens])).toEqual(theirs.ids);
  }, 600_000);
});
