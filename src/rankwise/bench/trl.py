"""The baselines of language models: TRL's `SFTTrainer`, with PEFT's LoRA and fully, at the settings that are fastest on this machine.

Settings: no gradient checkpointing, fused AdamW, bfloat16 autocast. Contenders differ in two settings, and the fastest counts: batches
are padded with rows of similar length, or flattened into one sequence; the frozen base is in float32 or in the run's number type. The
completions' tokens have labels. Nothing is saved or evaluated. All repeats are one real `SFTTrainer.train()` that waits between turns.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import TaskType
from trl import SFTConfig, SFTTrainer

from rankwise.bench import architectures
from rankwise.bench.baselines import AfterStep, arguments, padder, with_peft_lora
from rankwise.bench.config import BenchConfig
from rankwise.bench.lengths import length_grouped
from rankwise.engine.batches import batch_order
from rankwise.tasks.encoding import Encoded
from rankwise.tasks.labels import IGNORED


def build_runner(
    config: BenchConfig, *, lora: bool, padding_free: bool = False, float32_base: bool = True
) -> "TrlRunner":
    """Build the model.

    Args:
        config: resolved, so device and dtype are named.
        lora: PEFT's LoRA on the layers that ours adapts; otherwise full fine-tuning.
        padding_free: rows of a batch are one sequence, kept apart by their positions.
        float32_base: weights are in float32, under autocast. Otherwise the frozen ones are in the run's number type.
    """
    dtype = torch.float32 if float32_base else getattr(torch, config.dtype)
    model: Any = architectures.build(config, dtype=dtype, attention="sdpa")
    if lora:
        model = with_peft_lora(model, config.rank, TaskType.CAUSAL_LM)
    return TrlRunner(config, model, padding_free)


@dataclass(frozen=True)
class TrlRunner:
    """A language model trained by TRL's SFTTrainer; a `Runner`."""

    config: BenchConfig
    model: Any
    padding_free: bool

    def order(self, lengths: np.ndarray, seed: int) -> list[np.ndarray]:
        """Return batches of similar length, or in random order where nothing is padded."""
        if self.padding_free:
            return batch_order(lengths, self.config.batch_size, seed=seed)
        return length_grouped(lengths, self.config.batch_size, seed)

    def train(self, rows: Encoded, batches: list[np.ndarray], after_step: Callable[[], None]) -> None:
        """Run one `SFTTrainer.train()` over all batches."""
        with tempfile.TemporaryDirectory() as folder:
            asked = SFTConfig(
                **arguments(self.config, folder),
                max_length=None,
                padding_free=self.padding_free,
                gradient_checkpointing=False,
                dataset_kwargs={"skip_prepare_dataset": True},
            )
            SFTTrainer(
                self.model,
                asked,
                train_dataset=_examples(rows, np.concatenate(batches)),
                processing_class=padder(self.model.config.pad_token_id),
                callbacks=[AfterStep(after_step)],
            ).train()


def _examples(rows: Encoded, order: np.ndarray) -> Dataset:
    """Return rows as SFTTrainer takes them, in the order given: the label of a token is the token itself where it counts."""
    assert rows.token_labels is not None
    ids, labels = [], []
    for row in order:
        tokens = slice(rows.offsets[row], rows.offsets[row + 1])
        ids.append(rows.input_ids[tokens].tolist())
        labels.append([IGNORED, *rows.token_labels[tokens][:-1].tolist()])
    return Dataset.from_dict({"input_ids": ids, "labels": labels})
