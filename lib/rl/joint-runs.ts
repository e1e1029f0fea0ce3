import { isDeepStrictEqual } from 'node:util';
import { Bank } from '../adapters/bank.js';
import { type EngineOptions, type Generated, generate } from '../generation/engine.js';
import type { SequenceRequest } from '../generation/request.js';
import type { Model } from '../model/model.js';
import { PluralignError } from '../native/errors.js';
import type { SharedBase } from '../training/shared-base.js';

interface Asked {
  run: number;
  bank: Bank | null;
  requests: readonly SequenceRequest[];
  options: EngineOptions;
  answer: (answers: Generated[]) => void;
  refuse: (error: unknown) => void;
}

/** What a run does when its turn comes. */
interface Turn {
  run: number;
  begin: () => void;
}

/**
 * Runs that train policies over one base, in turns: a run goes on alone until it asks for samples; when all have asked, one
 * generation answers them, each sequence under its own run's adapter. What a sequence says does not depend on the others, and
 * nothing else is shared but frozen weights, so every run comes to the bits that it comes to alone. The base is held once,
 * activations are those of one run; for each run there is its adapter five times over: parameters, gradient, AdamW's two
 * moments, and the copy that samples.
 *
 * A generation has the options of the run that asked first, and so its `abort`, which stops the samples of all: runs beside
 * each other are to be stopped together.
 */
export class JointRuns {
  #asked: Asked[] = [];
  /** Runs that have not ended. */
  #going = new Set<number>();
  /** Whose turn it is, and what ends it. */
  #turn: { run: number; over: () => void } | null = null;
  #failed = false;
  #busy = false;
  #joint: { banks: Bank[]; bank: Bank } | null = null;

  constructor(readonly model: Model) {}

  /**
   * All results; where one fails, the others stop at their next samples as if asked to, and the first error is thrown.
   * Throws `BUSY` where runs are under way already; so does the `generate` of a run that waits for samples.
   */
  async all<T>(runs: readonly ((base: SharedBase) => Promise<T>)[]): Promise<T[]> {
    if (this.#busy) throw new PluralignError('BUSY', 'other runs go side by side here already; wait for them');
    this.#busy = true;
    this.#failed = false;
    this.#going = new Set(runs.keys());
    const results: T[] = [];
    const errors: unknown[] = [];
    let turns = runs.map((run, i): Turn => {
      const ended = () => {
        this.#going.delete(i);
        // Samples that it asked for and did not wait for are nobody's.
        this.#asked = this.#asked.filter((one) => one.run !== i);
        this.#yield(i);
      };
      const begin = () =>
        run(this.#baseOf(i)).then(
          (result) => {
            results[i] = result;
            ended();
          },
          (error) => {
            errors.push(error);
            this.#failed = true;
            ended();
          },
        );
      return { run: i, begin };
    });
    try {
      while (this.#going.size > 0) {
        for (const { run, begin } of turns) {
          if (!this.#going.has(run)) continue;
          const over = new Promise<void>((resolve) => {
            this.#turn = { run, over: resolve };
          });
          begin();
          await over;
        }
        const asked = this.#asked;
        this.#asked = [];
        turns = await this.#answer(asked);
      }
    } finally {
      this.#joint?.bank.dispose();
      this.#joint = null;
      this.#busy = false;
    }
    if (errors.length > 0) throw errors[0];
    return results;
  }

  /** Ends the turn of a run, if it has it. */
  #yield(run: number): void {
    if (this.#turn?.run !== run) return;
    const { over } = this.#turn;
    this.#turn = null;
    over();
  }

  #baseOf(run: number): SharedBase {
    let waits = false;
    const say: SharedBase['generate'] = (model, bank, requests, options = {}) => {
      if (model !== this.model) return generate(model, bank, requests, options);
      if (waits) return Promise.reject(new PluralignError('BUSY', 'this run waits for samples; ask one at a time'));
      waits = true;
      return new Promise<Generated[]>((answer, refuse) => {
        this.#asked.push({ run, bank, requests, options, answer, refuse });
        this.#yield(run);
      }).finally(() => {
        waits = false;
      });
    };
    return { model: this.model, generate: say };
  }

  /** Samples for all who asked at once; what gives each its answer. */
  async #answer(asked: readonly Asked[]): Promise<Turn[]> {
    const refused = (error: unknown) => asked.map(({ run, refuse }): Turn => ({ run, begin: () => refuse(error) }));
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
      return asked.map(({ run, requests: own, answer }) => {
        const answers = said.slice(at, at + own.length);
        at += own.length;
        return { run, begin: () => answer(answers) };
      });
    } catch (error) {
      return refused(error);
    }
  }

  /** One bank with the adapter of each of some, as they stand now. */
  #jointly(banks: Bank[]): Bank {
    const same = this.#joint?.banks.length === banks.length && this.#joint.banks.every((bank, i) => bank === banks[i]);
    if (!same) {
      this.#joint?.bank.dispose();
      this.#joint = null;
      this.#joint = { banks, bank: this.#jointBank(banks) };
    }
    const { bank } = this.#joint!;
    const size = banks[0].parameters.length;
    // Factors lie adapter by adapter, each adapter's in the order that it has them in alone.
    banks.forEach(({ parameters }, i) => {
      bank.parameters.set(parameters, i * size);
    });
    return bank;
  }

  /** Room for the adapters of some banks. Throws `BAD_ARGUMENT` where they are not alike in targets, ranks and scales. */
  #jointBank(banks: readonly Bank[]): Bank {
    const [first] = banks;
    const { config, targets } = first.adapters[0];
    const alike = banks.every(
      ({ adapters, parameters }) =>
        adapters.length === 1 &&
        adapters[0].config?.share === 'none' &&
        parameters.length === first.parameters.length &&
        isDeepStrictEqual(adapters[0].targets, targets),
    );
    if (!config || !alike)
      throw new PluralignError(
        'BAD_ARGUMENT',
        'runs side by side train one adapter each, without sharing, and all of the same modules, ranks and scales',
      );
    const names = banks.map((_, i) => `run ${i}`);
    return Bank.create(this.model.shape, config, names, { seed: 0, rewardHead: false });
  }
}
