"""Writes the parity fixtures of test/fixtures with real transformers + PEFT: tiny random models, a random adapter,
rows, and float64 golden numbers. test/fixtures/README.md says what is in each file.

usage: make_fixtures.py [OUT] [NAME…]      OUT: test/fixtures unless given; NAME: only these
"""
import json
import re
import shutil
import sys
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedTokenizerFast

import oracle
from fixture_specs import SPECS

BETA, RATE, STEPS = 0.1, 1e-3, 3
MERGES = ['Ġ t', 'h e', 'Ġt he', 'Ġ s', 'Ġ a', 'i n', 'n d', 'Ġa nd', 'o r', 'a t', 'Ġ w', 'r e', 'e r', 'o n', 'Ġ b',
          'l l']
WORDS = 'the rain and a red bird sat near old water while some warm wind ran over the hill to sea'.split()


def write_tokenizer(folder, bos):
    vocabulary = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    for merge in MERGES:
        vocabulary[merge.replace(' ', '')] = len(vocabulary)
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[tuple(m.split(' ')) for m in MERGES]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    special = dict(bos_token='<s>') if bos else {}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token='</s>', pad_token='<pad>', **special)
    tokenizer.save_pretrained(folder)
    path = folder / 'tokenizer.json'
    path.write_text(json.dumps(json.loads(path.read_text()), ensure_ascii=False, separators=(',', ':')))
    return tokenizer


def edit_json(path, change):
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + '\n')


def to_old_keys(config):
    """config.json as transformers 4 wrote it."""
    config['torch_dtype'] = config.pop('dtype')
    config['rope_theta'] = config.pop('rope_parameters')['rope_theta']
    config['rope_scaling'] = None
    config['transformers_version'] = '4.41.2'
    config.pop('head_dim', None)


def randomise(named, generator, scale):
    with torch.no_grad():
        for name, p in named:
            noise = torch.randn(p.shape, generator=generator)
            p.copy_(noise * (scale if p.dim() == 2 else 0.2) + (1.0 if p.dim() == 1 and 'norm' in name else 0.0))


def write_model(spec, folder):
    tokenizer = write_tokenizer(folder, spec.bos)
    eos = tokenizer.eos_token_id
    # Qwen names a bos_token_id in config.json that its tokenizer does not have; the tokenizer decides.
    ids = dict(bos_token_id=tokenizer.bos_token_id if spec.bos else eos, eos_token_id=eos,
               pad_token_id=tokenizer.pad_token_id)
    config = spec.config(vocab_size=280, **ids, **spec.model)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(spec.seed)
    randomise(model.named_parameters(), generator, 0.2)
    model.to(spec.dtype).save_pretrained(folder, **(dict(max_shard_size=spec.shards) if spec.shards else {}))
    if spec.old_keys:
        edit_json(folder / 'config.json', to_old_keys)
    edit_json(folder / 'config.json', lambda config: config.update(spec.extra_config))
    if spec.only_lm_head:
        weights = load_file(folder / 'model.safetensors')
        weights['lm_head.weight'] = weights.pop('model.embed_tokens.weight')
        save_file(weights, folder / 'model.safetensors', metadata={'format': 'pt'})
    return tokenizer


def tidy_adapter(config):
    # No path of this machine; a set has no order of its own, so that two runs write the same file.
    config['base_model_name_or_path'] = None
    if isinstance(config['target_modules'], list):
        config['target_modules'].sort()


def save_adapter(model, folder):
    model.save_pretrained(folder)
    (folder / 'README.md').unlink(missing_ok=True)
    edit_json(folder / 'adapter_config.json', tidy_adapter)


def write_adapter(spec, model_folder, folder):
    rewards = spec.method == 'reward'
    make = AutoModelForSequenceClassification if rewards else AutoModelForCausalLM
    base = make.from_pretrained(model_folder, dtype=torch.float32, **(dict(num_labels=1) if rewards else {}))
    task = 'SEQ_CLS' if rewards else 'CAUSAL_LM'
    model = get_peft_model(base, LoraConfig(lora_dropout=0.0, bias='none', task_type=task, **spec.lora))
    generator = torch.Generator().manual_seed(spec.seed + 1)
    randomise([(n, p) for n, p in model.named_parameters() if p.requires_grad], generator, 0.1)
    save_adapter(model, folder)


def make_rows(seed):
    generator = torch.Generator().manual_seed(seed + 2)
    text = lambda n: ' '.join(WORDS[int(i)] for i in torch.randint(len(WORDS), (n,), generator=generator))
    rows = [dict(prompt=text(1 + i), chosen=' ' + text(1 + (i * 2) % 3), rejected=' ' + text(1 + (i + 1) % 3),
                 annotator=f'u{i % 3}') for i in range(5)]
    return rows + [dict(prompt='Où est la mer ?', chosen=' là-bas 🌊', rejected=' ¿quién?', annotator='u2')]


def train(model, loss_of):
    """Three AdamW steps; losses, gradient norms, and the norm of every tensor's gradient in the first step."""
    params = oracle.trainable_by_file_name(model)
    optimizer = torch.optim.AdamW(params.values(), lr=RATE, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    out = dict(losses=[], grad_norms=[])
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = loss_of()
        loss.backward()
        norms = {name: p.grad.double().norm().item() for name, p in params.items()}
        out['losses'].append(loss.item())
        out['grad_norms'].append(sum(n * n for n in norms.values()) ** 0.5)
        if step == 0:
            out['grad_norm_by_tensor'] = norms
        optimizer.step()
    return out, {name: p.detach().double().clone() for name, p in params.items()}


def pair_goldens(model, pairs, numbers):
    """Scores of the untrained adapter and the base, then three DPO steps on all rows."""
    rows, tokens = [], []
    with torch.no_grad():
        for prompt, chosen, rejected in pairs:
            policy = [oracle.token_logps(model, prompt, c) for c in (chosen, rejected)]
            with model.disable_adapter():
                base = [oracle.token_logps(model, prompt, c) for c in (chosen, rejected)]
            names = ('logp_chosen', 'logp_rejected', 'ref_logp_chosen', 'ref_logp_rejected')
            rows.append({n: v.sum().item() for n, v in zip(names, policy + base)})
            tokens.append({n: v.tolist() for n, v in zip(names, policy + base)})

    def loss():
        losses = []
        for (prompt, chosen, rejected), r in zip(pairs, rows):
            ratio = [oracle.token_logps(model, prompt, c).sum() - r[n]
                     for c, n in ((chosen, 'ref_logp_chosen'), (rejected, 'ref_logp_rejected'))]
            losses.append(-torch.nn.functional.logsigmoid(BETA * (ratio[0] - ratio[1])))
        return torch.stack(losses).mean()

    steps, trained = train(model, loss)
    return dict(rows=rows, beta=BETA, lr=RATE, steps=STEPS, **steps, **numbers, token_logps=tokens), trained


def reward_goldens(model, pairs, numbers):
    """Rewards of the untrained adapter, then three Bradley–Terry steps; the head is trained too."""
    with torch.no_grad():
        rows = [dict(reward_chosen=oracle.reward(model, prompt, chosen).item(),
                     reward_rejected=oracle.reward(model, prompt, rejected).item())
                for prompt, chosen, rejected in pairs]

    def loss():
        margins = [oracle.reward(model, p, c) - oracle.reward(model, p, r) for p, c, r in pairs]
        return -torch.nn.functional.logsigmoid(torch.stack(margins)).mean()

    steps, trained = train(model, loss)
    return dict(rows=rows, lr=RATE, steps=STEPS, **steps, **numbers), trained


def sft_goldens(model, pairs):
    """Three steps on the chosen completions: the sum of −log p over all completion tokens by their number."""
    def loss():
        return -torch.cat([oracle.token_logps(model, prompt, chosen) for prompt, chosen, _ in pairs]).mean()

    steps, trained = train(model, loss)
    return dict(lr=RATE, steps=STEPS, **steps), trained


def deviation(gold, single, trained, single_trained):
    """How far the same program in float32 is from float64: the yardstick for the tolerances."""
    scores = [abs(a[k] - b[k]) for a, b in zip(gold['rows'], single['rows']) for k in a]
    norms = [abs(a - single['grad_norm_by_tensor'][n]) / a for n, a in gold['grad_norm_by_tensor'].items() if a > 0]
    drift = [trained[n] - single_trained[n] for n in trained]
    return dict(score=max(scores), loss=max(abs(a - b) for a, b in zip(gold['losses'], single['losses'])),
                grad_norm_relative=max(norms), adapter_rms=max(d.pow(2).mean().sqrt().item() for d in drift),
                adapter_element=max(d.abs().max().item() for d in drift))


def write_json(path, value):
    text = json.dumps(value, indent=1, ensure_ascii=False)
    # number lists on one line
    text = re.sub(r'\[\s+([-0-9.e,\s]+?)\s+\]', lambda m: '[' + re.sub(r'\s+', ' ', m[1]) + ']', text)
    path.write_text(text + '\n', encoding='utf-8')


def make(spec, folder):
    shutil.rmtree(folder, ignore_errors=True)
    model_folder, adapter = folder / 'model', folder / 'adapter'
    model_folder.mkdir(parents=True)
    tokenizer = write_model(spec, model_folder)
    write_adapter(spec, model_folder, adapter)
    rows = make_rows(spec.seed)
    lines = (json.dumps(row, ensure_ascii=False) + '\n' for row in rows)
    (folder / 'prefs.jsonl').write_text(''.join(lines), encoding='utf-8')

    pairs = []
    for row in rows:
        prompt, chosen = oracle.encode(tokenizer, row['prompt'], row['chosen'])
        pairs.append((prompt, chosen, oracle.encode(tokenizer, row['prompt'], row['rejected'])[1]))
    numbers = dict(tokens=[dict(prompt=p, chosen=c, rejected=r) for p, c, r in pairs])
    goldens = reward_goldens if spec.method == 'reward' else pair_goldens
    open_model = lambda dtype=torch.float64: oracle.load(model_folder, adapter, dtype, trainable=True)

    model = open_model()
    if spec.greedy:
        numbers['greedy'] = []
        for row in rows[1:3]:
            prompt = oracle.encode(tokenizer, row['prompt'], '')[0]
            ids, gap = oracle.greedy(model, prompt, tokenizer.eos_token_id)
            assert gap > 1e-3, f'{spec.name}: two best tokens only {gap} apart; take another seed'
            numbers['greedy'].append(dict(prompt=row['prompt'], ids=ids, smallest_gap=gap))
    gold, trained = goldens(model, pairs, numbers)
    save_adapter(model.float(), folder / 'trained')
    single, single_trained = goldens(open_model(torch.float32), pairs, {})
    gold['float32'] = deviation(gold, single, trained, single_trained)
    if spec.sft:
        model = open_model()
        gold['sft'], _ = sft_goldens(model, pairs)
        save_adapter(model.float(), folder / 'trained-sft')
    write_json(folder / 'golden.json', gold)

    size = sum(f.stat().st_size for f in folder.rglob('*') if f.is_file())
    lengths = [len(p) + len(c) for p, *both in pairs for c in both]
    print(json.dumps(dict(fixture=spec.name, bytes=size, tokens=[min(lengths), max(lengths)], losses=gold['losses'],
                          float32={k: float(f'{v:.2g}') for k, v in gold['float32'].items()})))


def main():
    torch.set_num_threads(1)
    home = Path(__file__).resolve().parents[2] / 'test' / 'fixtures'
    out, names = Path(sys.argv[1]) if len(sys.argv) > 1 else home, sys.argv[2:]
    unknown = set(names) - {s.name for s in SPECS}
    if unknown:
        sys.exit(f'no such fixture: {", ".join(sorted(unknown))}; there are {", ".join(s.name for s in SPECS)}')
    for spec in SPECS:
        if not names or spec.name in names:
            make(spec, out / spec.name)


if __name__ == '__main__':
    main()
