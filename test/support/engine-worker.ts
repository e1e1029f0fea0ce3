// A worker that starts the job that `workerData.job` names, says `started`, and posts what came of it.
import { createHash } from 'node:crypto';
import { parentPort, workerData } from 'node:worker_threads';
import { slowModel } from './engine.js';

const { job, pairs } = workerData as { job: string; pairs?: number };
const { model, bank, p, ones } = await slowModel({ pairs, layers: 8, threads: 2 });
const port = parentPort!;

const score = () => model.score(p, bank, 'logps', { keep: job === 'backward' });
const prompts = Array.from({ length: 40 }, (_, i) => Int32Array.of(1, 2, 3 + i));

if (job === 'churn') {
  // Jobs, results and errors without end: what settles is settling when the worker is terminated.
  port.postMessage('started');
  for (;;) {
    await Promise.allSettled([
      model.generate([Int32Array.of(1)], bank, { maxNewTokens: 1 }),
      model.generate([Int32Array.of(9999)], bank, { maxNewTokens: 1 }),
      model.backward(p, bank, ones),
      model.generate([Int32Array.of(1)], bank, { topP: -1 }),
    ]);
  }
} else if (job === 'backward') {
  await score();
  const done = model.backward(p, bank, ones);
  port.postMessage('started');
  await done;
} else if (job === 'generate') {
  const done = model.generate(prompts, bank, { maxNewTokens: 200 });
  port.postMessage('started');
  await done;
} else {
  const done = score();
  port.postMessage('started');
  const { values } = await done;
  port.postMessage(createHash('sha256').update(values).digest('hex'));
}
