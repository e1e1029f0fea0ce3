// Worker threads that each use a device and end, one after another: what one held is free for the next. For the emulated library,
// whose memory is limited here to what a few workers would take. usage: node test/cuda-workers.mjs
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { isMainThread, Worker, workerData } from 'node:worker_threads';

const workers = 12;
const fixture = fileURLToPath(new URL('fixtures/parity-qwen2', import.meta.url));

if (isMainThread) {
  process.env.PLURALIGN_EMULATED_MEMORY = String(2 << 20);
  let ended = 0;
  for (let i = 0; i < workers; i++)
    await new Promise((resolve, reject) => {
      const worker = new Worker(fileURLToPath(import.meta.url), { workerData: i % 2 === 1 });
      worker.once('message', () => ended++);
      worker.once('error', reject);
      worker.once('exit', resolve);
    });
  console.log(`${ended === workers ? 'ok  ' : 'FAIL'} ${ended} of ${workers} workers had the device`);
  process.exitCode = ended === workers ? 0 : 1;
} else {
  const { parentPort } = await import('node:worker_threads');
  const { Bank, generateRequests, Model } = await import('../dist/index.js');
  const model = await Model.load(join(fixture, 'model'), { dtype: 'float32', device: 'cuda' });
  const bank = await Bank.fromPeft(model.shape, [{ name: 'adapter', dir: join(fixture, 'adapter') }]);
  const prompt = Int32Array.from({ length: 100 }, (_, i) => 3 + (i % 50));
  await generateRequests(model, bank, [{ prompt, policy: 0, maxNewTokens: 2 }], { text: 'none', memory: 1 << 20 });
  // Every other one leaves its model and bank to the end of the thread.
  if (workerData) model.dispose();
  parentPort.postMessage('done');
}
