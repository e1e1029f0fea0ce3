import type { ResolvedSoups } from '../config/soups-schema.js';
import { PluralignError } from '../native/errors.js';
import { EndpointJudge } from './endpoint.js';

export { type Asked, askChat, type ChatOptions, type ChatReply } from './chat.js';
export { EndpointJudge, type EndpointOptions, type JudgeCost, someAtOnce } from './endpoint.js';

/** Throws `BAD_CONFIG` where the environment has no key that the configuration names. */
export function checkJudge({ key_from }: NonNullable<ResolvedSoups['judge']>): void {
  if (key_from !== null && !process.env[key_from])
    throw new PluralignError('BAD_CONFIG', `soups.judge.key_from: the environment variable ${key_from} is not set`);
}

/** The endpoint of a configuration, its replies kept in a file. */
export function openJudge(
  given: NonNullable<ResolvedSoups['judge']>,
  cache: string,
  signal: AbortSignal,
): Promise<EndpointJudge> {
  const { key_from, timeout, pause, answers: _, at_once: __, ...rest } = given;
  return EndpointJudge.open({
    ...rest,
    key: key_from && (process.env[key_from] ?? null),
    timeout: 1000 * timeout,
    pause: 1000 * pause,
    cache,
    signal,
  });
}
