"""Options, rows, timing and the printed JSON that both TRL peers share. Import it before torch: it sets the threads.

Rows are tokenised here, prompt and completion apart, so that both sides of a comparison train on the same ids.
"""
import argparse
import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path


def parse(description):
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('--model', required=True, help='Hugging Face folder')
    parser.add_argument('--rows', required=True, help='jsonl of prompt, chosen, rejected, in training order')
    parser.add_argument('--batch', type=int, default=8, help='pairs a step')
    parser.add_argument('--steps', type=int, default=20, help='steps that are timed')
    parser.add_argument('--warmup', type=int, default=3, help='steps before the clock starts')
    parser.add_argument('--dtype', default='float32', choices=['float32', 'bf16'])
    parser.add_argument('--autocast', action='store_true', help='bf16 by autocast as well as in the weights')
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--rank', type=int, default=16)
    parser.add_argument('--learning-rate', type=float, default=1e-4)
    parser.add_argument('--beta', type=float, default=0.1)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--max-length', type=int, default=512, help='longer rows are left out')
    parser.add_argument('--precompute-reference', action='store_true')
    parser.add_argument('--gradient-checkpointing', action='store_true')
    options = parser.parse_args()
    for name in ('OMP_NUM_THREADS', 'MKL_NUM_THREADS'):
        os.environ[name] = str(options.threads)
    os.environ.update(TQDM_DISABLE='1', TRANSFORMERS_VERBOSITY='error', TOKENIZERS_PARALLELISM='false',
                      HF_HUB_OFFLINE='1', HF_DATASETS_OFFLINE='1', CUDA_VISIBLE_DEVICES='', WANDB_DISABLED='true')
    import torch
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    return options


def encoded_rows(options, tokenizer):
    """Enough pairs for every step, as prompt_ids, chosen_ids, rejected_ids."""
    import oracle

    need, rows = options.batch * (options.warmup + options.steps), []
    with open(options.rows, encoding='utf-8') as lines:
        for line in lines:
            row = json.loads(line)
            prompt, chosen = oracle.encode(tokenizer, row['prompt'], row['chosen'])
            rejected = oracle.encode(tokenizer, row['prompt'], row['rejected'])[1]
            if len(prompt) + max(len(chosen), len(rejected)) <= options.max_length:
                rows.append(dict(prompt_ids=prompt, chosen_ids=chosen, rejected_ids=rejected))
            if len(rows) == need:
                return rows
    sys.exit(f'{options.rows}: {len(rows)} rows of at most {options.max_length} tokens, expected {need}; '
             'give more rows, or fewer --steps')


def training_options(options, folder):
    """What DPOConfig and RewardConfig have in common. Constant rate, no clipping, rows in order."""
    return dict(
        output_dir=str(folder), max_steps=options.warmup + options.steps, per_device_train_batch_size=options.batch,
        gradient_accumulation_steps=1, learning_rate=options.learning_rate, lr_scheduler_type='constant',
        max_grad_norm=0.0, weight_decay=0.0, train_sampling_strategy='sequential', seed=options.seed, use_cpu=True,
        bf16=options.autocast, gradient_checkpointing=options.gradient_checkpointing, logging_steps=1,
        save_strategy='no', report_to='none', disable_tqdm=True, dataloader_num_workers=0, dataloader_pin_memory=False,
        max_length=None)


def lora(options, task):
    from peft import LoraConfig

    return LoraConfig(r=options.rank, lora_alpha=2 * options.rank, lora_dropout=0.0, bias='none', task_type=task,
                      target_modules='all-linear')


def dtype(options):
    import torch

    return torch.bfloat16 if options.dtype == 'bf16' else torch.float32


def train(trainer):
    """Trains with nothing of the trainer's own on stdout."""
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    trainer.train()


def stopwatch(warmup):
    """A callback that keeps the end of every step."""
    from transformers import TrainerCallback

    class Stopwatch(TrainerCallback):
        def __init__(self):
            self.ends = []

        def on_train_begin(self, args, state, control, **_):
            self.ends = [time.perf_counter()]

        def on_step_end(self, args, state, control, **_):
            self.ends.append(time.perf_counter())

        @property
        def seconds(self):
            return self.ends[-1] - self.ends[warmup]

    return Stopwatch()


def report(options, rows, seconds, trainer, **more):
    """One JSON object on stdout. Tokens count a pair's prompt twice, as the peer computes it."""
    import peft
    import torch
    import transformers
    import trl

    timed = rows[options.batch * options.warmup:]
    mean = lambda key: sum(len(r[key]) for r in rows) / len(rows)
    lengths = [len(r['prompt_ids']) + len(r[key]) for r in timed for key in ('chosen_ids', 'rejected_ids')]
    tokens, width = sum(lengths), 2 * options.batch
    # a step's completions are padded to the longest of them
    padded = sum(width * max(lengths[i:i + width]) for i in range(0, len(lengths), width))
    print(json.dumps(dict(
        pairs_per_s=len(timed) / seconds, tokens_per_s=tokens / seconds,
        peak_rss_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, seconds=seconds,
        losses=[entry['loss'] for entry in trainer.state.log_history if 'loss' in entry],
        mean_tokens=dict(prompt=mean('prompt_ids'), chosen=mean('chosen_ids'), rejected=mean('rejected_ids')),
        prefix_share=sum(len(r['prompt_ids']) for r in timed) / tokens, padding_share=1 - tokens / padded,
        trainable_parameters=sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        versions=dict(python=sys.version.split()[0], torch=torch.__version__, transformers=transformers.__version__,
                      peft=peft.__version__, trl=trl.__version__), **more)))


def scratch():
    """A folder for what the trainer insists on writing."""
    return Path(tempfile.mkdtemp(prefix='trl-'))
