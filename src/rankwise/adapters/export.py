"""Adapters in the forms that other programs read: PEFT's and loralib's, both ways, cut to a rank or to a number of parameters.

    folder or .bin ─► Adapter ─► components of s·B·A, the strongest first ─► cut ─► padded to one rank ─► folder or .bin

A layer's update is taken apart by its singular values; leaving out the smallest is the nearest update of that rank (Eckart & Young 1936).
"""

import json
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from rankwise.adapters import peft_format
from rankwise.adapters.peft_format import Adapter
from rankwise.errors import RankwiseError
from rankwise.files import check_folder, make_folder
from rankwise.models import hub

Format = Literal["peft", "loralib"]
Factors = tuple[Tensor, Tensor]
"""A [r, d_in] and B [d_out, r]."""


@dataclass(frozen=True)
class Exported:
    """What an export wrote.

    Attributes:
        out: where.
        ranks: of each layer.
        adapter_params: entries of A and B.
        kept: share of ‖s·B·A‖² over all layers that is still there; 1 where nothing was cut.
        notes: what whoever loads it has to know.
    """

    out: Path
    ranks: dict[str, int]
    adapter_params: int
    kept: float
    notes: tuple[str, ...]


def export(
    source: str | Path,
    out: str | Path,
    *,
    format: Format = "peft",
    uniform_rank: int | None = None,
    max_params: int | None = None,
    head: bool = True,
    base: str | None = None,
    alpha: float | None = None,
) -> Exported:
    """Writes an adapter in a form that another program reads.

    Args:
        source: a PEFT adapter's folder, or a loralib checkpoint.
        out: a folder for PEFT's form, a file for loralib's.
        format: `peft` or `loralib`.
        uniform_rank: the same rank for each layer: cut, or filled up with zeros.
        max_params: entries of A and B in all at most; the weakest components go first.
        head: the classification head too.
        base: the base model's name, which a loralib checkpoint doesn't say.
        alpha: s = alpha/r of a loralib checkpoint, likewise.

    Raises:
        RankwiseError: nothing to export, a form that can't hold it, or `out` can't be written.
    """
    source, out = Path(source), Path(out)
    adapter = read_loralib(source, base, alpha) if source.is_file() else peft_format.read(source)
    if format == "peft":
        check_folder(out, source, hub.CONFIG)
    elif out.exists() and out.samefile(source):
        raise RankwiseError(f"{out} holds the adapter itself. Name another file with --out.")
    scaling = Counter(adapter.scaling.values()).most_common(1)[0][0]
    # one scaling for all layers, B taking the difference: loralib has a single alpha, and servers read a single one
    factors = {path: (A, B * (adapter.scaling[path] / scaling)) for path, (A, B) in adapter.lora.items()}
    cut, kept = factors, 1.0
    if uniform_rank is not None or max_params is not None:
        cut, kept = truncate(factors, uniform_rank, max_params)
    pad_to = uniform_rank
    if format == "loralib":
        pad_to = max(A.shape[0] for A, _ in cut.values())
    if pad_to is not None:
        cut = {path: _padded(*pair, pad_to) for path, pair in cut.items()}
    adapter = replace(adapter, lora=cut, scaling=dict.fromkeys(cut, scaling))
    if not head:
        adapter = replace(adapter, trained={}, modules_to_save=[])
    if format == "loralib":
        _write_loralib(adapter, out)
    else:
        _write_peft(adapter, source, out)
    ranks = {path: A.shape[0] for path, (A, _) in cut.items()}
    size = sum(A.numel() + B.numel() for A, B in cut.values())
    return Exported(out, ranks, size, kept, _notes(adapter, ranks, scaling, format))


def components(A: Tensor, B: Tensor) -> tuple[Factors, Tensor]:
    """B·A as a sum of rank-one parts, the strongest first.

    Args:
        A: [r, d_in].
        B: [d_out, r].

    Returns:
        A and B with the same product, row k and column k holding part k; and the singular values [r].
    """
    Q_B, R_B = torch.linalg.qr(B.double())
    Q_A, R_A = torch.linalg.qr(A.double().t())
    U, sigma, V = torch.linalg.svd(R_B @ R_A.t())
    root = sigma.sqrt()
    return (root[:, None] * (V @ Q_A.t()), (Q_B @ U) * root), sigma


def truncate(
    factors: dict[str, Factors], rank: int | None, max_params: int | None
) -> tuple[dict[str, Factors], float]:
    """The strongest components, up to `rank` a layer and `max_params` in all: most energy σ² for each entry of A and B first.

    Returns:
        The layers that keep any, and the share of all energy that they keep.

    Raises:
        RankwiseError: `max_params` doesn't reach for one component.
    """
    parts = {path: components(A, B) for path, (A, B) in factors.items()}
    order = sorted(
        (
            (float(s) ** 2 / (A.shape[1] + B.shape[0]), path, k)
            for path, ((A, B), sigma) in parts.items()
            for k, s in enumerate(sigma)
            if rank is None or k < rank
        ),
        key=lambda entry: -entry[0],
    )
    kept: Counter[str] = Counter()
    spent, energy = 0, 0.0
    for worth, path, _ in order:
        (A, B), _ = parts[path]
        # where each layer is filled up to `rank`, the first component of a layer pays for all of them
        cost = (A.shape[1] + B.shape[0]) * (1 if rank is None else rank * (kept[path] == 0))
        if max_params is not None and spent + cost > max_params:
            if rank is None:
                break
            continue
        spent += cost
        energy += worth * (A.shape[1] + B.shape[0])
        kept[path] += 1
    if not kept:
        raise RankwiseError(
            f"--max-params {max_params:,} doesn't reach for one component. "
            f"The smallest takes {min(A.shape[1] + B.shape[0] for A, B in factors.values()):,}."
        )
    total = sum(float((sigma**2).sum()) for _, sigma in parts.values())
    cut = {
        path: tuple(
            m.to(factors[path][0].dtype).contiguous()
            for m in (pair[0][: kept[path]], pair[1][:, : kept[path]])
        )
        for path, (pair, _) in parts.items()
        if kept[path]
    }
    return cut, energy / total if total else 1.0  # pyright: ignore[reportReturnType]


def _padded(A: Tensor, B: Tensor, rank: int) -> Factors:
    """Filled up to a rank with zeros, which changes nothing."""
    more = rank - A.shape[0]
    return torch.cat([A, A.new_zeros(more, A.shape[1])]), torch.cat([B, B.new_zeros(B.shape[0], more)], dim=1)


def read_loralib(file: Path, base: str | None, alpha: float | None) -> Adapter:
    """Reads a checkpoint of loralib's: `<path>.lora_A`, `<path>.lora_B`, and the head's parameters by their own names.

    Args:
        file: written by `torch.save(lora_state_dict(model))`.
        base: the base model's name.
        alpha: s = alpha/r.

    Raises:
        RankwiseError: another kind of file, fused projections, or alpha isn't given.
    """
    if alpha is None:
        raise RankwiseError(
            f"{file} doesn't say by which alpha it was trained. Give it with --alpha (16 in the LoRA paper's RoBERTa-base)."
        )
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise RankwiseError(f"{file} can't be read: {error.strerror or error}.") from None
    except Exception:  # bytes of another kind can end the unpickler in any way
        raise RankwiseError(f"{file} is no loralib checkpoint: torch.load finds no tensors in it.") from None
    names = [str(name) for name in state] if isinstance(state, dict) else []
    paths = [name.removesuffix(".lora_A") for name in names if name.endswith(".lora_A")]
    if not paths:
        raise RankwiseError(f"{file} holds no LoRA matrices (names that end in .lora_A and .lora_B).")
    lora = {path: (state[f"{path}.lora_A"], state[f"{path}.lora_B"]) for path in paths}
    for path, (A, B) in lora.items():
        if A.ndim != 2 or B.ndim != 2 or A.shape[0] != B.shape[1]:
            raise RankwiseError(
                f"{path} is a fused projection (loralib's MergedLinear: A {list(A.shape)}, B {list(B.shape)}), which isn't read."
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


def _write_loralib(adapter: Adapter, out: Path) -> None:
    if out.is_dir():
        raise RankwiseError(f"{out} is a folder; loralib's form is one file. Name it with --out.")
    tensors = {}
    for path, (A, B) in adapter.lora.items():
        tensors[f"{path}.lora_A"], tensors[f"{path}.lora_B"] = A, B
    make_folder(out.absolute().parent)
    partial = out.with_name(f"{out.name}.partial")
    torch.save(tensors | adapter.trained, partial)
    partial.replace(out)


def _write_peft(adapter: Adapter, source: Path, out: Path) -> None:
    known: dict[str, Any] = {}
    if source.is_dir():
        known = json.loads((source / peft_format.CONFIG).read_text(encoding="utf-8"))
    ranks = Counter(A.shape[0] for A, _ in adapter.lora.values())
    r = ranks.most_common(1)[0][0]
    s = next(iter(adapter.scaling.values()))
    document = {
        "fan_in_fan_out": False,
        **known,
        "peft_type": "LORA",
        "task_type": "SEQ_CLS",
        "base_model_name_or_path": adapter.base_model,
        "r": r,
        "lora_alpha": peft_format.whole(s * r),
        "rank_pattern": {path: A.shape[0] for path, (A, _) in adapter.lora.items() if A.shape[0] != r},
        "alpha_pattern": {
            path: peft_format.whole(s * A.shape[0])
            for path, (A, _) in adapter.lora.items()
            if A.shape[0] != r
        },
        "target_modules": list(adapter.lora),
        "modules_to_save": adapter.modules_to_save or None,
        "lora_dropout": adapter.dropout,
        "use_rslora": False,
        "use_dora": False,
        "bias": "none",
        "init_lora_weights": True,
        "inference_mode": True,
    }
    peft_format.write(adapter, document, out)


def _notes(adapter: Adapter, ranks: dict[str, int], scaling: float, format: Format) -> tuple[str, ...]:
    """What the reader of a file has to be told, and what servers of LoRA adapters would refuse.

    Source: vLLM's `lora/peft_helper.py` (one r and one lora_alpha for all layers; modules_to_save refused, and from pull request 53555
    on taken for `score` and `classifier` of sequence classifiers; DoRA refused) and `config/lora.py` (`max_lora_rank`).
    """
    highest = max(ranks.values())
    if format == "loralib":
        alpha = peft_format.whole(scaling * highest)
        return (f"loralib's file has no alpha: build the layers with r={highest}, lora_alpha={alpha:g}.",)
    notes = []
    if len(set(ranks.values())) > 1:
        notes.append(
            f"Ranks go from {min(ranks.values())} to {highest}. PEFT reads that; vLLM takes one rank and alpha for all layers: "
            f"--uniform-rank {highest} fills up with zeros."
        )
    elif highest > 16:
        notes.append(
            f"vLLM takes ranks up to 16 unless started with a larger --max-lora-rank ({highest} here)."
        )
    if adapter.modules_to_save:
        heads = ", ".join(adapter.modules_to_save)
        others = set(adapter.modules_to_save) - {"score", "classifier"}
        can = "never serves such a one" if others else "serves such a one only in its later versions"
        notes.append(
            f"The file carries trained modules ({heads}). vLLM {can}: leave them out with --no-head, or serve the merged model "
            "(rankwise merge)."
        )
    return tuple(notes)
