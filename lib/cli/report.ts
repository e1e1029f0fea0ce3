import { Command } from 'commander';
import { emit } from './output.js';
import { addJsonOption } from './shared.js';

export function reportCommand(): Command {
  const command = new Command('report')
    .description("write a run's report.html, one self-contained page")
    .argument('<run>', 'run folder of `train`')
    .action(async (runDir: string, options: { json?: boolean }) => {
      const { writeReport } = await import('../report/index.js');
      const report = await writeReport(runDir);
      emit(options, { report }, (result) => result.report);
    });
  return addJsonOption(command);
}
