"""loralib's format: one file of tensors, `<path>.lora_A`, `<path>.lora_B`, and the head's parameters by their own names.

Source: loralib 0.1.2, `lora_state_dict`. The file holds neither alpha nor the base model's name.
"""

from pathlib import Path

import torch

from rankwise.adapters import peft_format
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
        RankwiseError: another kind of file, fused projections, or alpha isn't given.
    """
    if alpha is None:
        raise RankwiseError(
            f"{file} doesn't say with which alpha it was trained. Give it with --alpha (16 in the LoRA paper's RoBERTa-base)."
        )
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise RankwiseError(f"{file} can't be read: {error.strerror or error}.") from None
    except Exception:  # arbitrary bytes can make the unpickler raise anything
        raise RankwiseError(f"{file} is no loralib checkpoint: torch.load finds no tensors in it.") from None
    names = [str(name) for name in state] if isinstance(state, dict) else []
    paths = [name.removesuffix(LORA_A) for name in names if name.endswith(LORA_A)]
    if not paths:
        raise RankwiseError(f"{file} holds no LoRA matrices (names that end in {LORA_A} and {LORA_B}).")
    lora = {path: (state[f"{path}{LORA_A}"], state[f"{path}{LORA_B}"]) for path in paths}
    for path, (A, B) in lora.items():
        if A.ndim != 2 or B.ndim != 2 or A.shape[0] != B.shape[1]:
            raise RankwiseError(
                f"{path} is a fused projection (loralib's MergedLinear: A {list(A.shape)}, B {list(B.shape)}), "
                "which can't be read."
            )
    trained = {name: value for name, value in state.items() if ".lora_" not in name}
    return Adapter(
        folder=file,
        base_model=base,
        lora=lora,
        scaling={path: alpha / A.shape[0] for path, (A, _) in lora.items()},
        dropout=0.0,
        trained=trained,
        modules_to_save=list(dict.fromkeys(name.split(".")[0] for name in trained)),
        label_names=None,
        fingerprint=None,
    )


def write(adapter: Adapter, out: Path) -> None:
    """Write an adapter as a checkpoint.

    Raises:
        RankwiseError: `out` is a folder or can't be written.
    """
    if out.is_dir():
        raise RankwiseError(f"{out} is a folder; loralib's form is one file. Name it with --out.")
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
