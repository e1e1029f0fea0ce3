import cliProgress from 'cli-progress';

/** What stands behind the bar. `tokens` is the count since the start; the rest are shown as they are. */
export interface ProgressInfo {
  tokens?: number;
  loss?: number;
  [name: string]: number | string | undefined;
}

export interface Progress {
  update(done: number, info?: ProgressInfo): void;
  /** Work that turns out to have been done before this process began: left out of the estimate. */
  skip(work: number): void;
  /** Ends the bar. Call it on failure too. */
  stop(): void;
}

export interface ProgressOptions {
  quiet?: boolean;
  /** Work done before this process began (a resumed run): left out of the estimate. */
  done?: number;
  /** How far it is, in words; default: `done/total`. */
  at?: () => string;
  /** Milliseconds; for tests. */
  now?: () => number;
  stream?: NodeJS.WriteStream;
}

/** Work shorter than this shows nothing. */
const quietMs = 2000;
const lineMs = 10_000;

/** The bars of a terminal, one under the other, for as long as one is open. */
interface Terminal {
  bars: cliProgress.MultiBar;
  open: number;
}
const terminals = new Map<NodeJS.WriteStream, Terminal>();

/** The last bar stays where it stands; one that ends among others leaves them its place and a line above them. */
const close = (stream: NodeJS.WriteStream, bar: cliProgress.SingleBar, last: string) => {
  const terminal = terminals.get(stream);
  if (terminal === undefined) return;
  if (--terminal.open > 0) {
    terminal.bars.log(last);
    terminal.bars.remove(bar);
    return;
  }
  terminals.delete(stream);
  // stop() would drop notes that have not been drawn.
  terminal.bars.update();
  terminal.bars.stop();
};

const opened = (stream: NodeJS.WriteStream): cliProgress.MultiBar => {
  let terminal = terminals.get(stream);
  if (terminal === undefined) {
    const bars = new cliProgress.MultiBar({
      format: '{label} {bar} {at} | {rest}{info}',
      barCompleteChar: '█',
      barIncompleteChar: '░',
      barsize: 24,
      stream,
      fps: 5,
      // What stands above a bar moves it down: it is drawn again there though it says the same.
      forceRedraw: true,
      // Signals belong to the program around it.
      gracefulExit: false,
    });
    terminal = { bars, open: 0 };
    terminals.set(stream, terminal);
  }
  ++terminal.open;
  return terminal.bars;
};

/** A line on stderr, above the bars where some are being drawn. */
export function say(text: string, stream: NodeJS.WriteStream = process.stderr): void {
  const terminal = terminals.get(stream);
  if (terminal) terminal.bars.log(`${text}\n`);
  else stream.write(`${text}\n`);
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
  const { quiet = false, now = () => performance.now(), stream = process.stderr } = options;
  let before = options.done ?? 0;
  const started = now();
  let lastLine = started;
  let bar: cliProgress.SingleBar | undefined;
  let shown = false;
  let stopped = false;
  let state = { done: before, info: {} as ProgressInfo };

  const seconds = () => (now() - started) / 1000;
  const at = () => options.at?.() ?? `${state.done}/${total}`;
  const eta = () => {
    const share = state.done - before;
    return share > 0 ? formatDuration((seconds() / share) * (total - state.done)) : '?';
  };
  const text = () => {
    const percent = total > 0 ? ` (${Math.floor((100 * state.done) / total)} %)` : '';
    const rest = state.done < total ? `${eta()} left` : `took ${formatDuration(seconds())}`;
    const info = describe(state.info, seconds());
    return `${label}: ${at()}${percent}, ${rest}${info ? `, ${info}` : ''}\n`;
  };
  const line = () => {
    stream.write(text());
    lastLine = now();
    shown = true;
  };
  const draw = () => {
    const info = describe(state.info, seconds());
    const rest = state.done < total ? `${eta()} left` : `took ${formatDuration(seconds())}`;
    const payload = { label, rest, at: at(), info: info ? ` | ${info}` : '' };
    if (bar === undefined) {
      const bars = opened(stream);
      bar = bars.create(total, state.done, payload);
      bars.update();
      // Drawing turns off line wrapping, which a process that exits meanwhile must turn on again.
      process.once('exit', stop);
    } else bar.update(state.done, payload);
  };

  const stop = () => {
    if (stopped) return;
    stopped = true;
    if (bar !== undefined) {
      process.removeListener('exit', stop);
      draw();
      close(stream, bar, text());
    } else if (!quiet && !stream.isTTY && (shown || now() - started >= quietMs)) line();
  };

  return {
    update(done, info = {}) {
      state = { done, info };
      if (quiet || stopped || now() - started < quietMs) return;
      if (stream.isTTY) draw();
      // The last line is stop's.
      else if (done !== total && now() - lastLine >= lineMs) line();
    },
    skip(work) {
      before += work;
      state = { ...state, done: state.done + work };
    },
    stop,
  };
}
