import { existsSync, readdirSync } from 'node:fs';
import { copyFile } from 'node:fs/promises';
import { freemem } from 'node:os';
import { join } from 'node:path';
import { ioError, makeFolder, writeFileAtomic } from '../base/files.js';
import { tokenizerFiles } from '../model/folder.js';
import { type NamedTensor, writeSafetensors } from '../model/safetensors.js';
import { PluralignError } from '../native/errors.js';
import type { Watch } from './adapters.js';
import { type Expert, storedName, type TensorFiles } from './expert.js';
import { lowRank, type MergePlan, mergeTensor, type TensorReport } from './tensor.js';

export interface ModelOutput {
  output: string;
  /** Bytes that one tensor's merge may take; default: 60 % of what is free. */
  memory?: number;
  /** Largest shard in bytes; default 5 GB. */
  shardSize?: number;
}

const wholeTypes = new Set(['F32', 'F16', 'BF16']);

/** Base and experts as float32, the update and its working copies as float64, the result twice. */
function bytesFor(elements: number, experts: number): number {
  return elements * (4 * (experts + 1) + 8 * 4 + 4 + 8);
}

/** Weights of the linears that some adapter changes; other tensors stay as they are. */
function changes(experts: readonly Expert[], tensor: string): boolean {
  return experts.some((expert) => expert.kind === 'model' || expert.modules.has(tensor.replace(/\.weight$/, '')));
}

function check(base: TensorFiles, experts: readonly Expert[], memory: number): void {
  for (const [tensor, dtype] of base.dtypes)
    if (!wholeTypes.has(dtype))
      throw new PluralignError(
        'UNSUPPORTED',
        `${base.file(tensor)}: ${tensor} has dtype ${dtype}; expected F32, F16 or BF16`,
      );
  for (const [tensor, shape] of base.shapes) {
    if (!changes(experts, tensor)) continue;
    const bytes = bytesFor(product(shape), experts.length);
    if (bytes > memory)
      throw new PluralignError(
        'OUT_OF_MEMORY',
        `merging ${tensor} [${shape.join(', ')}] of ${experts.length} experts takes ${gigabytes(bytes)}, allowed are ` +
          `${gigabytes(memory)}; raise --memory, or merge fewer experts at a time`,
      );
  }
}

const product = (shape: readonly number[]) => shape.reduce((n, size) => n * size, 1);
const gigabytes = (bytes: number) =>
  bytes < 1e9 ? `${(bytes / 1e6).toFixed(1)} MB` : `${(bytes / 1e9).toFixed(1)} GB`;

/** float16 weights are written as float32, which holds them exactly. */
const storedType = (dtype: string) => (dtype === 'BF16' ? 'BF16' : 'F32');

/** Tensors in runs of at most `limit` bytes, in the order of their names. */
function shardsOf(base: TensorFiles, limit: number): { tensors: string[]; bytes: number }[] {
  const shards: { tensors: string[]; bytes: number }[] = [];
  for (const tensor of [...base.shapes.keys()].sort()) {
    const bytes = product(base.shapes.get(tensor)!) * (storedType(base.dtypes.get(tensor)!) === 'BF16' ? 2 : 4);
    const last = shards.at(-1);
    if (last && last.bytes + bytes <= limit) {
      last.tensors.push(tensor);
      last.bytes += bytes;
    } else shards.push({ tensors: [tensor], bytes });
  }
  return shards;
}

/**
 * Base plus merged update as a Hugging Face folder, in the base's dtype, shard by shard and tensor by tensor. Throws
 * `OUT_OF_MEMORY` where one tensor does not fit the budget, `BAD_ARGUMENT` where the folder has weights already.
 */
export async function mergeModels(
  experts: readonly Expert[],
  base: TensorFiles,
  baseDir: string,
  plan: MergePlan,
  options: ModelOutput,
  watch: Watch,
): Promise<TensorReport[]> {
  check(base, experts, options.memory ?? 0.6 * freemem());
  const { output } = options;
  await makeFolder(output).catch((error: unknown) => {
    throw ioError('make', output, error);
  });
  const there = readdirSync(output).find((file) => file.endsWith('.safetensors'));
  if (there) throw new PluralignError('BAD_ARGUMENT', `${output} holds ${there} already; give an empty folder`);

  const reports: TensorReport[] = [];
  const merge = async (tensor: string): Promise<Float32Array> => {
    const shape = base.shapes.get(tensor)!;
    const weight = base.read(tensor);
    watch.step(0);
    if (!changes(experts, tensor)) return weight;
    const cols = shape.at(-1) ?? 1;
    const updates = experts.map((expert) => {
      if (expert.kind === 'model') return { dense: expert.files.read(storedName(tensor, expert.files)!) };
      const module = tensor.replace(/\.weight$/, '');
      return expert.modules.has(module) ? lowRank(expert, module) : null;
    });
    const merged = await mergeTensor(plan, tensor, [weight.length / cols, cols], updates, {
      as: 'weight',
      rank: 0,
      bfloat16: storedType(base.dtypes.get(tensor)!) === 'BF16',
      base: weight,
    });
    reports.push({ name: tensor, norm: merged.norm, error: merged.error });
    watch.step(weight.length);
    return merged.dense;
  };

  const shards = shardsOf(base, options.shardSize ?? 5e9);
  const number = (n: number) => String(n).padStart(5, '0');
  const fileOf = (i: number) =>
    shards.length === 1 ? 'model.safetensors' : `model-${number(i + 1)}-of-${number(shards.length)}.safetensors`;
  for (const [i, shard] of shards.entries()) {
    const tensors = shard.tensors.map(
      (name): NamedTensor => ({
        name,
        shape: base.shapes.get(name)!,
        dtype: storedType(base.dtypes.get(name)!),
        data: () => merge(name),
      }),
    );
    await writeSafetensors(join(output, fileOf(i)), tensors, { format: 'pt' });
  }
  if (shards.length > 1) {
    const weight_map = Object.fromEntries(shards.flatMap(({ tensors }, i) => tensors.map((name) => [name, fileOf(i)])));
    const total_size = shards.reduce((sum, { bytes }) => sum + bytes, 0);
    const json = JSON.stringify({ metadata: { total_size }, weight_map }, null, 2);
    await writeFileAtomic(join(output, 'model.safetensors.index.json'), `${json}\n`);
  }
  for (const name of ['config.json', ...tokenizerFiles]) {
    const from = join(baseDir, name);
    if (!existsSync(from)) continue;
    await copyFile(from, join(output, name)).catch((error: unknown) => {
      throw ioError('copy', from, error);
    });
  }
  return reports;
}
