"""The baselines: Transformers' Trainer, with and without PEFT's LoRA, at its best stock settings.

Settings: dynamic padding, batches of rows of similar length, fused AdamW, bfloat16 autocast. The variant padded to 128 tokens
has autocast too, although `run_glue` defaults to float32. Nothing is logged, saved or evaluated. All repeats are one real
`Trainer.train()` that waits between turns.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, TaskType, get_peft_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    DataCollatorWithPadding,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
)

from rankwise.bench import architectures
from rankwise.bench.config import BenchConfig
from rankwise.bench.lengths import length_grouped
from rankwise.lora.inject import find_targets
from rankwise.tasks.encoding import Encoded


def build_runner(
    config: BenchConfig, *, lora: bool, attention: str | None = None, pad_to: int | None = None
) -> "TrainerRunner":
    """Build the model in float32, which Trainer runs under autocast.

    Args:
        config: resolved, so device and dtype are named.
        lora: PEFT's LoRA on the layers that ours adapts; otherwise full fine-tuning.
        attention: `sdpa` or `eager`. Default: Transformers' own choice.
        pad_to: pad every row to this many tokens beforehand, as `run_glue` does by default.
    """
    if (
        config.device == "cuda"
    ):  # cuDNN's attention plans anew for every shape of a batch, which takes most of the time
        torch.backends.cuda.enable_cudnn_sdp(False)
    model: Any = architectures.build(config, dtype=torch.float32, attention=attention)
    if lora:
        model = with_peft_lora(model, config.rank, TaskType.SEQ_CLS)
    return TrainerRunner(config, model, pad_to)


def with_peft_lora(model: Any, rank: int, task_type: TaskType) -> Any:
    """Return a model with PEFT's LoRA in the layers that ours adapts, alpha twice the rank."""
    adapter = LoraConfig(task_type=task_type, r=rank, lora_alpha=2 * rank, target_modules=find_targets(model))
    return get_peft_model(model, adapter)


@dataclass(frozen=True)
class TrainerRunner:
    """A model trained by Transformers' Trainer; a `Runner`."""

    config: BenchConfig
    model: Any
    pad_to: int | None

    def order(self, lengths: np.ndarray, seed: int) -> list[np.ndarray]:
        """Return batches as Trainer orders a large data set: by similar length, or at random where all rows have one length."""
        if not self.pad_to:
            return length_grouped(lengths, self.config.batch_size, seed)
        order = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(seed)).numpy()
        return [order[i : i + self.config.batch_size] for i in range(0, len(order), self.config.batch_size)]

    def train(self, rows: Encoded, batches: list[np.ndarray], after_step: Callable[[], None]) -> None:
        """Run one `Trainer.train()` over all batches."""
        pad_token_id = self.model.config.pad_token_id
        examples: Any = _examples(rows, np.concatenate(batches), self.pad_to, pad_token_id)
        collator = default_data_collator if self.pad_to else DataCollatorWithPadding(padder(pad_token_id))
        with tempfile.TemporaryDirectory() as folder:
            asked = TrainingArguments(**arguments(self.config, folder))
            callbacks: Any = [AfterStep(after_step)]
            Trainer(self.model, asked, collator, train_dataset=examples, callbacks=callbacks).train()


def arguments(config: BenchConfig, folder: str) -> dict[str, Any]:
    """Return the settings that all baselines share, as `TrainingArguments` and TRL's `SFTConfig` take them."""
    return {
        "output_dir": folder,
        "num_train_epochs": 1,
        "per_device_train_batch_size": config.batch_size,
        "train_sampling_strategy": "sequential",  # `TrainerRunner.order` has grouped the rows
        "learning_rate": 1e-4,
        "bf16": config.dtype == "bfloat16",
        "use_cpu": config.device == "cpu",
        "seed": config.seed,
        "eval_strategy": "no",
        "save_strategy": "no",
        "logging_strategy": "no",
        "logging_nan_inf_filter": False,
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "dataloader_pin_memory": False,
    }


class AfterStep(TrainerCallback):
    """Calls a function after each optimizer step."""

    def __init__(self, after_step: Callable[[], None]) -> None:
        self._after_step = after_step

    def on_step_end(self, *arguments: Any, **more: Any) -> None:
        self._after_step()


def _examples(
    rows: Encoded, order: np.ndarray, pad_to: int | None, pad_token_id: int
) -> list[dict[str, Any]]:
    """Return rows as Trainer takes them, in the order given."""
    labels = rows.labels if rows.labels is not None else np.zeros(len(rows), dtype=np.int64)
    examples = []
    for row in order:
        ids = rows.input_ids[rows.offsets[row] : rows.offsets[row + 1]].tolist()
        padding = max(0, (pad_to or 0) - len(ids))
        examples.append(
            {
                "input_ids": ids + [pad_token_id] * padding,
                "attention_mask": [1] * len(ids) + [0] * padding,
                "labels": int(labels[row]),
            }
        )
    return examples


def padder(pad_token_id: int) -> PreTrainedTokenizerFast:
    """Return a tokenizer that knows the padding token and nothing else."""
    only = Tokenizer(WordLevel({"<pad>": pad_token_id}, unk_token="<pad>"))
    padder = PreTrainedTokenizerFast(tokenizer_object=only, pad_token="<pad>", padding_side="right")
    # Its advice to use `__call__` instead of `pad` does not apply to token ids. It would appear on every run.
    padder.deprecation_warnings["Asking-to-pad-a-fast-tokenizer"] = True
    return padder
