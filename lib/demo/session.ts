import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Model } from '../model/model.js';
import { PluralignError } from '../native/errors.js';
import { progress } from '../training/progress.js';
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

  path(name: string): string {
    return join(this.folder, name);
  }

  async open(): Promise<Model> {
    const { dtype, device, threads } = this.options;
    return Model.load(demoModel, { dtype, device, threads });
  }
}
