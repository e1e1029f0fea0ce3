// What an editor shows a user of the package: documented configuration keys, and declarations that need nothing else installed.
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import ts from 'typescript';
import { expect, test } from 'vitest';

const root = fileURLToPath(new URL('..', import.meta.url));

test('the comments on configuration keys reach the caller of train()', () => {
  const name = join(root, 'test/user-of-the-package.ts');
  const text = `import { train } from '../dist/index.js';
await train({
  method: 'dpo', model: 'm', output: 'o',
  data: { train: 'rows.jsonl', max_length: 5 },
  adapter: { generic: 0 }, loss: { label_smoothing: 0.1 }, train: { warmup: 0.1 }, em: { folds: 2 },
  rollout: { missing_eos_penalty: 1 },
});`;
  const files: Record<string, string> = { [name]: text };
  const options: ts.CompilerOptions = {
    strict: true,
    exactOptionalPropertyTypes: true,
    noUncheckedIndexedAccess: true,
    target: ts.ScriptTarget.ES2022,
    lib: ['lib.es2023.d.ts', 'lib.esnext.disposable.d.ts'],
    module: ts.ModuleKind.NodeNext,
    moduleResolution: ts.ModuleResolutionKind.NodeNext,
    types: ['node'],
  };
  const service = ts.createLanguageService({
    getCompilationSettings: () => options,
    getScriptFileNames: () => Object.keys(files),
    getScriptVersion: () => '1',
    getScriptSnapshot: (path) => {
      const found = files[path] ?? ts.sys.readFile(path);
      return found === undefined ? undefined : ts.ScriptSnapshot.fromString(found);
    },
    getCurrentDirectory: () => root,
    getDefaultLibFileName: ts.getDefaultLibFilePath,
    fileExists: (path) => path in files || ts.sys.fileExists(path),
    readFile: (path) => files[path] ?? ts.sys.readFile(path),
    directoryExists: ts.sys.directoryExists,
  });
  const shown = (word: string) => {
    const info = service.getQuickInfoAtPosition(name, text.indexOf(word));
    return ts.displayPartsToString(info?.documentation);
  };
  expect(service.getSemanticDiagnostics(name).map(({ messageText }) => messageText)).toEqual([]);
  for (const key of ['max_length', 'generic', 'label_smoothing', 'warmup', 'folds', 'missing_eos_penalty', 'rollout'])
    expect(shown(`${key}:`), key).toMatch(/\w{3}/);
  expect(shown('train({')).toMatch(/configuration/);
}, 60_000);

test('declarations name only packages that are installed with this one', () => {
  const { dependencies } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'));
  const foreign = new Set<string>();
  for (const file of readdirSync(join(root, 'dist'), { recursive: true, encoding: 'utf8' })) {
    if (!file.endsWith('.d.ts')) continue;
    const { importedFiles } = ts.preProcessFile(readFileSync(join(root, 'dist', file), 'utf8'));
    for (const { fileName } of importedFiles) {
      if (/^(\.|node:)/.test(fileName)) continue;
      const name = /^(@[^/]+\/)?[^/]+/.exec(fileName)![0];
      if (!(name in dependencies)) foreign.add(`${file}: ${name}`);
    }
  }
  expect([...foreign]).toEqual([]);
});
