"""TRL's RewardTrainer with a PEFT adapter and head on the CPU: pairs a second, memory and losses as one JSON object."""
import shutil

import trl_common as common


def main():
    options = common.parse(__doc__)
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification
    from trl import RewardConfig, RewardTrainer

    import oracle

    tokenizer = oracle.load_tokenizer(options.model)
    rows = common.encoded_rows(options, tokenizer)
    whole = [dict(chosen_ids=r['prompt_ids'] + r['chosen_ids'], rejected_ids=r['prompt_ids'] + r['rejected_ids'])
             for r in rows]
    folder = common.scratch()
    try:
        model = AutoModelForSequenceClassification.from_pretrained(options.model, num_labels=1,
                                                                   dtype=common.dtype(options))
        model.config.pad_token_id = tokenizer.pad_token_id
        clock = common.stopwatch(options.warmup)
        trainer = RewardTrainer(
            model=model, train_dataset=Dataset.from_list(whole), processing_class=tokenizer,
            peft_config=common.lora(options, 'SEQ_CLS'), callbacks=[clock],
            args=RewardConfig(**common.training_options(options, folder)))
        common.train(trainer)
        common.report(options, rows, clock.seconds, trainer)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == '__main__':
    main()
