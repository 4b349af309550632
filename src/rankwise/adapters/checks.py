"""What the tensors of an adapter must be, whatever file they come from. Everything is checked once, when a file is read."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from rankwise.adapters.adapter import Factors
from rankwise.adapters.peft_config import REMEDY
from rankwise.errors import RankwiseError


def check_factors(file: Path, factors: Mapping[str, Factors]) -> None:
    """Check A and B of every layer.

    Args:
        file: for the message.
        factors: module path → A [r, d_in] and B [d_out, r].

    Raises:
        RankwiseError: their shapes don't fit each other, or they hold something else than finite numbers.
    """
    for path, (A, B) in factors.items():
        fits = A.ndim == B.ndim == 2 and A.shape[0] == B.shape[1] and A.numel() and B.numel()
        if not fits:
            raise RankwiseError(
                f"{file} is damaged: A of {path:.200} is {list(A.shape)} and B {list(B.shape)}; "
                f"they must be [r, d_in] and [d_out, r]. {REMEDY}"
            )
        for name, value in (("A", A), ("B", B)):
            if not value.is_floating_point():
                raise RankwiseError(
                    f"{file} is damaged: {name} of {path:.200} is {_kind(value)}, not floating point. {REMEDY}"
                )
            _check_finite(file, f"{name} of {path:.200}", value)


def check_values(file: Path, values: Mapping[str, Tensor]) -> None:
    """Check parameters that are saved whole (`modules_to_save`).

    Args:
        file: for the message.
        values: name → value.

    Raises:
        RankwiseError: one holds complex numbers, or something else than finite numbers.
    """
    for name, value in values.items():
        if value.is_complex():
            raise RankwiseError(f"{file} is damaged: {name:.200} is {_kind(value)}. {REMEDY}")
        _check_finite(file, f"{name:.200}", value)


def _check_finite(file: Path, what: str, value: Tensor) -> None:
    if value.is_floating_point() and not torch.isfinite(value.float()).all():
        raise RankwiseError(
            f"{file} is damaged: {what} holds NaN or infinity, so every answer would be NaN. {REMEDY}"
        )


def _kind(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")
