/** A run of layers: the first and the last, from 0. */
export type LayerRun = readonly [number, number];

/**
 * Checks runs of layers that have weights of their own: each goes from one adapted layer to another (or the same), forwards,
 * and none has a layer of another. Layers between that nothing adapts have no weights to be given.
 *
 * @param adapted layers that something adapts
 * @param fail throws, naming the run
 */
export function checkLayerRuns(
  runs: readonly LayerRun[],
  adapted: ReadonlySet<number>,
  fail: (run: LayerRun, message: string) => never,
): void {
  const taken = new Set<number>();
  const last = Math.max(...adapted);
  for (const run of runs) {
    const [from, to] = run;
    if (!(Number.isSafeInteger(from) && Number.isSafeInteger(to) && from >= 0 && from <= to))
      fail(run, 'expected the first and the last of some layers, from 0');
    for (const end of run)
      if (!adapted.has(end))
        fail(run, `no expert adapts layer ${end}; ${adapted.size ? `the last one is ${last}` : 'there are no layers'}`);
    for (let layer = from; layer <= to; layer++) {
      if (taken.has(layer)) fail(run, `layer ${layer} has weights already`);
      taken.add(layer);
    }
  }
}
