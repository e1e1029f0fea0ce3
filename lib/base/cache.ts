import { homedir } from 'node:os';
import { join } from 'node:path';

/** Where downloaded models and kept references lie: `PLURALIGN_CACHE`, else ~/.cache/pluralign. */
export function cacheFolder(): string {
  return process.env.PLURALIGN_CACHE ?? join(homedir(), '.cache', 'pluralign');
}
