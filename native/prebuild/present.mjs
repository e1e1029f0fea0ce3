// Before npm packs: a tarball without a binary would install without a word, and load nothing.
import { existsSync, readdirSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

const folder = fileURLToPath(new URL('../../prebuilds', import.meta.url));
const files = existsSync(folder) ? readdirSync(folder, { recursive: true, encoding: 'utf8' }) : [];
if (!files.some((name) => name.endsWith('.node'))) {
  console.error('prebuilds/ holds no binary, and the package would not work: npm run build:prebuilds first');
  process.exitCode = 1;
}
