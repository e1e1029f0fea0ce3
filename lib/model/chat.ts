import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { Template } from '@huggingface/jinja';
import type { Message } from '../data/types.js';
import { PluralignError } from '../native/errors.js';
import { describe, isObject, type Json } from './folder.js';

/** A Jinja template that turns a conversation into the text a model was trained on. */
export class ChatTemplate {
  readonly #template: Template;

  /**
   * `where` is named in errors; `tokens` are the special tokens by name, as the template sees them (`bos_token` …).
   * Throws `BAD_FILE` where the source does not parse.
   */
  constructor(
    source: string,
    readonly where: string,
    readonly tokens: Record<string, string>,
  ) {
    try {
      this.#template = new Template(source);
    } catch (error) {
      const why = (error as Error).message;
      throw new PluralignError('BAD_FILE', `${where}: the chat template does not parse: ${why}`, { cause: error });
    }
  }

  /**
   * The conversation as text. `addGenerationPrompt` ends it with what introduces the assistant's turn. Throws `BAD_DATA`
   * with the template's own words where it refuses the conversation (`raise_exception`) or fails on it.
   */
  render(messages: Message[], options: { addGenerationPrompt: boolean }): string {
    try {
      return this.#template.render({
        ...this.tokens,
        messages,
        tools: null,
        documents: null,
        add_generation_prompt: options.addGenerationPrompt,
      });
    } catch (error) {
      const roles = messages.map((message) => message.role).join(', ');
      throw new PluralignError(
        'BAD_DATA',
        `the chat template of ${this.where} refuses this conversation (roles: ${roles || 'none'}): ` +
          (error as Error).message,
        { cause: error },
      );
    }
  }
}

/**
 * The chat template of a model folder: chat_template.jinja, else `chat_template` of tokenizer_config.json (text, or a list
 * of named templates of which `default` is taken). Null where there is none.
 */
export function readChatTemplate(
  dir: string,
  tokenizerConfig: Json | null,
  tokens: Record<string, string>,
): ChatTemplate | null {
  const path = join(dir, 'chat_template.jinja');
  const file = readIfThere(path);
  if (file !== null) return new ChatTemplate(file, path, tokens);
  const value = tokenizerConfig?.chat_template;
  if (value == null) return null;
  const where = `${join(dir, 'tokenizer_config.json')}: chat_template`;
  if (typeof value === 'string') return new ChatTemplate(value, where, tokens);
  if (!Array.isArray(value)) {
    throw new PluralignError('BAD_FILE', `${where}: expected text or a list of templates, found ${describe(value)}`);
  }
  for (const entry of value) {
    if (!isObject(entry) || typeof entry.name !== 'string' || typeof entry.template !== 'string') {
      throw new PluralignError(
        'BAD_FILE',
        `${where}: expected {"name", "template"} in the list, found ${describe(entry)}`,
      );
    }
    if (entry.name === 'default') return new ChatTemplate(entry.template, where, tokens);
  }
  const names = value.map((entry) => (entry as Json).name).join(', ');
  throw new PluralignError('BAD_FILE', `${where}: none of the templates is named "default" (there are: ${names})`);
}

function readIfThere(path: string): string | null {
  try {
    return readFileSync(path, 'utf8');
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    if (code === 'ENOENT' || code === 'ENOTDIR') return null;
    throw new PluralignError('IO', `${path}: cannot be read: ${message}`, { cause: error });
  }
}
