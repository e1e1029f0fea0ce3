import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { Config } from '../config/index.js';
import { Model } from '../model/model.js';
import { PluralignError } from '../native/errors.js';
import { progress } from '../training/progress.js';
import { type TrainOptions, train } from '../training/train.js';
import type { DemoPlan } from './settings.js';
import type { DemoOptions } from './types.js';

export interface DemoSettings extends DemoOptions {
  /** Where to write; absent: ./runs/demo, or with a number behind it where that is taken. */
  output?: string;
  /** Parts of the plan to change. */
  plan?: Partial<DemoPlan>;
  /** Nothing on stderr. */
  quiet?: boolean;
}

/** The model that comes with the package: a Llama that this project trained on its own grammar's stories. */
export const demoModel = fileURLToPath(new URL('../../assets/demo-model', import.meta.url));

/** What every part of a demo needs. */
export class Session {
  constructor(
    readonly options: DemoSettings,
    readonly plan: DemoPlan,
    readonly folder: string,
  ) {}

  say(text: string): void {
    if (!this.options.quiet) process.stderr.write(`${text}\n`);
  }

  checkStop(): void {
    if (this.options.stop.requested) throw new PluralignError('ABORTED', 'the demo was stopped');
  }

  async withProgress<T>(total: number, label: string, work: (onProgress: (done: number) => void) => Promise<T>) {
    this.checkStop();
    const bar = progress(total, label, { quiet: this.options.quiet });
    try {
      return await work((done) => bar.update(done));
    } finally {
      bar.stop();
    }
  }

  /** What every training of a demo has in common. */
  get runtime() {
    const { dtype, device, threads } = this.options;
    return { seed: this.plan.seed, dtype, device, threads, save_every: null, log_every: 1 };
  }

  /** Throws `ABORTED` where the demo was stopped meanwhile. */
  async train(what: string, config: Config, rewards?: TrainOptions['rewards']): Promise<void> {
    this.checkStop();
    this.say(`     ${what}`);
    const { stop, quiet } = this.options;
    const summary = await train(config, { stop, quiet, rewards });
    if (!summary.finished) throw new PluralignError('ABORTED', 'the demo was stopped');
  }

  path(name: string): string {
    return join(this.folder, name);
  }

  async open(): Promise<Model> {
    const { dtype, device, threads } = this.options;
    return Model.load(demoModel, { dtype, device, threads });
  }
}
