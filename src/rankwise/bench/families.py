"""The model families that `rankwise models` lists: default targets, head, and whether rows are packed.

Packing depends on the installed Transformers version. It is therefore tried out, on a small model of each family with random weights.
"""

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TextIO

import torch
from rich.table import Table
from transformers import AutoConfig, AutoModelForSequenceClassification

from rankwise.console import console, text
from rankwise.engine.pack_check import can_pack
from rankwise.models.families import FAMILIES, body_and_heads
from rankwise.models.loading import quiet

SMALL: dict[str, Any] = {
    "vocab_size": 100, "max_position_embeddings": 66, "num_labels": 2,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2,
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "embedding_size": 16,
    "num_key_value_heads": 4, "head_dim": 8, "ffn_dim": 64, "word_embed_proj_dim": 32,
}  # fmt: skip
"""Sizes of a small model, under the names that the families' configs use."""


@dataclass(frozen=True)
class FamilyReport:
    """What is said about a family of sequence classifiers.

    Attributes:
        model_type: in a model's `config.json`.
        targets: layers that get an adapter by default.
        pooling: the token that the head reads: `first`, `last`, or the `mean` of all tokens.
        head: modules trained and saved whole.
        packed: rows are packed without padding.
        why: the reason where they are not, as the end of a sentence.
    """

    model_type: str
    targets: tuple[str, ...]
    pooling: str
    head: tuple[str, ...]
    packed: bool
    why: str


def families() -> Iterator[FamilyReport]:
    """Yield every known family, sorted by name."""
    for model_type in sorted(FAMILIES):
        yield family(model_type)


def family(model_type: str) -> FamilyReport:
    """Describe a family, after trying whether its rows can be packed."""
    with quiet(), warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # about sizes that no published model has
        torch.manual_seed(0)
        config = AutoConfig.for_model(model_type, **SMALL)
        model = AutoModelForSequenceClassification.from_config(config)
        for parameter in model.parameters():  # biases of a new model are zero, and would hide an error
            parameter.data.add_(0.05 * torch.randn_like(parameter))
        packed, why = can_pack(model)
    mean = getattr(config, "classifier_pooling", "cls") == "mean"
    pooling = "last" if hasattr(model, "score") else "mean" if mean else "first"
    targets = FAMILIES[model_type].query_value
    return FamilyReport(model_type, targets, pooling, tuple(body_and_heads(model)[1]), packed, why)


def show(known: Iterable[FamilyReport], file: TextIO) -> None:
    """Print a table of families, then why some are padded."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("family", "default targets", "head on", "head", "rows"):
        table.add_column(column, no_wrap=column == "family")
    padded = []
    for entry in known:
        token = "mean of all tokens" if entry.pooling == "mean" else f"{entry.pooling} token"
        rows = "packed" if entry.packed else "padded"
        cells = (entry.model_type, ", ".join(entry.targets), token, ", ".join(entry.head), rows)
        table.add_row(*map(text, cells))
        if not entry.packed:
            padded.append(f"{entry.model_type} is padded: {entry.why.rstrip('.')}.")
    shown = console(file)
    shown.print(table)
    for line in padded:
        shown.print(text(line))
