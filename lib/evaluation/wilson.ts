/** Wilson's 95 % interval of a share that is `rate` over `count` votes (Wilson 1927). */
export function wilson(rate: number, count: number): [number, number] {
  if (!(count > 0)) return [0, 1];
  const z = 1.959964;
  const scale = 1 + (z * z) / count;
  const middle = (rate + (z * z) / (2 * count)) / scale;
  const half = (z / scale) * Math.sqrt((rate * (1 - rate)) / count + (z * z) / (4 * count * count));
  return [Math.max(0, middle - half), Math.min(1, middle + half)];
}

/**
 * Orders the worst first: by the most that a share may be, so that a voter who was missed once in one vote does not stand
 * before one who was missed in seven of ten. Without an accuracy: last.
 */
export function byWorst(a: { accuracy?: unknown; rows?: unknown }, b: { accuracy?: unknown; rows?: unknown }): number {
  const most = ({ accuracy, rows }: typeof a) =>
    typeof accuracy === 'number' ? wilson(accuracy, Number(rows ?? 0))[1] : Number.POSITIVE_INFINITY;
  const [one, other] = [most(a), most(b)];
  return one === other ? 0 : one - other;
}
