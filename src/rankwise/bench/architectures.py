"""Models to measure: loaded with their weights, or built with random weights from an architecture alone, which needs no hub."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from rankwise.bench.config import BenchConfig
from rankwise.errors import RankwiseError, nearest
from rankwise.models import families, loading
from rankwise.tasks.objectives import OBJECTIVES


@cache
def known() -> dict[str, dict[str, Any]]:
    """Return the shipped architectures: name → the fields of its published config.json that decide size and speed."""
    return json.loads(files("rankwise.bench").joinpath("architectures.json").read_text())["models"]


def architecture(name: str) -> Any:
    """Return the Transformers config of a shipped architecture (`roberta-base`, `FacebookAI/roberta-base`) or of a folder.

    Raises:
        RankwiseError: there is no such architecture and no such folder.
    """
    if (Path(name) / "config.json").is_file():
        return from_file(Path(name) / "config.json")
    key = name.rsplit("/", 1)[-1].lower()
    if key not in known():
        raise RankwiseError(
            f"No architecture is shipped under {name!r}, and it is no folder with a config.json.{nearest(key, known())}"
        )
    fields = dict(known()[key])
    return AutoConfig.for_model(fields.pop("model_type"), **fields)


def from_file(path: Path) -> Any:
    """Return the Transformers config that a config.json holds.

    Raises:
        RankwiseError: it holds none.
    """
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        return AutoConfig.for_model(fields.pop("model_type"), **fields)
    except Exception as error:  # each family's config checks its fields in its own way
        raise RankwiseError(
            f"{path} is no config.json of a Transformers model ({first_line(error)}). It needs a model_type and the sizes that go with it."
        ) from error


@contextmanager
def named(model_config: Any, doing: str) -> Iterator[None]:
    """Turn what a model's own code raises into an error that names its architecture, for a block of code.

    Args:
        model_config: of the model.
        doing: what can't be done with it, such as `planned`.

    Raises:
        RankwiseError: instead of any other exception.
    """
    try:
        yield
    except RankwiseError:
        raise
    except Exception as error:  # Transformers has a hundred classifiers, and each raises its own
        raise RankwiseError(
            f"{model_config.model_type} models of these sizes can't be {doing} ({first_line(error)})."
        ) from error


def first_line(error: Exception) -> str:
    """Return what an exception says, with its kind."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].strip().rstrip('.')}" if lines else type(error).__name__


def model_config(config: BenchConfig) -> Any:
    """Return the Transformers config of the measured model, with a padding token and two classes."""
    found = (
        architecture(config.random_weights)
        if config.random_weights
        else loading.locate(config.model_name, task_type=task_type(config.problem)).config
    )
    give_pad_token(found)
    found.num_labels = 2
    return found


def give_pad_token(model_config: Any) -> None:
    """Set the padding token of a config that has none (GPT-2, Llama). Any token will do: attention never sees it."""
    if getattr(model_config, "pad_token_id", None) is None:
        eos = getattr(model_config, "eos_token_id", None)
        model_config.pad_token_id = eos[0] if isinstance(eos, list) else (eos or 0)


def task_type(problem: str) -> str:
    """Return PEFT's name of what models of a problem are for, such as `SEQ_CLS`."""
    return OBJECTIVES[problem].task_type


def check_problem(model_config: Any, name: str, problem: str) -> None:
    """Check that models of an architecture are made for a problem.

    Raises:
        RankwiseError: it is an encoder, and the problem is generation.
    """
    if problem == "generation" and model_config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        raise RankwiseError(
            f"{name} is an encoder, and no causal language model, which generation takes, such as smollm2 or gpt2."
        )


def longest(model_config: Any, problem: str = "classification") -> int:
    """Return the largest number of tokens that a row may have."""
    model = loading.skeleton(model_config, "The model", task_type(problem))
    return families.position_limit(model) or families.SHORT


def build(config: BenchConfig, *, dtype: torch.dtype, attention: str | None = None) -> PreTrainedModel:
    """Build a model to train, of the class that its problem takes.

    Args:
        config: says which model.
        dtype: of every weight. No float32 copy is made on the way.
        attention: `sdpa` or `eager`. Default: Transformers' own choice.
    """
    chosen = model_config(config)
    options: dict[str, Any] = {"dtype": dtype} | ({"attn_implementation": attention} if attention else {})
    torch.manual_seed(config.seed)
    kind = task_type(config.problem)
    auto, _ = loading.AUTO[kind]
    if config.random_weights:
        return auto.from_config(chosen, **options)
    return auto.from_pretrained(
        loading.locate(config.model_name, task_type=kind).path, config=chosen, **options
    )
