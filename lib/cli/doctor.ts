import { Command } from 'commander';
import type { Diagnosis } from './diagnosis.js';
import { emit } from './output.js';
import { addJsonOption, ExitStatus } from './shared.js';

const gib = (bytes: number) => `${(bytes / 2 ** 30).toFixed(1)} GiB`;

function human(d: Diagnosis): string {
  const rows: [string, string][] = [
    ['pluralign', d.version],
    ['Node', `${d.node} (modules ${d.modules}, Node-API ${d.napi})`],
    ['platform', `${d.platform}-${d.arch}${d.libc ? `, ${d.libc}` : ''}`],
    ['processor', `${d.cpu.model || 'unknown'}, ${d.cpu.threads} threads`],
    ['memory', `${gib(d.memory.total)}, ${gib(d.memory.available)} available`],
    ['binary', d.binary.loaded ? (d.binary.path ?? 'loaded') : 'NOT LOADED'],
  ];
  if (d.isa) {
    rows.push(['instruction set', `${d.isa.used}${d.isa.forced ? ` (PLURALIGN_ISA=${d.isa.forced})` : ''}`]);
    rows.push(['supported', d.isa.supported.join(' ')]);
    for (const { name, why } of d.isa.unsupported) rows.push(['', `not ${name}: ${why}`]);
    rows.push(['features', d.cpu.features.join(' ') || 'none']);
  }
  rows.push(['device', `${d.device} (auto; a GPU is used where device: cuda or cuda:N asks for it)`]);
  const { library, description, reason } = d.cuda;
  rows.push(['CUDA', reason || `${description?.devices.length} device${description?.devices.length === 1 ? '' : 's'}`]);
  if (library) rows.push(['', library]);
  if (description) {
    const version = (v: number) => `${Math.floor(v / 1000)}.${Math.floor((v % 1000) / 10)}`;
    const driver = description.driver ? `driver for CUDA ${version(description.driver)}` : 'no driver';
    rows.push(['', `${driver}, library of CUDA ${version(description.runtime)}`]);
    rows.push(['', `dense products: ${description.products}`]);
    for (const [i, { name, capability, memory }] of description.devices.entries())
      rows.push(['', `cuda:${i} ${name}, compute capability ${capability}, ${gib(memory)}`]);
  }
  const width = Math.max(...rows.map(([name]) => name.length)) + 2;
  const lines = rows.map(([name, value]) => `${name.padEnd(width)}${value}`);
  return [...lines, ...d.errors.map((error) => `\nproblem: ${error}`)].join('\n');
}

export function doctorCommand(): Command {
  const command = new Command('doctor')
    .description('say which binary, instruction set and device are used, and why not the others')
    .action(async (options: { json?: boolean }) => {
      const { diagnose } = await import('./diagnosis.js');
      const diagnosis = diagnose();
      emit(options, diagnosis, human);
      if (diagnosis.status !== 0) throw new ExitStatus(diagnosis.status);
    });
  return addJsonOption(command);
}
