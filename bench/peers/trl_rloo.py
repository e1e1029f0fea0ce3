"""TRL's RLOOTrainer with a PEFT adapter on the CPU: samples a second and rewards as one JSON object."""
import argparse
import json
import os
import shutil
import tempfile
import time


def parse():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--model', required=True)
    parser.add_argument('--rows', required=True, help='jsonl of prompt')
    parser.add_argument('--batch', type=int, default=8, help='prompts a step')
    parser.add_argument('--group', type=int, default=4, help='samples of a prompt')
    parser.add_argument('--steps', type=int, default=6)
    parser.add_argument('--warmup', type=int, default=1)
    parser.add_argument('--tokens', type=int, default=48)
    parser.add_argument('--rank', type=int, default=8)
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--dtype', default='float32', choices=['float32', 'bf16'])
    parser.add_argument('--learning-rate', type=float, default=2e-3)
    options = parser.parse_args()
    for name in ('OMP_NUM_THREADS', 'MKL_NUM_THREADS'):
        os.environ[name] = str(options.threads)
    os.environ.update(TQDM_DISABLE='1', TRANSFORMERS_VERBOSITY='error', TOKENIZERS_PARALLELISM='false',
                      HF_HUB_OFFLINE='1', HF_DATASETS_OFFLINE='1', CUDA_VISIBLE_DEVICES='', WANDB_DISABLED='true')
    import torch
    torch.set_num_threads(options.threads)
    return options


def main():
    options = parse()
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback
    from trl import RLOOConfig, RLOOTrainer

    ends, cpu = [], []

    class Stopwatch(TrainerCallback):
        def on_train_begin(self, *_, **__):
            self.on_step_end()

        def on_step_end(self, *_, **__):
            ends.append(time.perf_counter())
            cpu.append(time.process_time())

    lengths = []

    def characters(completions, completion_ids, **_):
        lengths.extend(len(ids) for ids in completion_ids)
        return [float(len(text)) for text in completions]

    prompts = [json.loads(line)['prompt'] for line in open(options.rows, encoding='utf-8') if line.strip()]
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    dtype = torch.bfloat16 if options.dtype == 'bf16' else torch.float32
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=dtype)
    folder = tempfile.mkdtemp(prefix='trl-')
    try:
        trainer = RLOOTrainer(
            model=model, reward_funcs=characters, train_dataset=Dataset.from_list([dict(prompt=p) for p in prompts]),
            processing_class=tokenizer, callbacks=[Stopwatch()],
            peft_config=LoraConfig(r=options.rank, lora_alpha=2 * options.rank, lora_dropout=0.0, task_type='CAUSAL_LM',
                                   target_modules='all-linear'),
            args=RLOOConfig(
                output_dir=folder, max_steps=options.warmup + options.steps, use_cpu=True, report_to='none',
                per_device_train_batch_size=options.batch * options.group, num_generations=options.group,
                max_completion_length=options.tokens, beta=0.05, temperature=1.0, learning_rate=options.learning_rate,
                lr_scheduler_type='constant', gradient_checkpointing=False, bf16=False, save_strategy='no',
                logging_steps=1, disable_tqdm=True, dataloader_pin_memory=False))
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    seconds = ends[-1] - ends[options.warmup]
    samples = options.steps * options.batch * options.group
    rewards = [entry['reward'] for entry in trainer.state.log_history if 'reward' in entry]
    print(json.dumps(dict(samples_per_s=samples / seconds, samples_per_cpu_s=samples / (cpu[-1] - cpu[options.warmup]),
                          mean_tokens=sum(lengths) / len(lengths), rewards=rewards)))


if __name__ == '__main__':
    main()
