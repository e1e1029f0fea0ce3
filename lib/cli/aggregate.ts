import { Command, InvalidArgumentError, Option } from 'commander';
import { type Rule, rules } from '../aggregation/rules.js';
import { PluralignError } from '../native/errors.js';
import { emit } from './output.js';
import { addJsonOption } from './shared.js';

interface Options {
  matrix?: string;
  rule: Rule;
  alpha?: number;
  solver?: 'lp' | 'hedge';
  output?: string;
  json?: boolean;
}

function alphaOf(text: string): number {
  const value = /^[-−](inf|infinity|∞)$/i.test(text.trim()) ? Number.NEGATIVE_INFINITY : Number(text);
  if (text.trim() === '' || Number.isNaN(value)) throw new InvalidArgumentError('Expected a number or -inf.');
  return value;
}

export function aggregateCommand(): Command {
  const command = new Command('aggregate')
    .description('one policy from the types: the weights of a mixture of their policies')
    .argument('[run]', 'run folder of a method that finds types')
    .option(
      '--matrix <file>',
      'JSON with "L" (reward of type k under the policy of type j) and "beta", in place of a run',
    )
    .addOption(new Option('--rule <name>', 'how to weigh the types').choices(rules).default('min-max-regret'))
    .option('--alpha <number>', 'α of rule alpha: 0 the mean, -inf the worst type (default: -1)', alphaOf)
    .addOption(new Option('--solver <name>', 'for the worst-case rules (default: lp)').choices(['lp', 'hedge']))
    .option('--output <dir>', 'folder for the mixture')
    .action(async (run: string | undefined, options: Options) => {
      const { alpha, rule, solver } = options;
      if ((run === undefined) === (options.matrix === undefined)) {
        const found = run === undefined ? 'neither' : 'both';
        throw new PluralignError('BAD_ARGUMENT', `expected RUN or --matrix FILE, found ${found}`);
      }
      const { aggregateMatrix, aggregateRun } = await import('../api/aggregate.js');
      const result =
        options.matrix !== undefined
          ? await aggregateMatrix(options.matrix, { rule, alpha, solver, output: options.output })
          : await aggregateRun(run!);
      emit(options, result, (r) =>
        [
          `${r.rule}: worst regret ${r.worst_regret.toPrecision(4)}`,
          ...r.weights.map((w, k) => `  policy ${k + 1}  weight ${w.toFixed(4)}`),
          ...r.regrets.map((regret, k) => `  type ${k + 1}    regret ${regret.toPrecision(4)}`),
        ].join('\n'),
      );
    });
  return addJsonOption(command);
}
