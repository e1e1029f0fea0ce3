import { join } from 'node:path';
import { MetricsWriter, type RunningMeans } from './metrics.js';
import { EventWriter } from './tensorboard.js';

/** What the log of a run keeps in its state. */
export interface Logged {
  /** Of the metrics since the last line of them. */
  means: RunningMeans;
  /** Lines of metrics.jsonl. */
  records: number;
  /** The last line of metrics. */
  last: Record<string, number>;
}

/** metrics.jsonl and the event file of a run in steps. */
export class RunLog {
  private constructor(
    private readonly metrics: MetricsWriter,
    private readonly events: EventWriter,
    private readonly state: Logged,
    private readonly epochAt: (step: number) => number,
  ) {}

  /** In the folder `dir`, anew or behind the lines of step `resumeAt`. */
  static async open(
    dir: string,
    state: Logged,
    epochAt: (step: number) => number,
    resumeAt: number | undefined,
  ): Promise<RunLog> {
    const metrics = await MetricsWriter.open(join(dir, 'metrics.jsonl'), { resumeAt, records: state.records });
    return new RunLog(metrics, await EventWriter.open(dir, { resumeAt }), state, epochAt);
  }

  async #write(step: number, values: Record<string, number>): Promise<void> {
    await this.metrics.write({ step, epoch: this.epochAt(step), ...values });
    await this.events.scalars(step, values);
    this.state.records++;
  }

  /**
   * The line of a logged step: means of the steps since the last one, and what else there is to say of it. None where both
   * are missing; the last means again where only those are.
   */
  async writeStep(step: number, learningRate: number, more: Record<string, number> = {}): Promise<void> {
    if (!this.state.means.empty) this.state.last = { ...this.state.means.take(), learning_rate: learningRate };
    else if (Object.keys(more).length === 0) return;
    await this.#write(step, { ...this.state.last, ...more });
  }

  async close(): Promise<void> {
    await this.metrics.close();
    await this.events.close();
  }
}
