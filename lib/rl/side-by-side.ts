import { Bank } from '../adapters/bank.js';
import { type EngineOptions, type Generated, generate } from '../generation/engine.js';
import type { SequenceRequest } from '../generation/request.js';
import type { Model } from '../model/model.js';
import { PluralignError } from '../native/errors.js';

/** What runs of one process have in common: the base, and who samples for them. */
export interface Company {
  readonly model: Model;
  readonly generate: typeof generate;
}

interface Asked {
  bank: Bank | null;
  requests: readonly SequenceRequest[];
  options: EngineOptions;
  answer: (answers: Generated[]) => void;
  refuse: (error: unknown) => void;
}

/**
 * Runs that train policies over one base, in turns: a run goes on alone until it asks for samples; when all have asked, one
 * generation answers them, each sequence under its own run's adapter. What a sequence says does not depend on the others, and
 * nothing else is shared but frozen weights, so every run comes to the bits that it comes to alone. The base is held once,
 * activations are those of one run; a run adds its adapter three times over (gradient and AdamW's moments) and one copy.
 */
export class SideBySide implements Company {
  #asked: Asked[] = [];
  #turnOver: () => void = () => {};
  #failed = false;
  #joint: { banks: Bank[]; bank: Bank } | null = null;

  constructor(readonly model: Model) {}

  /** All results; where one fails, the others stop at their next samples as if asked to, and the first error is thrown. */
  async all<T>(runs: readonly ((company: Company) => Promise<T>)[]): Promise<T[]> {
    const results: T[] = [];
    const errors: unknown[] = [];
    let left = runs.length;
    let turns = runs.map((run, i) => () => {
      const ended = (store: () => void) => {
        store();
        left--;
        this.#turnOver();
      };
      run(this).then(
        (result) =>
          ended(() => {
            results[i] = result;
          }),
        (error) =>
          ended(() => {
            errors.push(error);
            this.#failed = true;
          }),
      );
    });
    while (left > 0) {
      for (const turn of turns) {
        const over = new Promise<void>((resolve) => {
          this.#turnOver = resolve;
        });
        turn();
        await over;
      }
      const asked = this.#asked;
      this.#asked = [];
      turns = await this.#answer(asked);
    }
    this.#joint?.bank.dispose();
    this.#joint = null;
    if (errors.length > 0) throw errors[0];
    return results;
  }

  readonly generate: Company['generate'] = (model, bank, requests, options = {}) => {
    if (model !== this.model) return generate(model, bank, requests, options);
    return new Promise((answer, refuse) => {
      this.#asked.push({ bank, requests, options, answer, refuse });
      this.#turnOver();
    });
  };

  /** Samples for all who asked at once; what gives each its answer. */
  async #answer(asked: readonly Asked[]): Promise<(() => void)[]> {
    const refused = (error: unknown) =>
      asked.map(
        ({ refuse }) =>
          () =>
            refuse(error),
      );
    if (asked.length === 0) return [];
    if (this.#failed) return refused(new PluralignError('ABORTED', 'a run beside this one failed'));
    try {
      const banks = [...new Set(asked.flatMap(({ bank }) => bank ?? []))];
      const bank = banks.length > 1 ? this.#jointly(banks) : (banks[0] ?? null);
      const requests = asked.flatMap((one) =>
        one.requests.map((request) =>
          banks.length > 1 && one.bank ? { ...request, policy: banks.indexOf(one.bank) } : request,
        ),
      );
      const said = await generate(this.model, bank, requests, asked[0].options);
      let at = 0;
      return asked.map((one) => {
        const own = said.slice(at, at + one.requests.length);
        at += one.requests.length;
        return () => one.answer(own);
      });
    } catch (error) {
      return refused(error);
    }
  }

  /** One bank with the adapter of each of some, as they stand now. */
  #jointly(banks: Bank[]): Bank {
    const { model } = this;
    const same = this.#joint?.banks.length === banks.length && this.#joint.banks.every((bank, i) => bank === banks[i]);
    if (!same) {
      this.#joint?.bank.dispose();
      const { config } = banks[0].adapters[0];
      const names = banks.map((_, i) => `run ${i}`);
      this.#joint = { banks, bank: Bank.create(model.shape, config!, names, { seed: 0, rewardHead: false }) };
    }
    const { bank } = this.#joint!;
    const size = banks[0].parameters.length;
    if (banks.some(({ adapters, parameters }) => adapters.length > 1 || parameters.length !== size))
      throw new PluralignError('BAD_ARGUMENT', 'runs side by side train one adapter each, all of one shape');
    // Factors lie adapter by adapter, each adapter's in the order that it has them in alone.
    banks.forEach(({ parameters }, i) => {
      bank.parameters.set(parameters, i * size);
    });
    return bank;
  }
}
