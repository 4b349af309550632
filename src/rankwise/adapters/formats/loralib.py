"""loralib's format: one file of tensors, `<path>.lora_A`, `<path>.lora_B`, and the head's parameters by their own names.

Source: loralib 0.1.2, `lora_state_dict`. The file holds neither alpha nor the base model's name.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from rankwise.adapters import checks, peft_format
from rankwise.adapters.adapter import Adapter
from rankwise.adapters.formats.format import ExportFormat
from rankwise.errors import RankwiseError
from rankwise.files import make_folder

LORA_A, LORA_B = ".lora_A", ".lora_B"


def read(file: Path, base: str | None, alpha: float | None) -> Adapter:
    """Read a checkpoint.

    Args:
        file: written by `torch.save(lora_state_dict(model))`.
        base: the base model's name.
        alpha: s = alpha/r.

    Raises:
        RankwiseError: another kind of file, a part that W0 + s·B·A and whole modules don't describe, or alpha isn't given.
    """
    if alpha is None:
        raise RankwiseError(
            f"{file} doesn't say with which alpha it was trained. Give it with `alpha=` (16 in the LoRA paper's RoBERTa-base)."
        )
    if not math.isfinite(alpha):
        raise RankwiseError(f"`alpha={alpha}` must be a finite number.")
    state = _state(file)
    paths = [name.removesuffix(LORA_A) for name in state if name.endswith(LORA_A)]
    if not paths:
        raise RankwiseError(f"{file} holds no LoRA matrices (names that end in {LORA_A} and {LORA_B}).")
    lora = {path: (state[f"{path}{LORA_A}"], _B(file, state, path)) for path in paths}
    for path, (A, B) in lora.items():
        if A.ndim == B.ndim == 2 and 0 < B.shape[1] < A.shape[0] and A.shape[0] % B.shape[1] == 0:
            raise RankwiseError(
                f"{path} is a fused projection (loralib's MergedLinear: A {list(A.shape)}, B {list(B.shape)}), "
                "which can't be read."
            )
    checks.check_factors(file, lora)
    taken = {f"{path}{end}" for path in paths for end in (LORA_A, LORA_B)}
    trained = {name: value for name, value in state.items() if name not in taken}
    checks.check_values(file, trained)
    return Adapter(
        folder=file,
        base_model=base,
        lora=lora,
        scaling={path: alpha / A.shape[0] for path, (A, _) in lora.items()},
        dropout=0.0,
        trained=trained,
        modules_to_save=_saved_whole(file, trained, paths),
        label_names=None,
        fingerprint=None,
    )


def is_checkpoint(file: Path) -> bool:
    """Return whether a file holds LoRA matrices in this form."""
    try:
        return any(name.endswith(LORA_A) for name in _state(file))
    except RankwiseError:
        return False


def _state(file: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise RankwiseError(f"{file} can't be read: {error.strerror or error}.") from None
    except Exception:  # arbitrary bytes can make the unpickler raise anything
        raise RankwiseError(f"{file} is no loralib checkpoint: torch.load finds no tensors in it.") from None
    state = {str(name): value for name, value in state.items()} if isinstance(state, dict) else {}
    other = next((name for name, value in state.items() if not isinstance(value, Tensor)), None)
    if other is not None and any(name.endswith(LORA_A) for name in state):
        raise RankwiseError(
            f"{file} holds {other:.200}, which is no tensor. Save `lora_state_dict(model)` alone."
        )
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def _B(file: Path, state: dict[str, Tensor], path: str) -> Tensor:
    if f"{path}{LORA_B}" not in state:
        raise RankwiseError(f"{file} is damaged: B of {path:.200} is missing. {checks.REMEDY}")
    return state[f"{path}{LORA_B}"]


def _saved_whole(file: Path, trained: Mapping[str, Tensor], adapted: Sequence[str]) -> list[str]:
    """Return the modules that hold what is saved beside A and B: a head as a whole, in the body each module by itself.

    Raises:
        RankwiseError: a bias is there without its weight, as with loralib's `bias="all"` and `bias="lora_only"`.
    """
    bodies = {path.split(".")[0] for path in adapted}
    saved: list[str] = []
    for name in trained:
        module, _, parameter = name.rpartition(".")
        if ".lora_" in name or not module:
            raise RankwiseError(f"{file} holds {name:.200}, which W0 + s·B·A cannot express.")
        if parameter == "bias" and f"{module}.weight" not in trained:
            raise RankwiseError(
                f"{file} holds {name:.200}: biases of the base were trained, which W0 + s·B·A cannot express."
            )
        if module in adapted:
            raise RankwiseError(f"{file} holds {name:.200} of a layer that has LoRA matrices.")
        top = name.split(".")[0]
        saved.append(module if top in bodies else top)
    return list(dict.fromkeys(saved))


def write(adapter: Adapter, out: Path) -> None:
    """Write an adapter as a checkpoint.

    Raises:
        RankwiseError: `out` is a folder or can't be written.
    """
    if out.is_dir():
        raise RankwiseError(f"{out} is a folder; loralib's form is one file. Name it with `out=`.")
    tensors = {}
    for path, (A, B) in adapter.lora.items():
        tensors[f"{path}{LORA_A}"], tensors[f"{path}{LORA_B}"] = A, B
    make_folder(out.absolute().parent)
    partial = out.with_name(f"{out.name}.partial")
    torch.save(tensors | adapter.trained, partial)
    partial.replace(out)


def notes(adapter: Adapter) -> tuple[str, ...]:
    """Say with which alpha the layers have to be built."""
    highest = max(adapter.ranks.values())
    alpha = peft_format.rounded_alpha(next(iter(adapter.scaling.values())) * highest)
    return (f"loralib's file has no alpha: build the layers with r={highest}, lora_alpha={alpha:g}.",)


FORMAT = ExportFormat("loralib", write, one_file=True, equal_ranks=True, notes=notes)
