import { type MergeOptions, type MergeReport, mergeExperts } from '../merge/index.js';
import { PluralignError } from '../native/errors.js';
import { progress } from '../training/progress.js';
import { type Stop, stopOf } from '../training/signals.js';

/** `pluralign merge`: one expert from several, with a progress bar; `run` adds a run's adapters and its base. Throws what `mergeExperts` throws, `ABORTED` when stopped. */
export async function mergeCommand(
  options: Omit<MergeOptions, 'signal' | 'onProgress'> & { run?: string; stop?: Stop },
): Promise<MergeReport> {
  const { signal } = stopOf(options.stop);
  const { model, experts } = options.run === undefined ? options : await withRun(options.run, options);
  let bar: ReturnType<typeof progress> | undefined;
  try {
    return await mergeExperts({
      ...options,
      model,
      experts,
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

/** The run's base, and its adapters in front of those given. */
async function withRun(run: string, options: Pick<MergeOptions, 'model' | 'experts'>) {
  const { ofRun } = await import('./policies.js');
  const own = await ofRun(run);
  if (own.adapters.length === 0)
    throw new PluralignError(
      'BAD_ARGUMENT',
      `${run} trained all weights: give ${own.model} as --adapter, and its base as --model`,
    );
  return { model: options.model ?? own.model, experts: [...own.adapters, ...options.experts] };
}
