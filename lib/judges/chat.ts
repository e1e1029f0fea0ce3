import { setTimeout as wait } from 'node:timers/promises';
import { PluralignError } from '../native/errors.js';

export type Asked = readonly { role: 'system' | 'user' | 'assistant'; content: string }[];

export interface ChatOptions {
  /** Up to and with its version, such as http://localhost:8000/v1. */
  url: string;
  model: string;
  /** Sent as a bearer token; null: none. */
  key: string | null;
  temperature: number;
  /** The longest reply. */
  max_tokens: number;
  /** Attempts after the first. */
  retries: number;
  /** Milliseconds: of one attempt, and before the second attempt (doubled before each further one). */
  timeout: number;
  pause: number;
  signal?: AbortSignal;
}

export interface ChatReply {
  text: string;
  /** Tokens read and written, as the endpoint counts them; 0 where it does not. */
  input: number;
  output: number;
}

/** Answers that may be different next time: time-outs, too many requests, trouble of the server's own. */
const passing = (status: number) =>
  status === 408 || status === 409 || status === 425 || status === 429 || status >= 500;

class Passing extends Error {
  constructor(
    message: string,
    readonly after: number | null = null,
  ) {
    super(message);
  }
}

/**
 * POST URL/chat/completions. What may pass (network, time-outs, 429, 5xx) is tried again, after as long as the endpoint's
 * Retry-After says or twice as long each time. Throws `IO` where it did not pass, `BAD_CONFIG` where the endpoint refuses
 * the request, `ABORTED`.
 */
export async function askChat(messages: Asked, options: ChatOptions): Promise<ChatReply> {
  const { retries, pause, signal, url } = options;
  for (let attempt = 0; ; attempt++) {
    try {
      return await attemptChat(messages, options);
    } catch (error) {
      if (signal?.aborted) throw new PluralignError('ABORTED', 'judging was stopped', { cause: error });
      if (!(error instanceof Passing)) throw error;
      if (attempt === retries)
        throw new PluralignError(
          'IO',
          `${url}: ${error.message}, after ${retries + 1} attempts; what was judged is kept, go on with the same command`,
          { cause: error },
        );
      // An endpoint that asks for more than this is not coming back.
      const most = 10 * options.timeout;
      await wait(Math.min(error.after ?? pause * 2 ** attempt, most), undefined, { signal }).catch(() => {});
    }
  }
}

async function attemptChat(messages: Asked, options: ChatOptions): Promise<ChatReply> {
  const { url, model, key, temperature, max_tokens, timeout, signal } = options;
  const limit = AbortSignal.timeout(timeout);
  let response: Response;
  let body: string;
  try {
    response = await fetch(`${url.replace(/\/+$/, '')}/chat/completions`, {
      method: 'POST',
      headers: { 'content-type': 'application/json', ...(key && { authorization: `Bearer ${key}` }) },
      body: JSON.stringify({ model, messages, temperature, max_tokens }),
      signal: signal ? AbortSignal.any([signal, limit]) : limit,
    });
    body = await response.text();
  } catch (error) {
    const cause = (error as { cause?: { message?: string } }).cause?.message;
    throw new Passing(limit.aborted ? `no reply within ${timeout} ms` : (cause ?? (error as Error).message));
  }
  if (!response.ok) {
    const said = `status ${response.status}: ${body.slice(0, 200)}`;
    if (!passing(response.status)) throw new PluralignError('BAD_CONFIG', `${url} refuses the request, ${said}`);
    const after = Number(response.headers.get('retry-after') ?? Number.NaN);
    throw new Passing(said, Number.isFinite(after) ? 1000 * after : null);
  }
  return replyOf(body);
}

function replyOf(body: string): ChatReply {
  let json: { choices?: { message?: { content?: unknown } }[]; usage?: Record<string, unknown> };
  try {
    json = JSON.parse(body);
  } catch {
    throw new Passing(`the reply is no JSON: ${body.slice(0, 200)}`);
  }
  const text = json.choices?.[0]?.message?.content;
  if (typeof text !== 'string') throw new Passing(`the reply has no choices[0].message.content: ${body.slice(0, 200)}`);
  const count = (key: string) => (typeof json.usage?.[key] === 'number' ? (json.usage[key] as number) : 0);
  return { text, input: count('prompt_tokens'), output: count('completion_tokens') };
}
