"""TRL's DPOTrainer with a PEFT adapter on the CPU: pairs a second, memory and losses as one JSON object."""
import shutil
import time

import trl_common as common


def main():
    options = common.parse(__doc__)
    from datasets import Dataset
    from transformers import AutoModelForCausalLM
    from trl import DPOConfig, DPOTrainer

    import oracle

    class Trainer(DPOTrainer):
        def _prepare_dataset(self, dataset, *_):
            # the rows are token ids already
            return dataset

        def _precompute_ref_logps(self, *arguments):
            start = time.perf_counter()
            out = super()._precompute_ref_logps(*arguments)
            timed['reference_seconds'] = time.perf_counter() - start
            return out

    tokenizer = oracle.load_tokenizer(options.model)
    rows = common.encoded_rows(options, tokenizer)
    folder, timed = common.scratch(), {}
    try:
        model = AutoModelForCausalLM.from_pretrained(options.model, dtype=common.dtype(options))
        clock = common.stopwatch(options.warmup)
        trainer = Trainer(
            model=model, train_dataset=Dataset.from_list(rows), processing_class=tokenizer,
            peft_config=common.lora(options, 'CAUSAL_LM'), callbacks=[clock],
            args=DPOConfig(beta=options.beta, precompute_ref_log_probs=options.precompute_reference,
                           **common.training_options(options, folder)))
        common.train(trainer)
        common.report(options, rows, clock.seconds, trainer, **timed)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == '__main__':
    main()
