"""The training to plan for: a model, its adapters and its optimizer, made as a run makes them but with random weights."""

import copy
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch

from rankwise.bench import architectures
from rankwise.bench.lengths import labelled, random_rows
from rankwise.config import LoraOptions, RunConfig, TrainOptions
from rankwise.engine import token_losses
from rankwise.engine.batch_schedule import GivenBatches
from rankwise.engine.compute import Compute, Padding
from rankwise.engine.pack_check import can_pack
from rankwise.engine.processes import ONE, Group, Processes
from rankwise.engine.training import Training
from rankwise.lora import quantized
from rankwise.lora.layer import lora_layers
from rankwise.models import loading
from rankwise.rank.controller import RankController
from rankwise.runs.methods import METHODS
from rankwise.tasks.encoding import Encoded


@dataclass(frozen=True)
class Setting:
    """What is trained.

    Attributes:
        architecture: a Transformers config.
        method: `full`, `lora` or `adaptive`.
        rank: r of every adapter. With `adaptive` a layer has at most the rank its shape allows.
        dtype: of frozen weights and of matrix products.
        padding: `packed` or `longest`.
        micro_batches: that run side by side.
        targets: layers that get an adapter. Default: the family's query and value.
        base_bits: frozen linear layers in 8 or 4 bits. Full fine-tuning has none.
        problem: `classification`, `generation` or `tokens`.
        task: of a language model, whose rows say how many of their tokens are learned; see `lengths.labelled`.
        plain_head: of a language model, see `has_plain_head`.
        processes: that train together.
        shard: they share out the weights of the layers, see `engine.sharding`.
    """

    architecture: Any
    method: str
    rank: int
    dtype: torch.dtype
    padding: Padding
    micro_batches: int = 1
    targets: tuple[str, ...] = ()
    base_bits: int | None = None
    problem: str = "classification"
    task: str = ""
    plain_head: bool = False
    processes: int = 1
    shard: bool = False


class Imagined(Group):
    """One of the processes of a plan. It takes its share of each batch and has the buffer that is sent; nothing is sent."""

    def add_up(self, holders: Sequence[torch.Tensor], loss: float) -> float:
        self._allocate(holders)
        return loss

    def add_number(self, number: torch.Tensor) -> torch.Tensor:
        return number


def draw_rows(setting: Setting, lengths: np.ndarray) -> Encoded:
    """Return rows of these lengths in tokens, of random tokens, with the labels that the setting's problem has."""
    rng = np.random.default_rng(0)
    if setting.problem == "generation":
        return random_rows(lengths, setting.architecture, rng, labelled(setting.task, lengths))
    rows = random_rows(lengths, setting.architecture, rng)
    if setting.problem == "tokens":
        tags = rng.integers(0, setting.architecture.num_labels, size=int(lengths.sum()))
        rows = replace(rows, labels=None, token_labels=tags)
    return rows


def build_training(
    setting: Setting, processes: Processes = ONE, ready: Callable[[Any], None] = lambda model: None
) -> Training:
    """Build what a run has once its model is loaded, with one row to train on.

    Args:
        setting: what is trained.
        processes: that train together.
        ready: called with the model before it is run.
    """
    model = _build_model(setting)
    ready(model)
    compute = Compute.for_model(
        model,
        dtype=setting.dtype,
        frozen_base=METHODS[setting.method].frozen_base,
        padding=setting.padding,
        verify=False,
        max_length=architectures.longest(setting.architecture, setting.problem),
        pad_id=setting.architecture.pad_token_id,
        threads=1,
        processes=processes,
    )
    compute = replace(compute, plain_head=setting.plain_head)
    options = TrainOptions(
        epochs=1, batch_size=1, accumulate=setting.micro_batches * processes.count, lr=1e-4, optimizer="adamw", schedule="constant",
        warmup=0.0, weight_decay=0.0, clip=1.0,
    )  # fmt: skip
    rows = draw_rows(setting, np.array([2]))
    batches = GivenBatches(
        [np.arange(1)], sys.maxsize
    )  # no step is the last, in which adapters get their final form
    training = Training(model, rows, options=options, compute=compute, seed=0, batches=batches)
    if setting.method == "adaptive":  # collects statistics; no rank check is due in a step
        same = None if processes.count == 1 else processes.check_same
        training.rank = controller = RankController(
            model, torch.Tensor, sys.maxsize, training.update, same_everywhere=same
        )
        for path, layer in controller.layers.items():
            controller.statistics.sums[path] = torch.zeros_like(cast(torch.Tensor, layer.statistics))
    return training


def _build_model(setting: Setting) -> Any:
    """Build the model with random weights, its adapters and its frozen layers in few bits."""
    method = METHODS[setting.method]
    auto, _ = loading.AUTO[architectures.task_type(setting.problem)]
    dtype = setting.dtype if method.frozen_base else torch.float32
    model = auto.from_config(setting.architecture, dtype=dtype)
    adaptive = setting.method == "adaptive"
    lora = LoraOptions(rank=None if adaptive else setting.rank, targets=setting.targets)
    method.prepare(model, RunConfig(lora=lora), [])
    for layer in lora_layers(model).values() if adaptive else ():
        layer.collect_statistics(False)  # until the layer has its rank
        rank = min(setting.rank, layer.in_features, layer.out_features)
        layer.resize(
            layer.lora_A.new_zeros(rank, layer.in_features), layer.lora_B.new_zeros(layer.out_features, rank)
        )
    if setting.base_bits is not None and method.frozen_base:
        quantized.quantize(model, setting.base_bits)
    return model


def can_be_packed(architecture: Any, problem: str = "classification") -> bool:
    """Say whether models of this architecture can be trained packed, by trying it on a small one (`can_pack`)."""
    return _try(architecture, problem, lambda model: can_pack(model)[0])


def has_plain_head(architecture: Any) -> bool:
    """Say whether losses of language models of this architecture can be computed in pieces, by trying it on a small one."""
    return _try(architecture, "generation", token_losses.has_plain_head)


def _try(architecture: Any, problem: str, holds: Callable[[Any], bool]) -> bool:
    small = with_layers(architecture, 2)
    for name, most in (("intermediate_size", 64), ("vocab_size", 1000)):
        if isinstance(getattr(small, name, None), int):
            setattr(small, name, min(most, getattr(small, name)))
    small.pad_token_id = min(small.pad_token_id, 1)
    with torch.random.fork_rng(devices=[]), loading.quiet():
        try:
            auto, _ = loading.AUTO[architectures.task_type(problem)]
            return holds(auto.from_config(small).eval())
        except Exception:  # a model that is so small may fail anywhere; planning the whole one says why
            return False


def with_layers(architecture: Any, layers: int) -> Any:
    """Return the same architecture with its first `layers` layers only."""
    few = copy.deepcopy(architecture)
    few.num_hidden_layers = layers
    if getattr(few, "layer_types", None):
        few.layer_types = few.layer_types[:layers]
    return few
