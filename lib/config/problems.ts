import type { z } from 'zod';
import { PluralignError } from '../native/errors.js';
import { nearest } from './nearest.js';
import { configSchema, lossTypes } from './schema.js';
import type { Path, Source } from './source.js';

type Issue = z.core.$ZodIssue;
type AnySchema = z.core.$ZodType;

/** The mappings a schema allows, behind defaults, nulls and unions. */
function shapesOf(schema: AnySchema): Record<string, AnySchema>[] {
  const def = (schema as z.core.$ZodTypes)._zod.def;
  if (def.type === 'object') return [def.shape as Record<string, AnySchema>];
  if (def.type === 'union') return def.options.flatMap((option) => shapesOf(option));
  if (def.type === 'array') return shapesOf(def.element);
  if ('innerType' in def) return shapesOf(def.innerType as AnySchema);
  return [];
}

/** Dotted paths of every key there is. */
export function knownPaths(schema: AnySchema = configSchema, prefix = ''): string[] {
  return shapesOf(schema).flatMap((shape) =>
    Object.entries(shape).flatMap(([key, inner]) => [prefix + key, ...knownPaths(inner, `${prefix}${key}.`)]),
  );
}

/** What other trainers call the keys that no spelling leads to. */
const otherNames: Record<string, string> = {
  lr: 'train.learning_rate',
  lr_scheduler_type: 'train.schedule',
  warmup_ratio: 'train.warmup',
  num_train_epochs: 'train.epochs',
  max_steps: 'train.steps',
  per_device_train_batch_size: 'train.batch_size',
  bf16: 'train.dtype',
  logging_steps: 'train.log_every',
  save_steps: 'train.save_every',
  eval_steps: 'train.eval_every',
  save_total_limit: 'train.keep_checkpoints',
  adam_beta1: 'train.beta1',
  adam_beta2: 'train.beta2',
  adam_epsilon: 'train.eps',
  lora_r: 'adapter.r',
  lora_alpha: 'adapter.alpha',
  lora_dropout: 'adapter.dropout',
  target_modules: 'adapter.targets',
  use_rslora: 'adapter.rslora',
  loss_type: 'loss.type',
  f_divergence_type: 'loss.f_divergence',
  ref_model: 'loss.reference',
  precompute_ref_log_probs: 'loss.cache_reference',
  center_rewards_coefficient: 'loss.centring',
  max_seq_length: 'data.max_length',
  truncation_mode: 'data.over_length',
  model_name_or_path: 'model',
  output_dir: 'output',
  seed: 'train.seed',
  lora: 'adapter',
  peft: 'adapter',
  peft_config: 'adapter',
  lora_config: 'adapter',
};

function suggest(path: Path, key: string): string | undefined {
  if (Object.hasOwn(otherNames, key)) return otherNames[key];
  const prefix = path.filter((part) => typeof part === 'string').join('.');
  const known = knownPaths();
  const siblings = known
    .filter((candidate) => candidate.slice(0, Math.max(0, candidate.lastIndexOf('.'))) === prefix)
    .map((candidate) => candidate.slice(candidate.lastIndexOf('.') + 1));
  const sibling = nearest(key, siblings);
  if (sibling !== undefined) return `${dotted(path)}${path.length === 0 ? '' : '.'}${sibling}`;
  // The right key in the wrong section; two or three letters are near to too much.
  const last = (candidate: string) => candidate.slice(candidate.lastIndexOf('.') + 1);
  const names = known.map(last);
  const elsewhere = key.length < 4 ? names.find((name) => name === key) : nearest(key, names);
  if (elsewhere !== undefined) return known.find((candidate) => last(candidate) === elsewhere);
  return nearest(key, known);
}

const render = (value: unknown): string => {
  if (value === undefined) return 'nothing';
  const json = typeof value === 'number' ? String(value) : JSON.stringify(value);
  return json.length > 60 ? `${json.slice(0, 57)}…` : json;
};

function valueAt(root: unknown, path: Path): unknown {
  let value = root;
  for (const key of path) value = (value as Record<PropertyKey, unknown> | null | undefined)?.[key];
  return value;
}

/** `train.early_stopping`, `data.train[1]`. */
export function dotted(path: Path): string {
  let out = '';
  for (const key of path) out += typeof key === 'number' ? `[${key}]` : `${out === '' ? '' : '.'}${String(key)}`;
  return out;
}

/** A union's failure says most through the branch that the value was meant for: the one that failed deepest. */
function flatten(issue: Issue): Issue[] {
  if (issue.code !== 'invalid_union') return [issue];
  const deep = issue.errors.find(
    (branch) =>
      branch.length > 0 && branch.every((inner) => inner.path.length > 0 || inner.code === 'unrecognized_keys'),
  );
  if (deep === undefined) return [issue];
  return deep.flatMap((inner) => flatten({ ...inner, path: [...issue.path, ...inner.path] } as Issue));
}

/** The words that would have been right at an issue's own place. */
function allowedWords(issue: Issue): string[] {
  if (issue.code === 'invalid_value') return issue.values.map(String);
  if (issue.code !== 'invalid_union') return [];
  return issue.errors.flat().flatMap((inner) => (inner.path.length === 0 ? allowedWords(inner) : []));
}

function messages(issue: Issue, source: Source): string[] {
  if (issue.code === 'unrecognized_keys') {
    return issue.keys.map((key) => {
      const near = suggest(issue.path, key);
      const path = [...issue.path, key];
      return `${source.locate(path)}: ${dotted(path)}: unknown key${near ? `; did you mean ${near}?` : ''}`;
    });
  }
  const found = valueAt(source.value, issue.path);
  const where = source.locate(issue.path);
  const name = issue.path.length === 0 ? '' : `${dotted(issue.path)}: `;
  const near = typeof found === 'string' ? nearest(found, allowedWords(issue)) : undefined;
  // Other trainers have a method for each loss.
  const loss = dotted(issue.path) === 'method' && (lossTypes as readonly unknown[]).includes(found);
  const hint = near ? `; did you mean ${near}?` : loss ? `; ${found} is a loss of dpo: write loss.type: ${found}` : '';
  return [`${where}: ${name}found ${render(found)}, expected ${issue.message}${hint}`];
}

const most = 10;

/** All that is wrong, one line each, as one BAD_CONFIG. */
export function configError(lines: readonly string[]): PluralignError {
  const rest = lines.length - most;
  const shown = rest > 0 ? [...lines.slice(0, most), `and ${rest} more`] : lines;
  return new PluralignError('BAD_CONFIG', shown.join('\n'));
}

export function schemaError(issues: readonly Issue[], source: Source): PluralignError {
  return configError(issues.flatMap(flatten).flatMap((issue) => messages(issue, source)));
}
