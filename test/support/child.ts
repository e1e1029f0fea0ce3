import { type ChildProcess, spawn } from 'node:child_process';
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import ts from 'typescript';

const repository = new URL('../..', import.meta.url).pathname;

/** Turns files of lib/ (named without .ts, and all they import) into JavaScript under `folder`, for child processes. */
export function transpile(folder: string, files: readonly string[]): void {
  for (const file of files) {
    const source = readFileSync(join(repository, 'lib', `${file}.ts`), 'utf8');
    const { outputText } = ts.transpileModule(source, {
      compilerOptions: { module: ts.ModuleKind.ESNext, target: ts.ScriptTarget.ES2022 },
    });
    mkdirSync(dirname(join(folder, file)), { recursive: true });
    writeFileSync(join(folder, `${file}.js`), outputText);
  }
  writeFileSync(join(folder, 'package.json'), '{"type":"module"}');
}

export interface Child {
  process: ChildProcess;
  /** Settles once the child has printed `text`; rejects where it ends before. */
  printed(text: string): Promise<void>;
  ended: Promise<{ code: number | null; signal: NodeJS.Signals | null; output: string }>;
}

/** Runs a module's text with node in `folder`. */
export function run(folder: string, script: string, args: readonly string[] = []): Child {
  const child = spawn(process.execPath, ['--input-type=module', '-e', script, '--', ...args], { cwd: folder });
  let output = '';
  const listeners = new Set<() => void>();
  const take = (data: Buffer) => {
    output += data;
    for (const listener of listeners) listener();
  };
  child.stdout.on('data', take);
  child.stderr.on('data', take);
  const ended = new Promise<{ code: number | null; signal: NodeJS.Signals | null; output: string }>((resolve) => {
    child.on('close', (code, signal) => resolve({ code, signal, output }));
  });
  const printed = (text: string) =>
    new Promise<void>((resolve, reject) => {
      const look = () => {
        if (!output.includes(text)) return;
        listeners.delete(look);
        resolve();
      };
      listeners.add(look);
      look();
      ended.then(() => (output.includes(text) ? resolve() : reject(new Error(`the child ended first: ${output}`))));
    });
  return { process: child, printed, ended };
}
