import { type MergeOptions, type MergeReport, mergeExperts } from '../merge/index.js';
import { PluralignError } from '../native/errors.js';
import { progress } from '../training/progress.js';
import { type Stop, stopOf } from '../training/signals.js';

/** `pluralign merge`: one expert from several, with a progress bar. Throws what `mergeExperts` throws, `ABORTED` when stopped. */
export async function mergeCommand(
  options: Omit<MergeOptions, 'signal' | 'onProgress'> & { stop?: Stop },
): Promise<MergeReport> {
  const { signal } = stopOf(options.stop);
  let bar: ReturnType<typeof progress> | undefined;
  try {
    return await mergeExperts({
      ...options,
      signal,
      onProgress: (done, total) => {
        bar ??= progress(total, 'merge');
        bar.update(done);
      },
    });
  } catch (error) {
    if (signal.aborted)
      throw new PluralignError('ABORTED', 'the merge was stopped; nothing usable was written', { cause: error });
    throw error;
  } finally {
    bar?.stop();
  }
}
