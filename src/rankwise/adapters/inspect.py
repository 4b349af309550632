"""What an adapter holds: its ranks, how they were found, and how its energy is spread over components.

The energy of a component is its share of the squared singular values of s·B·A. Energy isn't loss: which components can be pruned is
decided on held-out rows (`rankwise compress`).
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rankwise.adapters import curve_file, peft_format
from rankwise.adapters.adapter import Adapter
from rankwise.adapters.formats import loralib
from rankwise.adapters.rank_table import draw
from rankwise.rank.curve import Curve
from rankwise.run_folder import RunFolder

ENERGIES = (0.9, 0.99, 0.999)
ANY_ALPHA = 1.0
"""Stands in for the alpha of a loralib checkpoint, which doesn't hold its own: shares of energy don't depend on it."""


def inspect(folder: Path) -> dict[str, Any]:
    """Describe an adapter as plain values: ranks, size, energies and decisions.

    Args:
        folder: of an adapter made here or by PEFT; or a loralib checkpoint.

    Returns:
        `rank`: module path → r; `mean_rank`; `adapter_params`: entries of the LoRA matrices; `effective_rank`: module path → exp of the
        entropy of the singular values (Roy & Vetterli 2007); `energy`: module path → share of each component, largest first;
        `size_at_energy`: share → components and parameters that hold it; `decisions`: as in ranks.jsonl;
        `curve`: what smaller sizes cost, as in rank_curve.json; None where it wasn't measured.

    Raises:
        RankwiseError: no adapter there.
    """
    adapter = loralib.read(folder, None, ANY_ALPHA) if folder.is_file() else peft_format.read(folder)
    run = RunFolder(folder)
    ranks = adapter.ranks
    if run.finished:
        ranks = run.read_result().get("rank") or ranks
    curve = curve_file.read(folder) if folder.is_dir() else None
    spectra = {path: _singular_values(adapter, path) for path in adapter.lora}
    return {
        "adapter": str(folder),
        "base_model": adapter.base_model,
        "rank": ranks,
        "mean_rank": sum(ranks.values()) / len(ranks),
        "adapter_params": sum(
            A.numel() + B.numel() for path, (A, B) in adapter.lora.items() if ranks.get(path, 0)
        ),
        "effective_rank": {path: _effective_rank(values) for path, values in spectra.items()},
        "energy": {
            path: (values**2 / (values**2).sum().clamp_min(1e-300)).tolist()
            for path, values in spectra.items()
        },
        "size_at_energy": _sizes(adapter, spectra),
        "decisions": run.read_ranks(),
        "curve": curve and curve.to_json(),
    }


def _singular_values(adapter: Adapter, path: str) -> Tensor:
    A, B = (matrix.double() for matrix in adapter.lora[path])
    return torch.linalg.svdvals(torch.linalg.qr(B).R @ torch.linalg.qr(A.t()).R.t()) * abs(
        adapter.scaling[path]
    )


def _effective_rank(values: Tensor) -> float:
    if not values.any():
        return 0.0
    shares = values / values.sum()
    return torch.special.entr(shares).sum().exp().item()


def _sizes(adapter: Adapter, spectra: dict[str, Tensor]) -> dict[str, dict[str, int]]:
    """Count the components and parameters that hold a share of the energy of all layers, taking the largest first."""
    widths = {path: A.shape[1] + B.shape[0] for path, (A, B) in adapter.lora.items()}
    energies = torch.cat([values**2 for values in spectra.values()])
    costs = torch.tensor([widths[path] for path, values in spectra.items() for _ in values])
    order = energies.argsort(descending=True)
    reached = energies[order].cumsum(0) / energies.sum().clamp_min(1e-300)
    sizes = {}
    for share in ENERGIES:
        count = min(int((reached < share).sum()) + 1, len(order)) if energies.any() else 0
        sizes[f"{share:g}"] = {"components": count, "adapter_params": int(costs[order[:count]].sum())}
    return sizes


def describe(found: dict[str, Any]) -> list[str]:
    """Describe what `inspect` found in lines of text."""
    lines = [
        f"{found['adapter']}: {found['adapter_params']:,} parameters in {sum(1 for r in found['rank'].values() if r)} of "
        f"{len(found['rank'])} layers, mean rank {found['mean_rank']:.2f}."
    ]
    lines += ["", "Rank", *draw(found["rank"])]
    if not found["decisions"]:  # where ranks were found, the effective rank is close to the rank
        effective = {path: round(found["effective_rank"].get(path, 0.0)) for path in found["rank"]}
        lines += [
            "",
            "Effective rank (number of directions that the update is spread over)",
            *draw(effective),
        ]
    lines.append("")
    lines += [
        f"{100 * float(share):g} % of the energy is in {size['components']} components ({size['adapter_params']:,} parameters)."
        for share, size in found["size_at_energy"].items()
    ]
    if found["curve"]:
        lines += ["", f"Smaller sizes, on {found['curve']['rows']:,} rows (`rankwise export --max-params N`)"]
        lines += _aligned(curve_file.table(Curve.from_json(found["curve"])))
    if found["decisions"]:
        lines += [
            "",
            "Rank decisions",
            *(decision.get("text") or f"step {decision['step']}" for decision in found["decisions"]),
        ]
    else:
        lines += [
            "Energy is not loss: `rankwise compress` finds on held-out rows which components can be pruned."
        ]
    return lines


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    """Return rows of cells as lines of text, cells to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
