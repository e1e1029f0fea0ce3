import type { Bank } from '../../adapters/bank.js';

/** A bank's parameters as training found them, to start from again. */
export class BankStart {
  readonly #parameters: Float32Array;

  constructor(bank: Bank) {
    this.#parameters = bank.parameters.slice();
  }

  /** Parameters as they were; the optimizer has made no step. */
  restore(bank: Bank): void {
    const { factors } = bank.state();
    bank.restore({
      parameters: this.#parameters,
      m: null,
      v: null,
      steps: new Int32Array(bank.steps.length),
      factors,
    });
  }
}

/** Makes an adapter's own factors a copy of another's; the optimizer has made no step on them. Shared ones stay. */
export function copyAdapter(bank: Bank, from: number, to: number): void {
  const { m, v } = bank.state();
  const modules = (adapter: number) => {
    const { modules, head } = bank.adapters[adapter];
    return [...modules.flatMap(({ a, b, core }) => [a, b, core]), head];
  };
  const source = modules(from);
  modules(to).forEach((factor, i) => {
    if (factor === -1 || factor === source[i]) return;
    bank.values(factor).set(bank.values(source[i]));
    const { offset, rows, cols } = bank.factors[factor];
    m?.fill(0, offset, offset + rows * cols);
    v?.fill(0, offset, offset + rows * cols);
    bank.steps[factor] = 0;
  });
}
