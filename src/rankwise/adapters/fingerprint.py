"""A fingerprint of the frozen weights that an adapter was trained on: a random projection of each, by which other weights are told apart.

    entries of a weight, 4,096 at most ── 8 sums with fixed random signs ──► sketch        |sketch(W) − sketch(W')|² / 8 ≈ |W − W'|²

A difference is told from rounding by its size: rounding to a number type moves an entry by at most half the spacing of that type.
Source: Achlioptas 2003, "Database-friendly random projections".
"""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

SAMPLED = 4096
"""Evenly spaced entries that are read of each weight, at most."""
SUMS = 8
"""Random projections of each weight."""
FACTOR = 2.0
"""How far an estimate from 8 sums may lie above what it estimates."""
NOISE = 1e-6
"""Share of a weight's norm that the sums' own rounding may make up."""
LINEAR, OTHERS = "*", ""
"""Stand for all linear layers without an adapter, and for all other frozen weights; their sums are added up."""


@dataclass(frozen=True)
class Sketch:
    """What is kept of a weight, or of several added up.

    Attributes:
        dtype: to which the weight may have been rounded: one that holds it exactly.
        shape: of the weight; of several the number of their entries.
        norm: of the entries that were read.
        rounding: upper limit of the norm of the rounding errors.
        sums: float32 [8].
    """

    dtype: str
    shape: tuple[int, ...]
    norm: float
    rounding: float
    sums: np.ndarray


def take(adapted: Mapping[str, Tensor], linear: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> str:
    """Return the fingerprint of frozen weights as text, 200 bytes a layer. What is left out isn't compared.

    Args:
        adapted: weights under LoRA layers, by path.
        linear: weights of the other linear layers, by name.
        others: all other frozen weights, by name.
    """
    sketches = {path: _sketch(path, weight) for path, weight in adapted.items()}
    for group, weights in ((LINEAR, linear), (OTHERS, others)):
        if weights:
            sketches[group] = _added([_sketch(name, weight) for name, weight in weights.items()])
    return json.dumps({path: _entry(one) for path, one in sketches.items()}, separators=(",", ":"))


def difference(there: str, here: str) -> str | None:
    """Return what differs between two fingerprints beyond rounding, as the end of a sentence; None where nothing does.

    Args:
        there: from training.
        here: of the same layers in the model at hand.

    Raises:
        ValueError: one of them is no fingerprint.
    """
    then, now = _read(there), _read(here)
    for path, one in then.items():
        if path not in now or one.shape != now[path].shape:
            size = _size(now[path]) if path in now else "not there"
            return f"{_called(path)} is {size} here, {_size(one)} in training"
    apart = {path: _apart(one, now[path]) for path, one in then.items()}
    differing = [path for path, (distance, explained) in apart.items() if not distance <= explained]
    if not differing:
        return None
    most = max(differing, key=lambda path: apart[path][0])
    distance, explained = apart[most]
    more = f" (and {len(differing) - 1} more)" if len(differing) > 1 else ""
    types = sorted({then[most].dtype, now[most].dtype})
    why = f", of which rounding to {' and '.join(types)} explains {explained:.1g}" if len(types) > 1 else ""
    return f"{_called(most)} differs by {distance:.2g} of its size{more}{why}"


def _apart(one: Sketch, other: Sketch) -> tuple[float, float]:
    """Return the distance of two sketches, and the distance that rounding explains, as shares of the norm."""
    distance = float(np.linalg.norm(one.sums.astype(np.float64) - other.sums)) / SUMS**0.5
    explained = 0.0 if one.dtype == other.dtype else FACTOR * (one.rounding + other.rounding)
    norm = max(one.norm, other.norm, 1e-30)
    return distance / norm, explained / norm + NOISE


def _sketch(name: str, weight: Tensor) -> Sketch:
    flat = weight.detach().reshape(-1)
    sample = flat[:: max(1, -(-flat.numel() // SAMPLED))].cpu()
    values = sample.double().numpy()
    dtype, rounding = _precision(sample)
    sums = (_signs(name)[:, : len(values)] @ values).astype(np.float32)
    return Sketch(dtype, tuple(weight.shape), float(np.linalg.norm(values)), rounding, sums)


def _precision(sample: Tensor) -> tuple[str, float]:
    """Return the number type to which these entries may have been rounded, and the largest norm that the rounding errors can have.

    Of all types that hold the entries exactly it is the one that rounds most. Whole numbers, such as zeros and ones, weren't rounded.
    """
    norm, root = float(sample.double().norm()), sample.numel() ** 0.5
    found = str(sample.dtype).removeprefix("torch."), 0.0
    if torch.equal(sample, sample.round()):
        return found
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        if torch.equal(sample.to(dtype).to(sample.dtype), sample):
            limits = torch.finfo(dtype)
            rounding = (limits.eps * norm + limits.smallest_normal * limits.eps * root) / 2
            found = max(found, (str(dtype).removeprefix("torch."), rounding), key=lambda one: one[1])
    return found


def _added(sketches: Sequence[Sketch]) -> Sketch:
    return Sketch(
        max(sketches, key=lambda one: one.rounding).dtype,
        (sum(int(np.prod(one.shape)) for one in sketches),),
        float(np.linalg.norm([one.norm for one in sketches])),
        float(np.linalg.norm([one.rounding for one in sketches])),
        np.stack([one.sums for one in sketches]).sum(axis=0, dtype=np.float64).astype(np.float32),
    )


def _signs(name: str) -> np.ndarray:
    """Return random signs −1 and 1 [8, 4096], independent for each weight, so that sketches can be added up."""
    bits = np.frombuffer(hashlib.shake_256(name.encode()).digest(SUMS * SAMPLED // 8), np.uint8)
    return np.unpackbits(bits).reshape(SUMS, SAMPLED).astype(np.float32) * 2 - 1


def _entry(one: Sketch) -> list[object]:
    sums = base64.b64encode(one.sums.astype("<f4").tobytes()).decode()
    return [one.dtype, list(one.shape), float(f"{one.norm:.6g}"), float(f"{one.rounding:.3g}"), sums]


def _read(text: str) -> dict[str, Sketch]:
    try:
        found = {}
        for path, (dtype, shape, norm, rounding, sums) in json.loads(text).items():
            values = np.frombuffer(base64.b64decode(sums, validate=True), "<f4")
            if len(values) != SUMS:
                raise ValueError(f"{len(values)} sums")
            sizes = tuple(int(n) for n in shape)
            found[path] = Sketch(str(dtype), sizes, float(norm), float(rounding), values)
        return found
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"no fingerprint: {error}") from None


def _called(path: str) -> str:
    return {LINEAR: "what has no adapter", OTHERS: "the rest of the base"}.get(path, path)


def _size(sketch: Sketch) -> str:
    return f"{list(sketch.shape)}" if len(sketch.shape) > 1 else f"{int(np.prod(sketch.shape)):,} entries"
