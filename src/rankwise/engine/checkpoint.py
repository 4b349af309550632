"""A training's state on disk: trained weights, the optimizer's moments, what ranks and the method keep, and the step number.

    training.safetensors   model.NAME   optimizer.KEY.NAME   rank.KEY   method.KEY
    training.json          step, seconds, and what the rank controller keeps beside tensors

Everything else follows from the run's arguments and the step, so a resumed run continues bit for bit.
"""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from rankwise.engine.training import Training

TENSORS, POSITION = "training.safetensors", "training.json"


def save(training: Training, folder: Path) -> None:
    """Write a training's state into a folder that exists and is empty."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in training.trained_parameters():
        tensors[f"model.{name}"] = parameter.detach()
        for key, value in training.update.state(parameter).items():
            tensors[f"optimizer.{key}.{name}"] = value
    position: dict[str, Any] = {
        "step": training.step_number,
        "seconds": training.seconds,
        "steps": training.steps,
    }
    if training.rank is not None:
        found, position["rank"] = training.rank.state()
        tensors |= {f"rank.{name}": value for name, value in found.items()}
        position["rank_seconds"] = training.rank_seconds
    if training.hooks is not None:
        tensors |= {f"method.{name}": tensor for name, tensor in training.hooks.state().items()}
    if training.update.flat:  # safetensors wants each tensor in memory of its own
        tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / TENSORS)
    (folder / POSITION).write_text(json.dumps(position), encoding="utf-8")


def load(training: Training, folder: Path) -> None:
    """Continue a training, made with the same arguments, from what `save` wrote.

    Raises:
        OSError, ValueError, KeyError, RuntimeError, SafetensorError: the files are damaged or belong to another training.
    """
    position = json.loads((folder / POSITION).read_text(encoding="utf-8"))
    tensors = load_file(folder / TENSORS, device=str(training.compute.device))
    states: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, value in tensors.items():
        kind, _, rest = key.partition(".")
        if kind == "optimizer":
            what, _, name = rest.partition(".")
            states[name][what] = value
    training.update.resize(
        {p: (tensors[f"model.{name}"], states[name]) for name, p in training.trained_parameters()}
    )
    if training.rank is not None:
        training.rank.load(_of("rank", tensors), position["rank"])
        training.rank_seconds = position["rank_seconds"]
    if training.hooks is not None:
        training.hooks.load_state(_of("method", tensors))
    training.step_number, training.seconds = position["step"], position["seconds"]


def _of(kind: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a kind by their own names."""
    return {k.removeprefix(f"{kind}."): v for k, v in tensors.items() if k.startswith(f"{kind}.")}
