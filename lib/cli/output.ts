import { exitCode, PluralignError } from '../native/errors.js';
import { printable } from './format.js';
import { ExitStatus } from './shared.js';

function plain(_key: string, value: unknown): unknown {
  if (ArrayBuffer.isView(value) && !(value instanceof DataView))
    return Array.from(value as unknown as Iterable<unknown>);
  if (value instanceof Map) return Object.fromEntries(value);
  return typeof value === 'bigint' ? Number(value) : value;
}

/** Writes a command's result to stdout: one JSON object with `--json`, else what `human` makes of it. */
export function emit<T extends object>(options: { json?: boolean }, result: T, human: (result: T) => string): void {
  process.stdout.write(`${options.json ? JSON.stringify(result, plain) : printable(human(result))}\n`);
}

/** With `--json`, stdout is for the result alone: a library that logs goes to stderr. */
export async function withQuietStdout<T>(json: boolean | undefined, work: () => Promise<T>): Promise<T> {
  if (!json) return work();
  const { log, info, debug } = console;
  console.log = console.info = console.debug = console.error;
  try {
    return await work();
  } finally {
    Object.assign(console, { log, info, debug });
  }
}

/** Prints an error to stderr as `error: …` and returns the exit status that goes with it. */
export function reportError(error: unknown): number {
  if (error instanceof ExitStatus) return error.status;
  const debug = process.env.PLURALIGN_DEBUG === '1';
  const code = (error as { code?: unknown } | null)?.code;
  let message = error instanceof Error ? error.message : String(error);
  if (debug && error instanceof Error) {
    message = error.stack ?? message;
    for (let cause = error.cause; cause; cause = (cause as Error).cause) {
      message += `\ncaused by: ${(cause as Error).stack ?? String(cause)}`;
    }
  } else if (!(error instanceof PluralignError) && typeof code !== 'string') {
    message = `${message || 'unknown'} (unexpected; PLURALIGN_DEBUG=1 shows where)`;
  }
  process.stderr.write(`error: ${printable(message)}\n`);
  return exitCode(error);
}

/** A reader that goes away (`| head`) ends the program quietly; a lost terminal does not stop a run. */
export function quietBrokenPipes(): void {
  process.stdout.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code === 'EPIPE') process.exit(process.exitCode ?? 0);
    process.stderr.write(`error: stdout: ${error.message}\n`, () => process.exit(1));
  });
  process.stderr.on('error', () => {});
}
