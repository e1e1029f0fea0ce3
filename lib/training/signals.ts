/** A runner such as npx passes Ctrl-C on to a child that the terminal has told already: one press, two signals. */
const echoMs = 100;

const numbers = { SIGINT: 2, SIGTERM: 15 } as const;
type StopSignal = keyof typeof numbers;

/** A wish to stop, which training looks at in every step, also while warming up, scoring and evaluating. */
export interface StopRequest {
  /** Aborted by the first signal, or by `request`. */
  readonly signal: AbortSignal;
  /** Nonzero once stopping is wanted; native jobs read it while they run. [1] */
  readonly flag: Int32Array;
  readonly requested: boolean;
  /** 128 + the signal's number, or 0 where no signal came. */
  readonly exitCode: number;
  request(): void;
  /** Takes the handlers away. */
  dispose(): void;
}

/** How a caller stops work: a signal alone, or one with its flag. */
export type Stop = AbortSignal | Pick<StopRequest, 'signal' | 'flag'>;

/** A signal with the flag that native jobs read; without a caller's, one that never comes. */
export function stopOf(given?: Stop): Pick<StopRequest, 'signal' | 'flag'> {
  if (given && !(given instanceof AbortSignal)) return given;
  const signal = given ?? new AbortController().signal;
  const flag = new Int32Array(1);
  const stop = () => void Atomics.store(flag, 0, 1);
  if (signal.aborted) stop();
  else signal.addEventListener('abort', stop, { once: true });
  return { signal, flag };
}

/**
 * Turns SIGINT and SIGTERM into a stop request; a second signal ends the process at once with 128 + its number. For the
 * command line only: a library must not take over its host's signals, so nothing is installed on import.
 */
export function handleStopSignals(onStop?: (signal: StopSignal) => void): StopRequest {
  const controller = new AbortController();
  const flag = new Int32Array(1);
  let exitCode = 0;
  let last = { status: 0, at: 0 };
  const request = () => {
    Atomics.store(flag, 0, 1);
    controller.abort();
  };
  const handler = (signal: NodeJS.Signals) => {
    const status = 128 + numbers[signal as StopSignal];
    const now = performance.now();
    if (status === last.status && now - last.at < echoMs) return;
    last = { status, at: now };
    if (exitCode !== 0) process.exit(status);
    exitCode = status;
    request();
    onStop?.(signal as StopSignal);
  };
  const names = Object.keys(numbers) as StopSignal[];
  for (const name of names) process.on(name, handler);
  return {
    signal: controller.signal,
    flag,
    get requested() {
      return controller.signal.aborted;
    },
    get exitCode() {
      return exitCode;
    },
    request,
    dispose: () => {
      for (const name of names) process.removeListener(name, handler);
    },
  };
}
