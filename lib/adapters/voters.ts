/** Name of the adapter for whoever has none: rows that name nobody, voters never seen. The first in the bank. */
export const genericAdapter = 'default';

/** Name of an annotator's adapter in a bank; no name of an annotator can be the generic adapter's. */
export const voterAdapter = (annotator: string): string => `annotator ${annotator}`;

/** Names of the adapters of a bank for these annotators, the generic one first. */
export const voterAdapters = (annotators: readonly string[]): string[] => [
  genericAdapter,
  ...annotators.map(voterAdapter),
];
