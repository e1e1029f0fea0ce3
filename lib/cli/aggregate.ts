import { Command, Option } from 'commander';
import type { Aggregate } from '../aggregation/rules.js';
import { type Regrets, type SampleRule, sampleRules } from '../aggregation/side-by-side.js';
import type { RunAggregate } from '../api/aggregate-run.js';
import { PluralignError } from '../native/errors.js';
import { formatTable } from './format.js';
import { emit } from './output.js';
import {
  type AdapterReference,
  addJsonOption,
  addRuntimeOptions,
  alphaOf,
  collectAdapter,
  integer,
  real,
  runtimeOptions,
  withStop,
} from './shared.js';

interface Options {
  run?: string;
  matrix?: string;
  model?: string;
  adapter: AdapterReference[];
  rule: SampleRule | 'trained';
  rounds?: number;
  steps?: number;
  alpha?: number;
  solver?: 'lp' | 'hedge';
  output?: string;
  data?: string[];
  prompts?: number;
  samples?: number;
  maxNewTokens?: number;
  temperature?: number;
  seed?: number;
  compare?: AdapterReference[];
  json?: boolean;
}

export function aggregateCommand(): Command {
  const command = new Command('aggregate')
    .description('one policy from the types: the weights of a mixture of their policies')
    .argument('[run]', 'run folder of a method that finds types')
    .option(
      '--matrix <file>',
      'JSON with "L" (reward of type k under the policy of type j) and "beta", in place of a run',
    )
    .option('--run <run>', 'the same as [run]')
    .option('--model <dir>', 'in place of a run: the model whose adapters are aggregated')
    .option('--adapter <[name=]dir>', 'with --model: an adapter; given for each type', collectAdapter, [])
    .addOption(
      new Option('--rule <name>', 'how to weigh the types')
        .choices([...sampleRules, 'trained'])
        .default('min-max-regret'),
    )
    .option('--alpha <number>', 'α of rule alpha: 0 the mean, -inf the worst type (default: -1)', alphaOf)
    .addOption(new Option('--solver <name>', 'for the worst-case rules (default: lp)').choices(['lp', 'hedge']))
    .option('--output <dir>', 'folder for the mixture; score, eval and generate take it as an --adapter')
    .option('--data <rows...>', "rows whose prompts are answered (default: the run's training rows)")
    .option('--prompts <n>', 'prompts at most (default: 512)', integer(1))
    .option('--samples <n>', 'answers of each policy to a prompt (default: 1)', integer(1))
    .option('--max-new-tokens <n>', 'tokens of an answer at most (default: 128)', integer(1))
    .option('--temperature <t>', 'of the answers (default: 1)', real(0))
    .option('--seed <n>', 'of prompts and answers (default: 0)', integer(0))
    .option('--rounds <n>', 'rule trained: times that the weights of types move (default: 20)', integer(1))
    .option('--steps <n>', 'rule trained: optimizer steps between (default: 10)', integer(1))
    .option(
      '--compare <[name=]dir>',
      'another adapter whose regrets are wanted; may be given several times',
      collectAdapter,
      [],
    )
    .action(async (argument: string | undefined, options: Options) => {
      const { alpha, rule, solver, output, matrix, run = argument } = options;
      if (argument !== undefined && options.run !== undefined)
        throw new PluralignError('BAD_ARGUMENT', `expected one run, found ${argument} and --run ${options.run}`);
      const given = [run, matrix, options.model].filter((source) => source !== undefined).length;
      if (given !== 1)
        throw new PluralignError('BAD_ARGUMENT', `expected RUN, --model DIR or --matrix FILE, found ${given} of them`);
      if (matrix !== undefined) {
        const { aggregateMatrix } = await import('../api/aggregate.js');
        if (rule === 'max-min-sample' || rule === 'trained')
          throw new PluralignError('BAD_ARGUMENT', `--rule ${rule} needs policies that can be sampled; give RUN`);
        emit(options, await aggregateMatrix(matrix, { rule, alpha, solver, output }), describeMatrix);
        return;
      }
      const { aggregatePolicies } = await import('../api/aggregate-run.js');
      const { adapter: adapters, ...rest } = options;
      const runtime = runtimeOptions({ ...options });
      await withStop(
        async (stop) => {
          const all = { ...rest, ...runtime, run, adapters, stop };
          if (rule !== 'trained') return aggregatePolicies({ ...all, rule });
          const { aggregateTrained } = await import('../api/aggregate-trained.js');
          return aggregateTrained({ ...all, rule: 'min-max-regret' });
        },
        (result) => emit(options, result, describeRun),
      );
    });
  return addJsonOption(addRuntimeOptions(command));
}

function describeMatrix(r: Aggregate): string {
  return [
    `${r.rule}: worst regret ${r.worst_regret.toPrecision(4)}`,
    ...r.weights.map((w, k) => `  policy ${k + 1}  weight ${w.toFixed(4)}`),
    ...r.regrets.map((regret, k) => `  type ${k + 1}    regret ${regret.toPrecision(4)}`),
  ].join('\n');
}

function describeRun(r: RunAggregate): string {
  const cell = (regret: number, [low, high]: [number, number]) =>
    `${regret.toFixed(3)} [${low.toFixed(3)}, ${high.toFixed(3)}]`;
  const line = (name: string, weights: readonly number[] | null, regrets: Regrets) => [
    name,
    weights ? weights.map((w) => w.toFixed(3)).join(' ') : '',
    ...regrets.regrets.map((regret, k) => cell(regret, regrets.regret_intervals[k])),
    cell(regrets.worst_regret, regrets.worst_regret_interval),
  ];
  const { sampling, others } = r;
  return [
    formatTable(
      ['policy', 'weights', ...r.types.map((type) => `regret of ${type}`), 'worst'],
      [
        ...r.rules.map((rule) => line(rule.rule === r.rule ? `${rule.rule} *` : rule.rule, rule.weights, rule)),
        ...others.map((other) => line(other.name === r.rule ? `${other.name} *` : other.name, null, other)),
      ],
    ),
    `* chosen. ${sampling.prompts} prompts × ${sampling.per_prompt}, 95 % bootstrap intervals over prompts`,
  ].join('\n');
}
