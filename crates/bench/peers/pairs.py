"""DPO and reward models: TRL's trainers, in their own loop.

What differs from TRL's defaults: no checkpointing of activations (it would cost a third more time), precision and logits as the way
says, a constant learning rate, a record of every step that goes nowhere, and batches in the order that both sides share.
"""

import datasets
import torch
import ways
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch.utils.data import SequentialSampler
from transformers import LlamaForSequenceClassification, PreTrainedTokenizerFast, TrainerCallback
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer

END = 3


def load(work, material):
    return Pairs(work, material)


def words(ids):
    return " ".join(f"t{token}" for token in ids)


def tokenizer(vocabulary):
    """Tells words `t17` from each other, so that a text is exactly the ids that it was made of."""
    named = {0: "<pad>", 1: "<unk>", END: "<end>"}
    model = WordLevel({named.get(token, f"t{token}"): token for token in range(vocabulary)}, unk_token="<unk>")
    own = Tokenizer(model)
    own.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=own, pad_token="<pad>", unk_token="<unk>", eos_token="<end>")


class InOrder:
    """A trainer that sees its examples in the order in which they are given, and keeps the last loss."""

    def _get_train_sampler(self, train_dataset=None):
        return SequentialSampler(train_dataset or self.train_dataset)

    def training_step(self, *arguments, **named):
        self.last_loss = super().training_step(*arguments, **named)
        return self.last_loss


class InOrderDPO(InOrder, DPOTrainer):
    pass


class InOrderReward(InOrder, RewardTrainer):
    pass


class Asking(TrainerCallback):
    """Asks before each step, with the logs of the one before."""

    def __init__(self, turns, job):
        self.turns, self.job, self.logs = turns, job, {}

    def on_log(self, args, state, control, logs, **_):
        self.logs = logs

    def on_step_begin(self, args, state, control, **_):
        made = None
        if state.global_step > 0:
            values = {name: value for name, value in self.logs.items() if isinstance(value, float)}
            # What the settings say is no result, and tokens are counted otherwise where a prompt is computed once.
            for name in ("learning_rate", "num_tokens"):
                values.pop(name, None)
            # The loss of the logs is rounded to four places.
            values["loss"] = self.job.trainer.last_loss.item()
            made = {"tokens": self.job.tokens[state.global_step - 1], "values": values}
        self.turns.begin(made)


class Pairs:
    def __init__(self, work, material):
        self.task, self.way, numbers = work["task"], work["way"], work["numbers"]
        self.compute = ways.compute_kind(self.way)
        self.pairs, self.batches = material["pairs"], material["batches"]
        self.tokens = [sum(map(self.length, batch)) for batch in self.batches]
        settings = dict(
            output_dir=work["scratch"],
            per_device_train_batch_size=work["batch"],
            max_steps=len(self.batches),
            learning_rate=numbers["lr"],
            lr_scheduler_type="constant",
            weight_decay=0.0,
            max_grad_norm=1.0,
            optim="adamw_torch_fused",
            gradient_checkpointing=False,
            bf16="autocast" in self.way,
            use_cpu=True,
            dataloader_pin_memory=False,
            logging_steps=1,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            seed=5,
        )
        ordered = [self.pairs[at] for batch in self.batches for at in batch]
        (self.dpo if self.task == "dpo" else self.reward)(work, ordered, settings)
        self.trainer.remove_callback(next(iter(c for c in self.trainer.callback_handler.callbacks if "Printer" in type(c).__name__)))
        self.model = self.trainer.model

    def length(self, at):
        pair = self.pairs[at]
        return 2 * len(pair["prompt"]) + len(pair["chosen"]) + len(pair["rejected"])

    def dpo(self, work, ordered, settings):
        # TRL appends the end token itself.
        rows = [
            {"prompt": words(one["prompt"]), "chosen": words(one["chosen"][:-1]), "rejected": words(one["rejected"][:-1])}
            for one in ordered
        ]
        model = ways.causal_model(work["model"], self.way)
        self.trainer = InOrderDPO(
            model=model,
            ref_model=ways.causal_model(work["reference"], self.way),
            args=DPOConfig(
                beta=work["numbers"]["beta"],
                precompute_ref_log_probs="precomputed" in self.way,
                use_logits_to_keep="completion_logits" in self.way,
                precompute_ref_batch_size=work["batch"],
                **settings,
            ),
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=tokenizer(model.config.vocab_size),
        )

    def reward(self, work, ordered, settings):
        rows = [
            {"chosen_input_ids": one["prompt"] + one["chosen"], "rejected_input_ids": one["prompt"] + one["rejected"]}
            for one in ordered
        ]
        model = LlamaForSequenceClassification.from_pretrained(
            work["model"], num_labels=1, dtype=ways.weight_kind(self.way), attn_implementation="sdpa"
        )
        self.trainer = InOrderReward(
            model=model,
            args=RewardConfig(**settings),
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=tokenizer(model.config.vocab_size),
        )

    def first(self):
        """The first batch as the trainer itself would see it."""
        batch = next(iter(self.trainer.get_train_dataloader()))
        if self.task == "reward":
            rows = [row for both in zip(*batch["input_ids"].chunk(2)) for row in both]
            masks = [row for both in zip(*batch["attention_mask"].chunk(2)) for row in both]
            rows = [row[mask == 1].tolist() for row, mask in zip(rows, masks)]
            return rows, sum(len(pair["chosen"]) + len(pair["rejected"]) for pair in (self.pairs[at] for at in self.batches[0]))
        real = lambda name: [row[mask == 1].tolist() for row, mask in zip(batch[f"{name}_input_ids"], batch[f"{name}_attention_mask"])]
        prompts, chosen, rejected = real("prompt"), real("chosen"), real("rejected")
        rows = [prompt + side for prompt, *both in zip(prompts, chosen, rejected) for side in both]
        return rows, sum(map(len, chosen)) + sum(map(len, rejected))

    def run(self, turns):
        self.trainer.add_callback(Asking(turns, self))
        self.trainer.train()
        raise RuntimeError("asked for more steps than there are batches")
