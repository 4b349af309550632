"""Models for a measurement: loaded, or built from their architecture alone with random weights, which needs no hub."""

import json
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from rankwise.bench.config import BenchConfig
from rankwise.errors import RankwiseError, nearest
from rankwise.models import families, loading


@cache
def known() -> dict[str, dict[str, Any]]:
    """The shipped architectures: name → the fields of its published config.json that matter for size and speed."""
    return json.loads(files("rankwise.bench").joinpath("architectures.json").read_text())["models"]


def architecture(name: str) -> Any:
    """The Transformers config of a shipped architecture (`roberta-base`, `FacebookAI/roberta-base`) or of a folder.

    Raises:
        RankwiseError: there is neither.
    """
    if (Path(name) / "config.json").is_file():
        return AutoConfig.from_pretrained(name, local_files_only=True)
    key = name.rsplit("/", 1)[-1].lower()
    if key not in known():
        raise RankwiseError(
            f"No architecture is shipped under {name!r}, and it is no folder with a config.json.{nearest(key, known())}"
        )
    fields = dict(known()[key])
    return AutoConfig.for_model(fields.pop("model_type"), **fields)


def model_config(config: BenchConfig) -> Any:
    """The Transformers config a measurement is about, with a padding token and two classes."""
    found = (
        architecture(config.random_weights) if config.random_weights else loading.locate(config.model).config
    )
    if found.pad_token_id is None:  # GPT-2, Llama: any token will do, attention never sees it
        eos = found.eos_token_id
        found.pad_token_id = eos[0] if isinstance(eos, list) else (eos or 0)
    found.num_labels = 2
    return found


def longest(model_config: Any) -> int:
    """Tokens a row may have."""
    return families.position_limit(model_config) or families.SHORT


def build(config: BenchConfig, *, dtype: torch.dtype, attention: str | None = None) -> PreTrainedModel:
    """A sequence classifier to train.

    Args:
        config: says which model.
        dtype: of every weight, from the first: no float32 copy is made on the way.
        attention: `sdpa`, `eager`; default Transformers' own choice.
    """
    chosen = model_config(config)
    options: dict[str, Any] = {"dtype": dtype} | ({"attn_implementation": attention} if attention else {})
    torch.manual_seed(config.seed)
    auto: Any = AutoModelForSequenceClassification
    if config.random_weights:
        return auto.from_config(chosen, **options)
    return auto.from_pretrained(loading.locate(config.model).path, config=chosen, **options)
