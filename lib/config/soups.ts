import { dotted } from './problems.js';
import { checkRewards, resolveRewards } from './rollouts.js';
import type { Method, ParsedConfig } from './schema.js';
import type { ResolvedSoups } from './soups-schema.js';
import type { Path, Source } from './source.js';

/** The method whose blocks a run reads: of soups, that of its experts. */
export const trainedBy = (config: Pick<ParsedConfig, 'method' | 'soups'>): Method =>
  config.method === 'soups' ? (config.soups?.method ?? 'rloo') : config.method;

/** Rules of the block `soups`. */
export function checkSoups(config: ParsedConfig, source: Source): string[] {
  const wrong: string[] = [];
  const say = (path: Path, message: string) => wrong.push(`${source.locate(path)}: ${dotted(path)}: ${message}`);
  const { soups, method } = config;
  if (method !== 'soups') {
    if (soups !== null) say(['soups'], `belongs to method soups, but the method is ${method}`);
    return wrong;
  }
  if (soups === null) {
    say(['soups'], 'found nothing, expected { wishes: [{ name, rewards }, …] }');
    return wrong;
  }
  const names = soups.wishes.map((wish) => wish.name);
  soups.wishes.forEach((wish, i) => {
    const at = ['soups', 'wishes', i];
    if (!/^[\w-]+$/.test(wish.name)) say([...at, 'name'], `found ${wish.name}, expected letters, digits, - and _`);
    if (names.indexOf(wish.name) !== i) say([...at, 'name'], `two wishes are named ${wish.name}`);
    if (wish.rewards === null && wish.pairs === null)
      say([...at, 'rewards'], 'found nothing, expected a list of rewards (or pairs: preferences by the wish)');
    wrong.push(...checkRewards(wish.rewards ?? [], [...at, 'rewards'], source));
    if (wish.pairs === null && soups.baselines.includes('modpo') && (soups.front ?? names).includes(wish.name))
      say([...at, 'pairs'], `found nothing; baseline modpo trains on the pairs of every wish of the front`);
    const told = soups.baselines.find((name) => ['prompting', 'sft', 'p_morl'].includes(name));
    if (told && wish.prompt === null)
      say([...at, 'prompt'], `found nothing, expected how ${wish.name} is said in a prompt; baseline ${told} needs it`);
  });
  for (const name of Object.keys(soups.search?.target ?? {}))
    if (!(soups.front ?? names).includes(name))
      say(
        ['soups', 'search', 'target', name],
        `is no wish of the front; expected ${(soups.front ?? names).join(', ')}`,
      );
  if (soups.search?.target && Object.values(soups.search.target).every((w) => w === 0))
    say(['soups', 'search', 'target'], 'all are zero: nothing is wanted');
  if (soups.search?.method === 'grid' && soups.search.blocks > 1)
    say(['soups', 'search', 'blocks'], `found ${soups.search.blocks} with method grid, expected 1; cma-es takes more`);
  if (soups.judge !== null) {
    if (!soups.combinations) say(['soups', 'judge'], 'judges combinations; set soups.combinations: true');
    const silent = soups.wishes.findIndex((wish) => wish.criterion === null);
    if (silent !== -1)
      say(
        ['soups', 'wishes', silent, 'criterion'],
        `found nothing, expected what ${soups.wishes[silent].name} is judged by, such as "is more cheerful"`,
      );
  }
  for (const name of soups.front ?? [])
    if (!names.includes(name)) say(['soups', 'front'], `${name} is no wish; expected ${names.join(', ')}`);
  const share = config.adapter === null || config.adapter === 'full' ? 'none' : config.adapter.share;
  if (soups.side_by_side > 1 && share !== 'none')
    say(
      ['soups', 'side_by_side'],
      `found ${soups.side_by_side} with adapter.share ${share}; side_by_side needs adapter.share: none`,
    );
  if (config.adapter === 'full') say(['adapter'], 'found full; experts are adapters');
  if (config.data.eval === null && config.data.split === null)
    say(['data', 'eval'], 'found nothing, expected prompts that the mixes are compared on; or give data.split');
  return wrong;
}

export function resolveSoups(soups: ParsedConfig['soups'], path: (given: string) => string): ResolvedSoups | null {
  if (soups === null) return null;
  const wishes = soups.wishes.map((wish) => ({
    ...wish,
    dimension: wish.dimension ?? wish.name,
    rewards: resolveRewards(wish.rewards, path),
    pairs: wish.pairs?.map(path) ?? null,
  }));
  const dimensions = [...new Set(wishes.map((wish) => wish.dimension))];
  const firsts = dimensions.slice(0, 3).map((name) => wishes.find((wish) => wish.dimension === name)!.name);
  const front = soups.front ?? (firsts.length > 1 ? firsts : wishes.slice(0, 3).map((wish) => wish.name));
  return { ...soups, wishes, front };
}
