/** A number for people: four significant digits, thousands apart, a true minus sign; '–' for none. */
export function formatValue(value: unknown): string {
  if (typeof value === 'boolean') return value ? 'yes' : 'no';
  if (typeof value !== 'number' || !Number.isFinite(value)) return value == null ? '–' : String(value);
  const size = Math.abs(value);
  let text: string;
  if (Number.isInteger(value) && size < 1e15) text = size.toLocaleString('en-US');
  else if (size !== 0 && (size < 1e-3 || size >= 1e6))
    text = size.toExponential(2).replace('e-', 'e−').replace('e+', 'e');
  else text = size >= 1000 ? Math.round(size).toLocaleString('en-US') : size.toPrecision(4);
  return value < 0 ? `−${text}` : text;
}

export function formatPercent(value: unknown): string {
  return typeof value === 'number' && Number.isFinite(value) ? `${(100 * value).toFixed(1)} %` : '–';
}

export function formatSigned(value: number, format: (value: number) => string): string {
  if (!Number.isFinite(value)) return '–';
  return value > 0 ? `+${format(value)}` : format(value).replace('-', '−');
}

export function formatDuration(seconds: unknown): string {
  if (typeof seconds !== 'number' || !Number.isFinite(seconds)) return '–';
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min ${Math.floor(seconds % 60)} s`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

/** Metrics that are shares, shown in percent and drawn from 0 to 1. */
export function isShare(name: string): boolean {
  return /accurac|win_?rate/.test(name);
}

export function formatMetric(name: string, value: unknown): string {
  return isShare(name) ? formatPercent(value) : formatValue(value);
}
