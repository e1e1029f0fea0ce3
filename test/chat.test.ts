import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import type { Message } from '../lib/data/types.js';
import { ChatTemplate, readChatTemplate } from '../lib/model/chat.js';
import { loadTokenizer } from '../lib/model/tokenizer.js';

const fixtures = new URL('fixtures/', import.meta.url);
const tokens = { bos_token: '<s>', eos_token: '</s>' };

let dir: string;
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'pluralign-chat-'));
});
afterEach(() => rmSync(dir, { recursive: true, force: true }));

const error = (code: string, message: RegExp) =>
  expect.objectContaining({ code, message: expect.stringMatching(message) });

describe('renders what transformers renders', () => {
  const cases = JSON.parse(readFileSync(new URL('chat/rendered.json', fixtures), 'utf8')) as {
    template: string;
    messages: Message[];
    add_generation_prompt: boolean;
    text?: string;
    error?: string;
  }[];
  test.each(readdirSync(new URL('chat/', fixtures)).filter((name) => name.endsWith('.jinja')))('%s', (name) => {
    const template = new ChatTemplate(readFileSync(new URL(`chat/${name}`, fixtures), 'utf8'), name, tokens);
    const own = cases.filter((c) => c.template === name);
    expect(own.length).toBeGreaterThan(5);
    for (const { messages, add_generation_prompt, text, error: refusal } of own) {
      const render = () => template.render(messages, { addGenerationPrompt: add_generation_prompt });
      if (refusal === undefined) expect(render()).toBe(text);
      else
        expect(render).toThrow(
          expect.objectContaining({ code: 'BAD_DATA', message: expect.stringContaining(refusal) }),
        );
    }
  });
});

describe('where the template comes from', () => {
  const jinja = () => writeFileSync(join(dir, 'chat_template.jinja'), 'from the file {{ bos_token }}');
  const hello: Message[] = [{ role: 'user', content: 'hello' }];
  const read = (config: Record<string, unknown> | null) =>
    readChatTemplate(dir, config, tokens)?.render(hello, { addGenerationPrompt: false }) ?? null;

  test('chat_template.jinja goes before tokenizer_config.json', () => {
    expect(read(null)).toBe(null);
    expect(read({})).toBe(null);
    expect(read({ chat_template: '{{ messages[0].content }}{{ eos_token }}' })).toBe('hello</s>');
    jinja();
    expect(read({ chat_template: 'other' })).toBe('from the file <s>');
  });

  test('of a list the one named default', () => {
    const list = [
      { name: 'tool_use', template: 'tools' },
      { name: 'default', template: 'plain' },
    ];
    expect(read({ chat_template: list })).toBe('plain');
    expect(() => read({ chat_template: list.slice(0, 1) })).toThrow(error('BAD_FILE', /"default".*tool_use/));
    expect(() => read({ chat_template: [1] })).toThrow(error('BAD_FILE', /expected \{"name", "template"\}/));
    expect(() => read({ chat_template: 5 })).toThrow(error('BAD_FILE', /found 5/));
  });

  test('a template that does not parse names its file', () => {
    writeFileSync(join(dir, 'chat_template.jinja'), '{% for x in messages %}');
    expect(() => read(null)).toThrow(error('BAD_FILE', /chat_template.jinja: the chat template does not parse/));
  });

  test('a token that the tokenizer does not have renders as nothing', () => {
    const template = new ChatTemplate('[{{ bos_token }}]{% if bos_token is defined %}x{% endif %}', 't', {});
    expect(template.render(hello, { addGenerationPrompt: false })).toBe('[]');
  });

  test('strftime_now gives a date', () => {
    const template = new ChatTemplate("{{ strftime_now('%Y-%m-%d') }}", 't', {});
    expect(template.render(hello, { addGenerationPrompt: false })).toMatch(/^\d{4}-\d\d-\d\d$/);
  });
});

describe('through the tokenizer', () => {
  const write = (config: object) => {
    writeFileSync(join(dir, 'tokenizer.json'), readFileSync(new URL('tokenizer/byte-level.json', fixtures)));
    writeFileSync(join(dir, 'tokenizer_config.json'), JSON.stringify(config));
  };

  test('the rendered text has its special tokens once', async () => {
    const template = readFileSync(new URL('chat/header.jinja', fixtures), 'utf8');
    write({ bos_token: '<s>', eos_token: '</s>', chat_template: template });
    const tokenizer = await loadTokenizer(dir);
    expect(tokenizer.hasChatTemplate).toBe(true);
    const text = tokenizer.render([{ role: 'user', content: 'hi' }], { addGenerationPrompt: true });
    expect(text).toBe('<s><|header|>user<|/header|>\n\nhi<|eot|><|header|>assistant<|/header|>\n\n');
    const ids = [...tokenizer.encodeRendered(text)];
    expect(ids.filter((id) => id === tokenizer.bosId)).toHaveLength(1);
    expect(ids[0]).toBe(tokenizer.bosId);
  });

  test('no template: the error says what to do', async () => {
    write({});
    const tokenizer = await loadTokenizer(dir);
    expect(tokenizer.hasChatTemplate).toBe(false);
    const render = () => tokenizer.render([{ role: 'user', content: 'hi' }], { addGenerationPrompt: true });
    expect(render).toThrow(error('BAD_DATA', /chat_template.jinja/));
  });
});
