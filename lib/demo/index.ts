import { mkdir, readdir } from 'node:fs/promises';
import { dirname, join, resolve } from 'node:path';
import { Bank } from '../adapters/bank.js';
import { errnoOf, ioError, makeFolder, writeFileAtomic } from '../base/files.js';
import type { Config } from '../config/index.js';
import { groupsOf, readRows } from '../data/index.js';
import type { Model } from '../model/model.js';
import { PluralignError } from '../native/errors.js';
import { tellBeginnings } from './grammar.js';
import { writeDemoReport } from './page.js';
import { accuracies, base, sampleEndings } from './policies.js';
import { type DemoSettings, demoModel, Session } from './session.js';
import { defaultPlan } from './settings.js';
import { makeSoup } from './soup.js';
import { type StoryTable, storyTable, voterTable, wishes } from './tables.js';
import type { DemoResult } from './types.js';
import { type Candidates, collectVotes, groups, makeAnnotators, type Vote } from './votes.js';

export { type DemoSettings, demoModel } from './session.js';
export { type DemoPlan, defaultPlan } from './settings.js';

/** Policies that the demo trains: one for each group, and one for all. */
export const policyNames = [...groups, 'everyone'] as const;

/** Makes the folder, or NAME-2, NAME-3 … where that holds something: nothing of an earlier demo is touched. */
async function freshFolder(wanted: string): Promise<string> {
  try {
    await makeFolder(dirname(wanted));
    for (let n = 1; ; n++) {
      const folder = n === 1 ? wanted : `${wanted}-${n}`;
      try {
        await mkdir(folder);
        return folder;
      } catch (error) {
        if (errnoOf(error) !== 'EEXIST') throw error;
        const held = await readdir(folder).catch(() => ['a file']);
        if (held.length === 0) return folder;
      }
    }
  } catch (error) {
    throw ioError('make', wanted, error);
  }
}

/** Votes, and a policy for each group of voters. */
class Demo extends Session {
  /** The model tells several endings of every beginning. */
  async write(model: Model): Promise<Candidates[]> {
    const { prompts, heldPrompts, endings, seed } = this.plan;
    const beginnings = tellBeginnings(prompts + heldPrompts, seed + 1);
    const repeated = beginnings.flatMap((prompt) => Array<string>(endings).fill(prompt));
    const abort = this.options.stop.flag;
    const told = await this.withProgress(repeated.length, 'write stories', (onProgress) =>
      sampleEndings(model, null, base, repeated, { seed: (seed + 2) * 2 ** 16, temperature: 1, abort, onProgress }),
    );
    return beginnings.map((prompt, i) => {
      const own = told.slice(i * endings, (i + 1) * endings).filter((text) => text !== null);
      return { prompt, endings: [...new Set(own)] };
    });
  }

  /** Everybody votes; later votes are on beginnings that no training vote is on. */
  async vote(candidates: readonly Candidates[]): Promise<void> {
    const { prompts, votes, heldVotes, seed } = this.plan;
    const voters = makeAnnotators();
    const training = collectVotes(voters, candidates.slice(0, prompts), votes, seed + 3);
    const held = collectVotes(voters, candidates.slice(prompts), heldVotes, seed + 4);
    if (training.length === 0 || held.length === 0)
      throw new PluralignError('INTERNAL', 'the model told stories of one mood only: there is nothing to vote on');
    const write = (name: string, rows: readonly Vote[]) =>
      writeFileAtomic(this.path(name), rows.map((row) => `${JSON.stringify(row)}\n`).join(''));
    await write('rows.jsonl', training);
    await write('held-out.jsonl', held);
    for (const group of groups) {
      await write(
        `rows-${group}.jsonl`,
        training.filter((vote) => vote.group === group),
      );
    }
  }

  config(policy: string): Config {
    const { epochs, batchSize, learningRate, rank, beta, likelihood } = this.plan;
    return {
      method: 'dpo',
      model: demoModel,
      data: {
        train: this.path(policy === 'everyone' ? 'rows.jsonl' : `rows-${policy}.jsonl`),
        eval: this.path('held-out.jsonl'),
        max_length: 256,
      },
      adapter: { r: rank, alpha: 2 * rank },
      loss: { type: ['sigmoid', { type: 'sft', weight: likelihood }], beta },
      train: { ...this.runtime, epochs, batch_size: batchSize, learning_rate: learningRate, warmup: 0.1 },
      output: this.path(policy),
    };
  }

  /** Every annotator's held-out votes under every policy. */
  async evaluate(model: Model, bank: Bank): Promise<Map<string, number>[]> {
    const { rows } = await readRows(this.path('held-out.jsonl'));
    const { groups: pairs } = await groupsOf(rows, model.tokenizer, { maxLength: model.config.maxPositions });
    const adapters = [base, ...policyNames.map((_, i) => i)];
    return this.withProgress(pairs.length, 'score held-out votes', (onProgress) =>
      accuracies(model, bank, adapters, pairs, { abort: this.options.stop.flag, onProgress }),
    );
  }

  /** Held-out votes and new stories under every policy. */
  async judge() {
    using model = await this.open();
    const bank = await Bank.fromPeft(
      model.shape,
      policyNames.map((name) => ({ name, dir: join(this.path(name), 'adapter'), trainable: false })),
    );
    const [before, ...after] = await this.evaluate(model, bank);
    const stories = await this.retell(model, bank);
    bank.dispose();
    return { before, after, stories };
  }

  /** New stories of every policy for beginnings that nobody has seen: the same prompts and seeds for all. */
  async retell(model: Model, bank: Bank): Promise<StoryTable> {
    const { stories, seed } = this.plan;
    const prompts = tellBeginnings(stories, seed + 5);
    const names = ['base', ...policyNames];
    const told = await this.withProgress(stories * names.length, 'write new stories', async (onProgress) => {
      const all: (string | null)[][] = [];
      for (const [i] of names.entries()) {
        const adapter = i - 1;
        const options = { seed: (seed + 6) * 2 ** 16, temperature: 1, abort: this.options.stop.flag };
        all.push(
          await sampleEndings(model, bank, adapter, prompts, {
            ...options,
            onProgress: (done) => onProgress(i * stories + done),
          }),
        );
      }
      return all;
    });
    return storyTable(prompts, names, told);
  }
}

/**
 * The whole idea in about a minute: a small model writes stories; twelve annotators, six who love cheerful ones and six
 * who love sad ones, vote on pairs; DPO trains a policy for each group and one for all; and each annotator's held-out
 * votes show whom each policy serves. Then RLOO trains an expert for each of two wishes, and their mix serves both without
 * training. The result depends on the plan's seed only.
 *
 * Writes a folder with the votes (rows.jsonl, held-out.jsonl), a run for each policy and expert, the mix (soup), summary.json
 * and report.html.
 * Throws `NOT_FOUND` without the model, `IO` where the folder cannot be written, `ABORTED` after a stop request.
 */
export async function demo(options: DemoSettings): Promise<DemoResult> {
  const started = performance.now();
  const plan = { ...defaultPlan, ...options.plan };
  const folder = await freshFolder(resolve(options.output ?? 'runs/demo'));
  const run = new Demo(options, plan, folder);
  {
    run.say(`1/5  the model writes ${plan.endings} endings for each of ${plan.prompts + plan.heldPrompts} stories`);
    using model = await run.open();
    const candidates = await run.write(model);
    run.say(`2/5  ${makeAnnotators().length} annotators vote on pairs of endings`);
    await run.vote(candidates);
  }
  run.say(`3/5  DPO: a policy for ${groups.join(', a policy for ')}, and one for everyone`);
  for (const policy of policyNames) await run.train(`for ${policy}`, run.config(policy));
  run.say('4/5  whom does each policy serve?');
  const { before, after, stories } = await run.judge();
  run.say(`5/5  a soup: an expert for each of ${Object.keys(wishes).length} wishes, mixed without training`);
  const soup = await makeSoup(run);
  const table = voterTable(makeAnnotators(), before, new Map(policyNames.map((name, i) => [name, after[i]])));
  const seconds = (performance.now() - started) / 1000;
  const report = await writeDemoReport({ folder, plan, policies: policyNames, table, stories, soup, seconds });
  return {
    table: [...table.voters, ...table.groups],
    stories: stories.rows,
    samples: stories.samples.slice(0, plan.shown),
    soup: soup.rows,
    soup_samples: soup.samples.slice(0, plan.shown),
    seconds,
    paths: { run: folder, report },
  };
}
