"""A training's state on disk: trained weights, Adam's moments, the state of the rank controller and of the method, and the step number.

    training.safetensors   model.NAME   optimizer.KEY.NAME   rank.KEY   method.KEY
    training.json          `Position`: step, seconds, and what the rank controller keeps beside tensors

Everything else follows from the run's arguments and the step, so a resumed run continues bit for bit. What is read is checked against
the training that takes it, whole, before anything changes: names, shapes, dtypes, finite numbers, steps.
"""

import dataclasses
import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    TypeAdapter,
    ValidationError,
)
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rankwise.engine.processes import answered
from rankwise.engine.training import Training
from rankwise.rank.components import Components
from rankwise.rank.decision import Decision
from rankwise.rank.statistics import all_finite

TENSORS, POSITION = "training.safetensors", "training.json"
MOMENTS = {"step", "exp_avg", "exp_avg_sq"}
"""Adam's state of a parameter, by torch's names."""

Scaling = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Read(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class RankPosition(_Read):
    """What `RankController.state` returns beside tensors."""

    steps: NonNegativeInt
    rows: NonNegativeInt
    skipped_steps: NonNegativeInt
    done_at: NonNegativeInt | None
    most: NonNegativeInt
    scaling: dict[str, Scaling]
    decisions: list[dict[str, Any]]


class Position(_Read):
    """training.json.

    Attributes:
        request: names what was asked for; `load` refuses the state for a training with another request.
        step: optimizer steps taken.
        steps: of the whole training.
        seconds: of training so far.
        skipped_steps: see `Training`.
        rank: where ranks are found.
        rank_seconds: that finding them took.
    """

    request: str
    step: NonNegativeInt
    steps: NonNegativeInt
    seconds: NonNegativeFloat
    skipped_steps: NonNegativeInt
    rank: RankPosition | None = None
    rank_seconds: NonNegativeFloat = 0.0


def trained(training: Training, *, keep: bool = True) -> dict[str, Tensor]:
    """Return trained weights and their moments, whole.

    Where processes share them out, all call it together, and they are gathered one by one and returned on the CPU.

    Args:
        training: between two steps.
        keep: whether this process wants them; otherwise it helps to gather them, and returns nothing.
    """
    tensors: dict[str, Tensor] = {}
    parts = training.parts
    if not (keep or parts):
        return tensors
    with answered():
        for name, parameter in training.trained_parameters():
            state = training.update.state(parts.own(parameter))
            named = {f"model.{name}": parameter.detach()} | {
                f"optimizer.{key}.{name}": value for key, value in state.items()
            }
            for key, value in named.items():
                whole = parts.whole(parameter, value)
                if keep:
                    tensors[key] = whole.cpu() if parts else whole
    return tensors


def save(
    training: Training, folder: Path, request: str = "", tensors: dict[str, Tensor] | None = None
) -> None:
    """Write a training's state into a folder that exists and is empty.

    Args:
        training: between two steps.
        folder: gets two files.
        request: names what was asked for.
        tensors: what `trained` returned. Default: called here.
    """
    tensors = trained(training) if tensors is None else tensors
    rank = None
    if training.rank is not None:
        found, values = training.rank.state()
        tensors |= {f"rank.{name}": value for name, value in found.items()}
        rank = RankPosition(**values)
    if training.hooks is not None:
        tensors |= {f"method.{name}": tensor for name, tensor in training.hooks.state().items()}
    if training.update.flat:  # safetensors wants each tensor in memory of its own
        tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    position = Position(
        request=request,
        step=training.step_number,
        steps=training.steps,
        seconds=training.seconds,
        skipped_steps=training.skipped_steps,
        rank=rank,
        rank_seconds=training.rank_seconds,
    )
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / TENSORS)
    (folder / POSITION).write_text(json.dumps(position.model_dump()), encoding="utf-8")


def load(training: Training, folder: Path, request: str = "") -> None:
    """Continue a training, made with the same arguments, from what `save` wrote.

    Raises:
        OSError, SafetensorError: the files can't be read.
        ValueError: they are damaged or belong to another training, which stays as it is.
    """
    position = _position(folder)
    device = training.compute.device
    tensors = load_file(folder / TENSORS, device="cpu" if training.parts else str(device))
    _check_position(position, training, request)
    _check_tensors(tensors, training, position)
    states: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, value in _of("optimizer", tensors).items():
        what, _, name = key.partition(".")
        states[name][what] = value
    parts = training.parts
    if parts:
        with torch.no_grad():
            for name, p in training.trained_parameters():
                parts.own(p).copy_(parts.cut(p, tensors[f"model.{name}"]))
                state = {key: parts.cut(p, value).to(device) for key, value in states[name].items()}
                training.update.load_state(parts.own(p), state)
    else:
        training.update.resize(
            {p: (tensors[f"model.{name}"], states[name]) for name, p in training.trained_parameters()}
        )
    if training.rank is not None and position.rank is not None:
        training.rank.load(_of("rank", tensors), position.rank.model_dump())
        training.rank_seconds = position.rank_seconds
    if training.hooks is not None:
        training.hooks.load_state(_of("method", tensors))
    training.step_number, training.seconds = position.step, position.seconds
    training.skipped_steps = position.skipped_steps


def _of(kind: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a kind by their own names."""
    return {k.removeprefix(f"{kind}."): v for k, v in tensors.items() if k.startswith(f"{kind}.")}


def _position(folder: Path) -> Position:
    try:
        return Position.model_validate_json((folder / POSITION).read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ValueError(f"{POSITION}: {'.'.join(map(str, first['loc']))} {first['msg'].lower()}") from None


# ── Does it belong to this training? ──────────────────────────────────────────────────────────


def _check_position(position: Position, training: Training, request: str) -> None:
    if position.request != request:
        raise ValueError("it belongs to a run that was asked for otherwise")
    if position.steps != training.steps or position.step > position.steps:
        raise ValueError(
            f"it is at step {position.step} of {position.steps}, and this run has {training.steps} steps"
        )
    if position.skipped_steps > position.step:
        raise ValueError(f"{position.skipped_steps} of {position.step} steps were skipped")
    if (position.rank is None) != (training.rank is None):
        raise ValueError("one of it and this run finds ranks, and the other doesn't")
    if position.rank is None or training.rank is None:
        return
    if position.rank.steps != position.step or position.step < max(
        position.rank.skipped_steps, position.rank.done_at or 0
    ):
        raise ValueError(f"its ranks are at step {position.rank.steps}, its weights at {position.step}")
    if position.rank.scaling.keys() != training.rank.layers.keys():
        raise ValueError("it scales other layers")
    fields, kind = [field.name for field in dataclasses.fields(Decision)], TypeAdapter(Decision)
    try:
        for stored in position.rank.decisions:
            flat = {**stored, **stored["evidence"]}
            kind.validate_python({name: flat[name] for name in fields})
    except (KeyError, TypeError, ValueError):
        raise ValueError("a rank decision is none") from None


def _check_tensors(tensors: Mapping[str, Tensor], training: Training, position: Position) -> None:
    """Check that tensors are those that `save` would write for a training, but for the ranks of layers that may change."""
    left = set(tensors)
    free = _rank_axes(training)
    for name, parameter in training.trained_parameters():
        value = _taken(tensors, left, f"model.{name}")
        _check_like(name, value, parameter, free.get(parameter))
        moments = {key for key in MOMENTS if f"optimizer.{key}.{name}" in left}
        if moments and moments != MOMENTS:
            raise ValueError(f"{name} lacks the optimizer's {', '.join(sorted(MOMENTS - moments))}")
        for key in moments:
            moment = _taken(tensors, left, f"optimizer.{key}.{name}")
            if key == "step":
                if moment.shape or moment.dtype != torch.float32 or not 0 <= moment.item() <= position.step:
                    raise ValueError(f"the optimizer's steps of {name} don't fit")
            elif moment.shape != value.shape or moment.dtype != value.dtype:
                raise ValueError(f"the optimizer's {key} of {name} has {_shown(moment)} for {_shown(value)}")
            elif key == "exp_avg_sq" and bool((moment < 0).any()):
                raise ValueError(f"the optimizer's {key} of {name} is negative")
    if training.rank is not None:
        _check_ranks(tensors, left, training)
    if training.hooks is not None:
        _check_hooks(tensors, left, training)
    if left:
        raise ValueError(f"this run has no {min(left)}")
    for name, value in tensors.items():
        if (name.startswith("rank.") and not value.is_floating_point()) or value.is_complex():
            raise ValueError(f"{name} is {_shown(value)}")
    if not all_finite(value for value in tensors.values() if value.is_floating_point()):
        raise ValueError("a number in it isn't finite")


def _rank_axes(training: Training) -> dict[nn.Parameter, int]:
    """Return the axis along which a parameter may have changed, where ranks are found."""
    layers = () if training.rank is None else training.rank.layers.values()
    return {layer.lora_A: 0 for layer in layers} | {layer.lora_B: 1 for layer in layers}


def _taken(tensors: Mapping[str, Tensor], left: set[str], name: str) -> Tensor:
    if name not in left:
        raise ValueError(f"it lacks {name}")
    left.remove(name)
    return tensors[name]


def _check_like(name: str, value: Tensor, like: Tensor, free: int | None) -> None:
    """Check shape and dtype; the size along the axis `free` may be another."""
    shapes = [[size for axis, size in enumerate(tensor.shape) if axis != free] for tensor in (value, like)]
    if value.ndim != like.ndim or shapes[0] != shapes[1] or value.dtype != like.dtype:
        raise ValueError(f"{name} is {_shown(value)}, and this run's is {_shown(like)}")


def _shown(tensor: Tensor) -> str:
    return f"{' × '.join(map(str, tensor.shape)) or 'a number'} of {str(tensor.dtype).removeprefix('torch.')}"


def _check_ranks(tensors: Mapping[str, Tensor], left: set[str], training: Training) -> None:
    """Check A against B, and the statistics and the pruned components against both."""
    assert training.rank is not None
    if "rank.before_prune" in left:
        before = _taken(tensors, left, "rank.before_prune")
        if before.shape != (2, len(cast(np.ndarray, training.batches.held_out))):
            raise ValueError(f"the losses before the last prune are {_shown(before)}")
    names = {parameter: name for name, parameter in training.trained_parameters()}
    for path, layer in training.rank.layers.items():
        A, B = (tensors[f"model.{names[p]}"] for p in (layer.lora_A, layer.lora_B))
        rank = A.shape[0]
        if B.shape[1] != rank:
            raise ValueError(f"{path} has rank {rank} in A and {B.shape[1]} in B")
        if f"rank.statistics.{path}" in left:
            sums = _taken(tensors, left, f"rank.statistics.{path}")
            if sums.shape != (2 * rank + 1, rank):
                raise ValueError(f"the statistics of {path} are {_shown(sums)} for rank {rank}")
        if f"rank.pruned.A.{path}" in left:
            pruned = Components(
                *(_taken(tensors, left, f"rank.pruned.{k}.{path}") for k in Components._fields)
            )
            rank = pruned.A.shape[0] if pruned.A.ndim else 0
            wanted = ((rank, A.shape[1]), (B.shape[0], rank), (2 * rank + 1, rank))
            if tuple(tuple(part.shape) for part in pruned) != wanted:
                raise ValueError(f"what was pruned of {path} doesn't fit the layer")


def _check_hooks(tensors: Mapping[str, Tensor], left: set[str], training: Training) -> None:
    """Check what a method keeps for a parameter against that parameter."""
    parameters = dict(training.model.named_parameters())
    for name in sorted(left):
        if name.startswith("method."):
            left.remove(name)
            value, parameter = tensors[name], parameters.get(name.removeprefix("method.").partition(".")[2])
            if parameter is None:
                continue
            # a mask holds one entry for each of the parameter's, in another shape where the matrix has one column
            fits = (
                value.shape == parameter.shape
                if value.is_floating_point()
                else value.numel() == parameter.numel()
            )
            if not fits:
                raise ValueError(f"{name} is {_shown(value)}, and the parameter {_shown(parameter)}")
