import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { isDeepStrictEqual } from 'node:util';
import { Bank } from '../adapters/bank.js';
import { type AdapterConfig, adapterConfig, targetsOf } from '../adapters/config.js';
import { loadPeft } from '../adapters/peft.js';
import { genericAdapter } from '../adapters/voters.js';
import { Random } from '../base/random.js';
import type { ResolvedAdapter, ResolvedConfig } from '../config/index.js';
import {
  type DataReport,
  dataNotes,
  groupsOf,
  readRows,
  splitRows,
  type TokenReport,
  tokenNotes,
} from '../data/index.js';
import { packTokens } from '../data/pack.js';
import type { Group, Row } from '../data/types.js';
import { type VoterReport, voterNotes, voterReport } from '../data/voters.js';
import { kindsOf } from '../methods/index.js';
import { newConfig, parseModelConfig } from '../model/config.js';
import { type LoadOptions, Model } from '../model/model.js';
import { loadTokenizer } from '../model/tokenizer.js';
import type { NativeModelConfig } from '../native/addon.js';
import { PluralignError } from '../native/errors.js';
import { MarginReference } from './modpo.js';
import { progress } from './progress.js';
import { ReferenceStore } from './reference-store.js';
import { PolicyReference, type Reference, type Scorer } from './scorer.js';
import { balanced } from './voters.js';

/** Name of the adapter that a run trains. */
export const adapterName = genericAdapter;

export async function openModel(config: ResolvedConfig): Promise<Model> {
  const { dtype, device, threads } = config.train;
  if (config.model !== null) {
    const bar = config.model.startsWith('hf:') ? progress(100, `download ${config.model}`) : null;
    const model = await Model.load(config.model, {
      dtype,
      device,
      threads,
      onProgress: ({ received, size }) => bar?.update(size ? Math.floor((100 * received) / size) : 0),
    });
    bar?.stop();
    return model;
  }
  const given = config.pretrain!;
  const tokenizer = await loadTokenizer(given.tokenizer);
  const json = newConfig({
    vocabSize: given.vocab_size ?? tokenizer.vocabSize,
    hiddenSize: given.hidden_size,
    intermediateSize: given.intermediate_size ?? undefined,
    layers: given.num_hidden_layers,
    heads: given.num_attention_heads,
    kvHeads: given.num_key_value_heads ?? undefined,
    maxPositions: given.max_position_embeddings,
    normEps: given.rms_norm_eps,
    ropeTheta: given.rope_theta,
    tied: given.tie_word_embeddings,
    initializerRange: given.initializer_range,
    dtype: dtype === 'bf16' ? 'bfloat16' : 'float32',
    bosId: tokenizer.bosId,
    eosId: tokenizer.eosId,
  });
  const model = Model.empty(parseModelConfig(json, 'pretrain'), tokenizer, { dtype, device, threads });
  if (tokenizer.vocabSize > model.config.vocabSize)
    throw new PluralignError(
      'BAD_CONFIG',
      `pretrain.vocab_size: found ${model.config.vocabSize}, expected at least the tokenizer's ${tokenizer.vocabSize}`,
    );
  return model;
}

export interface PreparedData {
  train: Group[];
  eval: Group[];
  reports: {
    train: DataReport;
    eval: DataReport | null;
    tokens: TokenReport;
    evalTokens: TokenReport | null;
    /** Where every annotator has an adapter. */
    voters?: VoterReport;
  };
  notes: string[];
}

/** Reads, splits and tokenises the rows of a configuration. Nothing is left out without a note. */
export async function prepareData(
  config: ResolvedConfig,
  model: Model,
  { signal, quiet = false }: { signal?: AbortSignal; quiet?: boolean } = {},
): Promise<PreparedData> {
  const { data, method } = config;
  const options = { onBadRow: data.on_bad_row, dedupe: data.dedupe, kinds: kindsOf(method), ties: true, signal };
  const read = await readRows(data.train, options);
  const notes = dataNotes(read.report);
  const keepTies = config.loss.ties !== 'drop';
  const usable = (rows: Row[]) => {
    const kept = keepTies ? rows : rows.filter((row) => !(row.kind === 'pair' && row.tie));
    if (kept.length < rows.length)
      notes.push(
        `${rows.length - kept.length} rows are ties and were left out; loss.ties has likelihoods that use them`,
      );
    const left = new Set(kept.map((row) => row.annotator));
    const silent = new Set(rows.map((row) => row.annotator).filter((name) => !left.has(name)));
    if (silent.size > 0) notes.push(`${silent.size} annotators have nothing but ties and no vote left`);
    if (kept.length === 0)
      throw new PluralignError('BAD_DATA', `${data.train.join(', ')}: every row is a tie; see loss.ties`);
    return kept;
  };
  let train = usable(read.rows);
  let evalRows = train.slice(0, 0);
  let evalReport: DataReport | null = null;
  if (data.eval) {
    const held = await readRows(data.eval, options);
    notes.push(...dataNotes(held.report).map((n) => `evaluation: ${n}`));
    evalRows = usable(held.rows);
    evalReport = held.report;
  } else if (data.split) {
    ({ train, eval: evalRows } = splitRows(train, data.split));
  }
  const maxLength = Math.min(data.max_length ?? Number.POSITIVE_INFINITY, model.config.maxPositions);
  const tokenise = async (rows: typeof train, label: string) => {
    const bar = progress(rows.length, label, { quiet });
    try {
      return await groupsOf(rows, model.tokenizer, {
        maxLength,
        overLength: data.over_length,
        signal,
        onProgress: (done) => bar.update(done),
      });
    } finally {
      bar.stop();
    }
  };
  const tokens = await tokenise(train, 'tokenise');
  notes.push(...tokenNotes(tokens.report, maxLength), ...lostAnnotators(train, tokens.groups));
  let evalTokens: Awaited<ReturnType<typeof tokenise>> | null = null;
  if (evalRows.length > 0) {
    evalTokens = await tokenise(evalRows, 'tokenise evaluation');
    notes.push(...tokenNotes(evalTokens.report, maxLength).map((n) => `evaluation: ${n}`));
  }
  const reports: PreparedData['reports'] = {
    train: read.report,
    eval: evalReport,
    tokens: tokens.report,
    evalTokens: evalTokens?.report ?? null,
  };
  if (config.adapter !== 'full' && config.adapter.per === 'annotator') {
    const rank = Math.max(config.adapter.r ?? 1, ...Object.values(config.adapter.rank_pattern));
    reports.voters = voterReport(tokens.groups);
    notes.push(...voterNotes(reports.voters, tokens.groups, rank));
  }
  return {
    train: config.loss.balance === 'annotators' ? balanced(tokens.groups) : tokens.groups,
    eval: evalTokens?.groups ?? [],
    reports,
    notes,
  };
}

/** Who has no row left once the rows that do not fit are out. */
function lostAnnotators(rows: readonly Row[], groups: readonly Group[]): string[] {
  const left = new Set(groups.map((g) => g.annotator));
  const lost = new Set(rows.map((r) => r.annotator).filter((a) => a !== undefined && !left.has(a)));
  if (lost.size === 0) return [];
  const names = [...lost].slice(0, 10).map((a) => JSON.stringify(a));
  return [`${lost.size} annotators have no row left: ${names.join(', ')}${lost.size > names.length ? ', …' : ''}`];
}

function settings(a: ResolvedAdapter): Partial<AdapterConfig> {
  const given: Partial<AdapterConfig> = {
    share: a.share,
    rankPattern: a.rank_pattern,
    alphaPattern: a.alpha_pattern,
    rslora: a.rslora,
    modulesToSave: a.modules_to_save,
  };
  if (a.r !== null) given.r = a.r;
  if (a.alpha !== null) given.alpha = a.alpha;
  if (a.targets !== null) given.targets = a.targets;
  if (a.dropout !== null) given.dropout = a.dropout;
  return given;
}

/** Layers that a run's adapters act on, in order; all of the model's where whole weights are trained. */
export async function adaptedLayers({ adapter }: ResolvedConfig, shape: NativeModelConfig): Promise<number[]> {
  if (adapter === 'full') return Array.from({ length: shape.layers }, (_, layer) => layer);
  const { init_from } = adapter;
  const own = init_from === null ? adapterConfig(settings(adapter)) : (await loadPeft(init_from, shape)).config;
  return [...new Set(targetsOf(own, shape).map(({ layer }) => layer))].sort((a, b) => a - b);
}

/** The parameters that a run trains: all weights, or one adapter for each name. */
export async function makeBank(
  config: ResolvedConfig,
  model: Model,
  names: readonly string[] = [adapterName],
): Promise<Bank> {
  const { seed } = config.train;
  const wantsHead = config.method === 'reward' || config.method === 'em-reward';
  if (config.adapter === 'full') {
    const std = config.pretrain?.initializer_range;
    const bank = Bank.full(
      model.weightShapes(),
      (name) => (std === undefined ? model.weight(name) : firstWeights(model, name, std, seed)),
      wantsHead ? { rewardHead: { hiddenSize: model.shape.hiddenSize, seed } } : {},
    );
    if (wantsHead) setHead(bank, config, model);
    return bank;
  }
  const { init_from } = config.adapter;
  if (init_from === null) {
    const bank = Bank.create(model.shape, adapterConfig(settings(config.adapter)), names, {
      seed,
      rewardHead: wantsHead,
    });
    if (wantsHead) setHead(bank, config, model);
    return bank;
  }
  const peft = await loadPeft(init_from, model.shape);
  const a = config.adapter;
  const namesOf = (targets: string | string[]) =>
    targetsOf({ ...peft.config, targets, layersToTransform: null, excludeModules: [] }, model.shape).map(
      ({ name }) => name,
    );
  // A folder that lists every linear is all-linear.
  const sameModules =
    a.targets !== null &&
    isDeepStrictEqual(
      namesOf(a.targets),
      peft.targets.map(({ name }) => name),
    );
  const patterns = (given: object) => (Object.keys(given).length > 0 ? given : null);
  for (const [key, wanted, found] of [
    ['r', a.r, peft.config.r],
    ['alpha', a.alpha, peft.config.alpha],
    ['targets', sameModules ? null : a.targets, peft.config.targets],
    ['rank_pattern', patterns(a.rank_pattern), peft.config.rankPattern],
    ['alpha_pattern', patterns(a.alpha_pattern), peft.config.alphaPattern],
    ['rslora', a.rslora || null, peft.config.rslora],
  ] as const)
    if (wanted !== null && !isDeepStrictEqual(wanted, found))
      throw new PluralignError(
        'BAD_CONFIG',
        `adapter.${key}: found ${JSON.stringify(wanted)}, but ${init_from} has ${JSON.stringify(found)}; leave it out ` +
          "to take the folder's",
      );
  const merged = { ...peft.config, share: a.share, dropout: a.dropout ?? peft.config.dropout };
  const bank = Bank.create(model.shape, merged, names, { seed, rewardHead: wantsHead });
  const tensors = new Map(peft.tensors);
  if (!wantsHead) tensors.delete('score');
  else if (!tensors.has('score')) setHead(bank, config, model);
  if (wantsHead && !tensors.has('score')) tensors.set('score', headTensor(bank));
  for (const name of names) bank.setAdapter(name, tensors);
  return bank;
}

function headTensor(bank: Bank) {
  const { head } = bank.adapters[0];
  return { shape: [1, bank.factors[head].cols], data: bank.values(head).slice() };
}

/** The base's own head where it is a reward model; else a normal draw. */
function setHead(bank: Bank, config: ResolvedConfig, model: Model): void {
  const own = model.rewardHead();
  for (const head of new Set(bank.adapters.map((adapter) => adapter.head))) {
    const values = bank.values(head);
    if (own) values.set(own);
    else if (config.reward?.head_std != null) {
      const random = new Random(config.train.seed, 0x5c0e);
      for (let i = 0; i < values.length; i++) values[i] = random.normal() * config.reward.head_std;
    }
  }
}

/** As transformers starts a model: norms 1, everything else normal with the given deviation. */
function firstWeights(model: Model, name: string, std: number, seed: number): Float32Array {
  const { rows, cols } = model.weightShapes().find((w) => w.name === name)!;
  const values = new Float32Array(rows * cols);
  if (rows === 1) return name.endsWith('norm.weight') ? values.fill(1) : values;
  let key = 0;
  for (const c of name) key = (Math.imul(key, 31) + c.charCodeAt(0)) >>> 0;
  const random = new Random(seed, key);
  for (let i = 0; i < values.length; i++) values[i] = random.normal() * std;
  return values;
}

/** What the loss compares with, by `loss.reference`: `base`, or the folder of an adapter or of another model. */
export function referenceOf(config: Pick<ResolvedConfig, 'loss' | 'adapter'>): string {
  const { reference } = config.loss;
  return reference === 'init_from' ? (config.adapter as ResolvedAdapter).init_from! : reference;
}

/** The policy that the loss compares with: the base, the adapter training started from, another adapter, or another model. */
export async function makeReference(config: ResolvedConfig, model: Model): Promise<Reference & Disposable> {
  const { train, loss } = config;
  const maxTokens = packTokens(train, { model });
  const plain = await openReference(referenceOf(config), model, maxTokens, loss.cache_reference, train);
  if (!loss.modpo) return plain;
  return MarginReference.open(plain, model, loss.modpo.rewards, loss.beta, maxTokens);
}

/** A reference as `referenceOf` names it. */
export async function openReference(
  name: string,
  model: Model,
  maxTokens: number,
  cache: boolean | 'disk',
  options: LoadOptions,
): Promise<PolicyReference> {
  const make = async (scorer: Scorer, adapterDir: string | null, owned: Disposable | null = null) => {
    const store = cache === 'disk' ? await ReferenceStore.open(scorer.model, adapterDir) : null;
    return new PolicyReference(scorer, cache !== false, maxTokens, owned, store);
  };
  if (name === 'base') return make({ model, bank: null, adapter: -1 }, null);
  if (existsSync(join(name, 'adapter_config.json'))) {
    const bank = await Bank.fromPeft(model.shape, [{ name: 'reference', dir: name, trainable: false }]);
    return make({ model, bank, adapter: 0 }, name);
  }
  const { dtype, device, threads } = options;
  const other = await Model.load(name, { dtype, device, threads });
  if (other.config.vocabSize !== model.config.vocabSize)
    throw new PluralignError(
      'BAD_CONFIG',
      `loss.reference: ${name} has a vocabulary of ${other.config.vocabSize}, the model ${model.config.vocabSize}; they must share a tokenizer`,
    );
  return make({ model: other, bank: null, adapter: -1 }, null, other);
}
