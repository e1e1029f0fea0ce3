/**
 * `pluralign/kernels`: the operators on typed arrays, without models, files or configuration. Grouped low-rank products
 * forward and backward, matrix products, AdamW, and every preference loss with its gradient.
 *
 * @module
 */
import { addon } from './native/loader.js';

export type { RunOptions } from './kernels/check.js';
export * from './kernels/dense.js';
export * from './kernels/lora.js';
export * from './losses/index.js';
export { PluralignError } from './native/errors.js';

export interface CpuInfo {
  /** Instruction set that the operators run on: `reference`, `generic`, `avx2`, `avx512`, `avx512bf16`, `amx`. PLURALIGN_ISA chooses another. */
  isa: string;
  /** Instruction sets that this processor can run. */
  supported: string[];
  /** Features of the processor that matter here: `avx2`, `fma`, `avx512_bf16`, `amx_bf16`, `neon` … */
  features: string[];
}

/** What the processor has and what is used of it. Throws `NO_BINARY` where there is no addon for this platform. */
export function cpu(): CpuInfo {
  return addon().cpu();
}
