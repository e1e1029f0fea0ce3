/** What stands behind the bar. `tokens` is the count since the start; the rest are shown as they are. */
export interface ProgressInfo {
  tokens?: number;
  loss?: number;
  [name: string]: number | string | undefined;
}

export interface Progress {
  update(done: number, info?: ProgressInfo): void;
  /** Ends the bar. Call it on failure too. */
  stop(): void;
}

export interface ProgressOptions {
  quiet?: boolean;
  /** Work done before this process began (a resumed run): left out of the estimate. */
  done?: number;
  /** Milliseconds; for tests. */
  now?: () => number;
  stream?: NodeJS.WriteStream;
}

/** Work shorter than this shows nothing. */
const quietMs = 2000;
const lineMs = 10_000;
const drawMs = 200;
const barWidth = 24;

/** Bars that stand on a terminal now: what else is said goes above them. */
const bars = new Set<{ stream: NodeJS.WriteStream; draw: () => void }>();

/** A line on stderr, above a bar where one is being drawn. */
export function say(text: string, stream: NodeJS.WriteStream = process.stderr): void {
  const last = [...bars].findLast((bar) => bar.stream === stream);
  stream.write(`${last ? '\r\x1b[2K' : ''}${text}\n`);
  last?.draw();
}

/** Where a run's notes go: to the caller's `onNote`, else to stderr unless it is to be quiet. */
export function noteTo(options: { onNote?: (note: string) => void; quiet?: boolean }): (note: string) => void {
  return options.onNote ?? ((text) => void (options.quiet || say(text)));
}

/** 75 → '1m15s'. */
export function formatDuration(seconds: number): string {
  if (!Number.isFinite(seconds)) return '?';
  const s = Math.max(0, Math.round(seconds));
  if (s < 60) return `${s}s`;
  if (s < 3600) return `${Math.floor(s / 60)}m${String(s % 60).padStart(2, '0')}s`;
  return `${Math.floor(s / 3600)}h${String(Math.floor((s % 3600) / 60)).padStart(2, '0')}m`;
}

function describe(info: ProgressInfo, seconds: number): string {
  const parts: string[] = [];
  for (const [name, value] of Object.entries(info)) {
    if (value === undefined) continue;
    if (name === 'tokens')
      parts.push(`${Math.round(Number(value) / Math.max(seconds, 1e-9)).toLocaleString('en')} tokens/s`);
    else parts.push(`${name} ${typeof value === 'number' ? Number(value.toPrecision(4)) : value}`);
  }
  return parts.join(', ');
}

/**
 * Progress on stderr: a bar with an estimate on a terminal, a plain line about every ten seconds and at the end elsewhere.
 * Nothing at all for work of less than two seconds, or with `quiet`.
 */
export function progress(total: number, label: string, options: ProgressOptions = {}): Progress {
  const { quiet = false, now = () => performance.now(), stream = process.stderr, done: before = 0 } = options;
  const started = now();
  let lastLine = started;
  let lastDraw = Number.NEGATIVE_INFINITY;
  let shown = false;
  let stopped = false;
  let state = { done: before, info: {} as ProgressInfo };

  const seconds = () => (now() - started) / 1000;
  const eta = () => {
    const share = state.done - before;
    return share > 0 ? formatDuration((seconds() / share) * (total - state.done)) : '?';
  };
  const line = () => {
    const percent = total > 0 ? ` (${Math.floor((100 * state.done) / total)} %)` : '';
    const rest = state.done < total ? `${eta()} left` : `took ${formatDuration(seconds())}`;
    const info = describe(state.info, seconds());
    stream.write(`${label}: ${state.done}/${total}${percent}, ${rest}${info ? `, ${info}` : ''}\n`);
    lastLine = now();
    shown = true;
  };
  const draw = () => {
    const filled = total > 0 ? Math.round((barWidth * Math.min(state.done, total)) / total) : barWidth;
    const drawn = `${'█'.repeat(filled)}${'░'.repeat(barWidth - filled)}`;
    const info = describe(state.info, seconds());
    const rest = state.done < total ? `${eta()} left` : `took ${formatDuration(seconds())}`;
    const text = `${label} ${drawn} ${state.done}/${total} | ${rest}${info ? ` | ${info}` : ''}`;
    // A line that wraps could not be drawn over.
    stream.write(`\r${text.slice(0, Math.max(1, (stream.columns || 80) - 1))}\x1b[K`);
    lastDraw = now();
  };

  const bar = { stream, draw };
  const stop = () => {
    if (stopped) return;
    stopped = true;
    if (bars.delete(bar)) {
      process.removeListener('exit', stop);
      draw();
      stream.write('\n');
    } else if (!quiet && !stream.isTTY && (shown || now() - started >= quietMs)) line();
  };

  return {
    update(done, info = {}) {
      state = { done, info };
      if (quiet || stopped || now() - started < quietMs) return;
      if (stream.isTTY) {
        if (!bars.has(bar)) process.once('exit', stop);
        bars.add(bar);
        if (done >= total || now() - lastDraw >= drawMs) draw();
      } else if (done !== total && now() - lastLine >= lineMs) line(); // The last line is stop's.
    },
    stop,
  };
}
