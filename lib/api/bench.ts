import { availableParallelism } from 'node:os';
import { benchCurves } from '../bench/curves.js';
import { benchOps } from '../bench/ops.js';
import { type BenchOptions, type BenchRecord, digits } from '../bench/session.js';
import { benchTrain } from '../bench/train.js';
import { chooseDevice, type DeviceName } from '../native/device.js';
import { PluralignError } from '../native/errors.js';

export interface BenchCall extends Omit<BenchOptions, 'threads'> {
  device: DeviceName;
  threads: number | 'auto';
}

/**
 * `pluralign bench`: `ops` times operators, `train` times scoring and training. Records are flat; progress goes to stderr.
 * Once `stop` is raised the results are those that there are. Throws `UNSUPPORTED` for operators on a GPU and where it cannot
 * be had, `ABORTED` where it was stopped with no result.
 */
export async function bench(
  subject: 'ops' | 'train',
  options: BenchCall,
): Promise<{ subject: 'ops' | 'train'; results: BenchRecord[] }> {
  if (subject === 'ops' && options.device.startsWith('cuda'))
    throw new PluralignError('UNSUPPORTED', 'bench ops times the CPU only; on a GPU: bench train');
  const chosen = await chooseDevice(options.device);
  const threads = options.threads === 'auto' ? availableParallelism() : options.threads;
  const start = performance.now();
  const run = subject === 'ops' ? benchOps : options.curves ? benchCurves : benchTrain;
  const results = await run({ ...options, threads, chosen });
  process.stderr.write(
    `bench ${subject}: ${results.length} results in ${digits((performance.now() - start) / 1e3, 3)} s\n`,
  );
  return { subject, results };
}
