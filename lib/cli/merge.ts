import { Command, InvalidArgumentError, Option } from 'commander';
import type { LayerWeights, MergeReport } from '../merge/index.js';
import { methodNames } from '../merge/methods.js';
import { formatNumber, formatTable, printableLine } from './format.js';
import { emit } from './output.js';
import {
  type AdapterReference,
  addJsonOption,
  collectAdapter,
  integer,
  parseWeights,
  real,
  withStop,
} from './shared.js';

interface Options {
  model?: string;
  run?: string;
  adapter: AdapterReference[];
  weights?: Record<string, number>;
  layerWeights: LayerWeights[];
  method: string;
  rank?: number;
  as?: 'adapter' | 'model';
  output: string;
  density?: number;
  epsilon?: number;
  gamma?: number;
  lambda?: number;
  seed: number;
  memory?: number;
  shardSize?: number;
  threads?: number | 'auto';
  json?: boolean;
}

/** `2:a=1,b=0` or `0-3:a=1,b=0`. */
function collectLayers(text: string, before: LayerWeights[]): LayerWeights[] {
  const found = /^\s*(\d+)(?:\s*-\s*(\d+))?\s*:(.*)$/s.exec(text);
  if (!found) throw new InvalidArgumentError(`Expected FIRST-LAST:NAME=w,NAME=w,… found '${text}'.`);
  const [, first, last = first, weights] = found;
  return [...before, { layers: [Number(first), Number(last)], weights: parseWeights(weights) }];
}

function human(report: MergeReport): string {
  const lost = report.norm > 0 ? report.error / report.norm : 0;
  const worst = [...report.tensors].sort((a, b) => b.error - a.error).slice(0, 5);
  const lines = [
    `${report.output}: ${report.kind} by ${report.method} of ` +
      Object.entries(report.weights)
        .map(([name, w]) => `${printableLine(name)} ${formatNumber(w)}`)
        .join(', '),
    ...(report.layerWeights ?? []).map(
      ({ layers: [first, last], weights }) =>
        `layers ${first} to ${last}: ${Object.entries(weights)
          .map(([name, w]) => `${printableLine(name)} ${formatNumber(w)}`)
          .join(', ')}`,
    ),
    `norm of the update ${formatNumber(report.norm)}, lost ${formatNumber(report.error)} (${(100 * lost).toPrecision(3)} %)`,
  ];
  if (report.error > 0) {
    const rows = worst.map((t) => [
      t.name,
      t.rank === undefined ? '-' : String(t.rank),
      formatNumber(t.norm),
      formatNumber(t.error),
    ]);
    lines.push('', formatTable(['largest losses', 'rank', 'norm', 'lost'], rows));
  }
  return lines.join('\n');
}

export function mergeCommand(load = () => import('../api/merge.js')): Command {
  const command = new Command('merge')
    .description('one expert from several: adapters or whole models, mixed after training')
    .option('--model <dir>', 'base of whole models, or of adapters that become one')
    .option('--run <run>', 'run folder of `train`: its adapters, and its base')
    .option('--adapter <[name=]dir>', 'adapter (PEFT files) or whole model; several times', collectAdapter, [])
    .option('--weights <name=w,...>', 'weight of each expert (default: equal)', parseWeights)
    .option(
      '--layer-weights <layers:name=w,...>',
      'other weights in some layers, such as 0-3:a=1,b=0; several times',
      collectLayers,
      [],
    )
    .addOption(new Option('--method <name>', 'how to merge').choices(methodNames).default('cat'))
    .option('--rank <r>', 'rank of the merged adapter (default: exact)', integer(1))
    .addOption(
      new Option('--as <kind>', 'what to write (default: an adapter where it can be)').choices(['adapter', 'model']),
    )
    .option('--density <p>', 'share of an update that stays (default: 0.5)', real(0, 1))
    .option('--epsilon <e>', 'della: width of the range of probabilities (default: 0.2)', real(0, 1))
    .option('--gamma <g>', 'breadcrumbs: share of the largest that goes (default: 0.01)', real(0, 1))
    .option('--lambda <l>', 'factor on the merged update (default: 1)', real(Number.NEGATIVE_INFINITY))
    .option('--seed <n>', 'of random draws', integer(0), 0)
    .option('--memory <gb>', "what one tensor's merge may take (default: 60 % of what is free)", real(0))
    .option('--shard-size <gb>', 'largest file of a whole model (default: 5)', real(0))
    .option('--threads <n>', "threads, or 'auto' (default: auto)", (text) =>
      text === 'auto' ? text : integer(1)(text),
    )
    .requiredOption('--output <dir>', 'folder to write')
    .action(async (options: Options) => {
      const { adapter: experts, memory, shardSize, json, ...rest } = options;
      const bytes = (gb: number | undefined) => (gb === undefined ? undefined : gb * 1e9);
      await withStop(
        async (stop) =>
          (await load()).mergeCommand({
            ...rest,
            experts,
            memory: bytes(memory),
            shardSize: bytes(shardSize),
            stop,
            onWarning: (text) => process.stderr.write(`warning: ${text}\n`),
          }),
        (report) => emit({ json }, report, human),
      );
    });
  return addJsonOption(command);
}
