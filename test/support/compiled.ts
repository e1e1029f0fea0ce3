import { mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join, relative } from 'node:path';
import ts from 'typescript';

const repository = new URL('../..', import.meta.url).pathname;

/**
 * A temporary folder with the JavaScript of these TypeScript files (relative to the repository) and of all they import, laid
 * out as in the repository, for workers and child processes. `remove` deletes it.
 */
export function compiled(files: readonly string[]): { folder: string; remove(): void } {
  const folder = mkdtempSync(join(tmpdir(), 'pluralign-compiled-'));
  const waiting = files.map((file) => join(repository, file));
  const done = new Set<string>();
  for (let file = waiting.pop(); file !== undefined; file = waiting.pop()) {
    if (done.has(file)) continue;
    done.add(file);
    const source = readFileSync(file, 'utf8');
    const { outputText } = ts.transpileModule(source, {
      compilerOptions: { module: ts.ModuleKind.ESNext, target: ts.ScriptTarget.ES2022 },
    });
    const output = join(folder, relative(repository, file).replace(/\.ts$/, '.js'));
    mkdirSync(dirname(output), { recursive: true });
    writeFileSync(output, outputText);
    for (const { fileName } of ts.preProcessFile(outputText).importedFiles)
      if (fileName.startsWith('.')) waiting.push(join(dirname(file), fileName.replace(/\.js$/, '.ts')));
  }
  for (const name of ['node_modules', 'build', 'prebuilds', 'test/fixtures']) {
    mkdirSync(dirname(join(folder, name)), { recursive: true });
    symlinkSync(join(repository, name), join(folder, name));
  }
  writeFileSync(join(folder, 'package.json'), '{"type":"module"}');
  return { folder, remove: () => rmSync(folder, { recursive: true, force: true }) };
}
