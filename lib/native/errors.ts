/**
 * Every failure a caller can act on. `code` is stable:
 * `BAD_ARGUMENT`, `BAD_CONFIG`, `BAD_DATA`, `BAD_FILE`, `BAD_SHAPE`, `NOT_FOUND`, `IO`, `UNSUPPORTED`, `NON_FINITE`,
 * `OUT_OF_MEMORY`, `DEVICE_LOST`, `ABORTED`, `DISPOSED`, `BUSY`, `NO_BINARY`, `INTERNAL`.
 */
export class PluralignError extends Error {
  readonly code: string;

  constructor(code: string, message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = 'PluralignError';
    this.code = code;
  }
}

/** Whether work ended because it was asked to. */
export function isAborted(error: unknown): boolean {
  return (error as { code?: unknown } | null)?.code === 'ABORTED';
}

const usageCodes = new Set([
  'BAD_ARGUMENT',
  'BAD_CONFIG',
  'BAD_DATA',
  'BAD_FILE',
  'BAD_SHAPE',
  'NOT_FOUND',
  'UNSUPPORTED',
  'BUSY',
]);

/** The process exit status for an error: 2 for bad usage, configuration or data, 1 for anything else. */
export function exitCode(error: unknown): 1 | 2 {
  const code = (error as { code?: unknown } | null)?.code;
  return typeof code === 'string' && usageCodes.has(code) ? 2 : 1;
}
