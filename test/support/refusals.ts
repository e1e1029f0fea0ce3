// Commands that are given bad input: a folder of their own for each test, and what every refusal has in common.
import { existsSync, readdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { beforeEach, expect } from 'vitest';
import type { Config } from '../../lib/config/index.js';
import { type Ended, fixture, goldenConfig, program, scratch, writeConfig } from './runs.js';

const { path: within, dir } = scratch();
export const path = within;
export const f = fixture('mistral');
export const output = path('run');
export const file = path('config.yaml');

beforeEach(() => {
  for (const name of readdirSync(dir)) rmSync(join(dir, name), { recursive: true, force: true });
});

type Changes = Parameters<typeof goldenConfig>[2] & { model?: string };
export const config = ({ model = f.model, ...changes }: Changes = {}): Config =>
  goldenConfig({ ...f, model }, output, changes);

export function expectRefused(ended: Ended, message: RegExp): void {
  expect(ended.stderr).toMatch(message);
  expect(ended.stderr).toMatch(/^error: /m);
  expect(ended.stderr).not.toMatch(/unexpected|\n {4}at /);
  expect(ended).toMatchObject({ status: 2, stdout: '' });
}

/** Trains in `output`, and expects a refusal that leaves no run folder behind. */
export async function expectBad(changes: Changes, message: RegExp): Promise<void> {
  const ended = await program('train', writeConfig(file, config(changes)), '--json');
  expectRefused(ended, message);
  expect(existsSync(output)).toBe(false);
}
