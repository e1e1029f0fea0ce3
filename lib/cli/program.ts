import { Command, CommanderError } from 'commander';
import { packageVersion } from '../base/version.js';
import { adaptCommand } from './adapt.js';
import { aggregateCommand } from './aggregate.js';
import { assignCommand } from './assign.js';
import { benchCommand } from './bench.js';
import { demoCommand } from './demo.js';
import { doctorCommand } from './doctor.js';
import { embedCommand } from './embed.js';
import { evalCommand } from './eval.js';
import { exportCommand } from './export.js';
import { generateCommand } from './generate.js';
import { mergeCommand } from './merge.js';
import { reportError } from './output.js';
import { reportCommand } from './report.js';
import { scoreCommand } from './score.js';
import { trainCommand } from './train.js';

/** Makes a command; each imports what it runs only when it runs. */
export type CommandFactory = () => Command;

/** Every command of this version, in the order of `--help`. */
export const commands: CommandFactory[] = [
  trainCommand,
  scoreCommand,
  evalCommand,
  generateCommand,
  mergeCommand,
  embedCommand,
  adaptCommand,
  exportCommand,
  assignCommand,
  aggregateCommand,
  reportCommand,
  benchCommand,
  doctorCommand,
  demoCommand,
];

export function createProgram(factories: CommandFactory[] = commands): Command {
  const program = new Command('pluralign')
    .description('Aligns language models with people who disagree.')
    .version(packageVersion())
    .exitOverride()
    .showHelpAfterError('(--help lists what can be given)')
    .addHelpText('after', '\nExit status: 0 done, 1 failed, 2 bad usage, configuration or data.');
  for (const factory of factories) program.addCommand(factory().copyInheritedSettings(program));
  return program;
}

/** Runs the program on `argv` (without node and script) and returns the exit status. */
export async function run(argv: string[], factories: CommandFactory[] = commands): Promise<number> {
  try {
    await createProgram(factories).parseAsync(argv, { from: 'user' });
    return 0;
  } catch (error) {
    // commander has printed its own errors and help; only help and version that were asked for are a success
    if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : 2;
    return reportError(error);
  }
}
