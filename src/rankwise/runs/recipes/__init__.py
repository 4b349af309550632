"""Recipes: default hyperparameters, one TOML file each, and the published results that runs are compared with.

A setting is looked up in `tasks.<task>.<method>`, then in `methods.<method>`, then in `defaults`.
"""

import math
import tomllib
from dataclasses import dataclass, fields, replace
from functools import cache
from importlib.resources import files
from typing import Any

from rankwise.config import RunConfig, TrainOptions
from rankwise.errors import RankwiseError, nearest
from rankwise.runs import methods
from rankwise.runs.config import CompareConfig
from rankwise.tasks import registry

NAMES = ("lora-paper", "lora-paper-e2e", "poster", "rankwise")
NEEDED = ("epochs", "batch_size", "optimizer", "schedule", "warmup", "weight_decay", "clip", "padding")
"""Settings that training needs, besides the learning rate, which may depend on the model's width."""


@cache
def _read(name: str) -> dict[str, Any]:
    return tomllib.loads(files("rankwise.runs.recipes").joinpath(f"{name}.toml").read_text(encoding="utf-8"))


def recipe(name: str) -> dict[str, Any]:
    """Return a recipe as a nested dict.

    Raises:
        RankwiseError: there is no such recipe.
    """
    if name not in NAMES:
        raise RankwiseError(f"There is no recipe {name!r}.{nearest(name, NAMES)}")
    return _read(name)


def resolve(config: RunConfig, method: str) -> RunConfig:
    """Return the options with everything that the recipe decides, except a learning rate by width (see `resolve_lr`).

    Args:
        config: as requested; what it sets has priority.
        method: the method's plain name (`lora` for `lora:rank=4`).

    Raises:
        RankwiseError: there is no such recipe, or it lacks a setting for this task and method.
    """
    data = recipe(config.train.recipe)
    known = dict(data["defaults"])
    for table in (data.get("methods", {}), data.get("tasks", {}).get(config.task, {})):
        for name in (methods.named(method).recipe_of or method, method):
            known |= table.get(name, {})
    unset = {f.name for f in fields(TrainOptions) if getattr(config.train, f.name) is None}
    if config.train.warmup is not None:
        known.pop("warmup_steps", None)
    max_length = known.get("max_length") if config.data.max_length is None else config.data.max_length
    missing = sorted(unset.intersection(NEEDED) - known.keys())
    if missing:
        arguments = ", ".join(f"`{name}=`" for name in missing)
        raise RankwiseError(
            f"The recipe {config.train.recipe!r} has no {', '.join(missing)} for {method} on {config.task}. Give {arguments}."
        )
    start = None if config.model.from_adapter else default_model(config)  # an adapter names its own base
    return replace(
        config,
        train=replace(config.train, **{name: known[name] for name in unset & known.keys()}),
        data=replace(config.data, max_length=max_length),
        model=replace(config.model, model=config.model.model or start),
    )


def default_model(config: RunConfig | CompareConfig) -> str:
    """Return the model of a recipe: its language model where texts are generated."""
    data = recipe(config.train.recipe)
    if isinstance(config, CompareConfig) and not config.table.given:
        generates = any(registry.named(name).problem == "generation" for name in config.tasks)
    elif isinstance(config, CompareConfig) or config.table.given:
        table = config.table
        asked = (table.problem is None and (table.prompt or table.messages)) or table.problem == "generation"
        generates = bool(asked)
    else:
        generates = config.task in registry.TASKS and registry.TASKS[config.task].problem == "generation"
    return data.get("language_model", data["model"]) if generates else data["model"]


@dataclass(frozen=True)
class LearningRate:
    """A peak learning rate, and where it comes from, for the first lines of a run."""

    value: float
    why: str


def resolve_lr(config: RunConfig, method: str, width: int) -> LearningRate:
    """Return the peak learning rate for a model of hidden size `width`.

    Args:
        config: from `resolve`.
        method: the method's plain name.
        width: the model's hidden size.

    Raises:
        RankwiseError: the recipe has none for this method.
    """
    if config.train.lr is not None:
        return LearningRate(config.train.lr, "as given")
    data = recipe(config.train.recipe)
    tables = data.get("lr_by_width", {})
    like = data.get("lr_as", {}).get(method, method)
    if "all-linear" in config.lora.targets:
        like = data.get("lr_in_all_layers_as", {}).get(like, like)
    preferring = f"{method}:prefer={config.lora.prefer}"
    like = preferring if preferring in tables else like
    like = like if like in tables else methods.named(like).recipe_of or like
    table = tables.get(like)
    if not table:
        raise RankwiseError(
            f"The recipe {config.train.recipe!r} has no learning rate for {method} on {config.task}. Give one with `lr=`."
        )
    points = sorted((int(w), lr) for w, lr in table.items())
    near = min(max(width, points[0][0]), points[-1][0])
    where = "" if width in dict(points) else ", carried over by width"
    if near != width:
        where = f", the nearest width there is a rate for; this model's is {width}"
    return LearningRate(
        _log_interpolate(points, near), f"recipe {config.train.recipe!r}, {like} at width {near}{where}"
    )


def _log_interpolate(points: list[tuple[int, float]], width: int) -> float:
    """Interpolate in log-log between the points left and right of `width`."""
    if width in dict(points):
        return dict(points)[width]
    right = next(i for i in range(1, len(points)) if points[i][0] >= width)
    (w0, y0), (w1, y1) = points[right - 1], points[right]
    slope = math.log(y1 / y0) / math.log(w1 / w0)
    return float(f"{y0 * (width / w0) ** slope:.3g}")


def published(task: str, model: str) -> list[dict[str, Any]]:
    """Return the published scores of a task with a model: dicts with `method`, `settings`, `score`, `metric`, `source`.

    `metric` is None where it is the one that runs are scored by.

    They were measured on the full task, so a run on a sample of it can't be compared with them.
    """
    name = model.rstrip("/").rpartition("/")[2].lower()
    return [
        {
            "method": e["method"],
            "settings": e.get("settings", ""),
            "score": e["scores"][task],
            "metric": e.get("metric"),
            "source": e["source"],
        }
        for e in _read("published")["published"]
        if e["model"] == name and task in e["scores"]
    ]


def published_notes(task: str, model: str) -> list[dict[str, str]]:
    """Return published statements on a task with a model that aren't scores: dicts with `text` and `source`."""
    name = model.rstrip("/").rpartition("/")[2].lower()
    return [
        {"text": e["text"], "source": e["source"]}
        for e in _read("published")["notes"]
        if e["model"] == name and task in e["tasks"]
    ]
