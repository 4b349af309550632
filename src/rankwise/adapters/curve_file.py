"""rank_curve.json beside an adapter: the loss increase of each smaller size of it (`rank.curve`), as a file and as a table.

A point says the rank of each layer. The adapter of that size has the first components of each layer, which are stored in order.
"""

from pathlib import Path

from rankwise import records
from rankwise.adapters.adapter import Adapter
from rankwise.adapters.peft_format import CURVE
from rankwise.errors import RankwiseError
from rankwise.files import damaged, read_json, write_json
from rankwise.rank.curve import Curve, CurvePoint

REMEDY = "Remove it to do without the curve."


def write(folder: Path, curve: Curve) -> None:
    """Write a curve into the folder of its adapter."""
    write_json(folder / CURVE, curve.to_json())


def read(folder: Path) -> Curve | None:
    """Read the curve beside an adapter, None where there is none.

    Raises:
        RankwiseError: it is damaged.
    """
    file = folder / CURVE
    if not file.is_file():
        return None
    document = read_json(file, remedy=REMEDY)
    if fault := records.fault(records.Curve, document):
        raise damaged(file, fault, REMEDY)
    return Curve.from_json(document)


def point(
    folder: Path, adapter: Adapter, max_params: int | None, max_loss_increase: float | None
) -> CurvePoint | None:
    """Return the size of an adapter that is asked for; None where there is no curve and no limit on the loss.

    Args:
        folder: of the adapter.
        adapter: what is in it.
        max_params: limit on the entries of A and B; None for no limit.
        max_loss_increase: limit on the loss increase, as a share of the gain; None for no limit.

    Raises:
        RankwiseError: there is a limit on the loss and no curve, the curve is of another adapter, or no size is small enough.
    """
    curve = read(folder)
    if curve is None:
        if max_loss_increase is not None:
            raise RankwiseError(
                f"{folder} has no {CURVE}, so what a smaller size costs isn't known. Adaptive rank writes it; `rankwise compress` measures "
                "it on labelled rows."
            )
        return None
    whole = {path: rank for path, rank in curve.points[0].ranks.items() if rank}
    if whole != adapter.ranks:
        raise RankwiseError(f"{folder / CURVE} is of another adapter: its ranks are others. {REMEDY}")
    found = curve.points[0] if max_loss_increase is None else curve.within_loss(max_loss_increase)
    return found if max_params is None or found.params <= max_params else curve.within_params(max_params)


def table(curve: Curve, metric: str | None = None) -> list[tuple[str, ...]]:
    """Return the curve as cells, a header first: parameters, share of the whole, loss increase as a share of the gain, score.

    Args:
        curve: of an adapter.
        metric: which score. Default: the first.
    """
    metric = metric or next(iter(curve.points[0].scores), None)
    whole, gain = max(curve.points[0].params, 1), curve.gain if curve.gain > 0 else float("nan")
    rows = [("parameters", "of the whole", "loss increase, of the gain", metric or "")]
    for size in curve.points:
        increase = f"{100 * size.loss_increase / gain:+.1f} ± {100 * size.error / gain:.1f} %"
        score = f"{size.scores[metric]:.4f}" if metric in size.scores else ""
        rows.append((f"{size.params:,}", f"{100 * size.params / whole:.0f} %", increase, score))
    return rows
