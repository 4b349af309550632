"""Training curves: each method's loss by step on each task, averaged over seeds and over bins of steps."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from rankwise.errors import RankwiseError
from rankwise.report.cells import Cells

POINTS = 120
"""Bins of a curve at most: more can't be told apart on a screen."""


@dataclass(frozen=True)
class Curve:
    """The curve of a task and method.

    Attributes:
        task: its name.
        method: its name.
        metric: of the validation scores.
        steps: the last optimizer step of each bin.
        loss: mean training loss over the bin and over seeds.
        low: the same of the seed with the lowest loss in the bin.
        high: the same of the seed with the highest.
        scored: steps at which the validation rows were scored during training; empty without `evaluate_every`.
        scores: mean score over seeds at these steps.
        n: number of seeds.
    """

    task: str
    method: str
    metric: str
    steps: list[int]
    loss: list[float]
    low: list[float]
    high: list[float]
    scored: list[int]
    scores: list[float]
    n: int


def curves(cells: Cells) -> tuple[list[Curve], list[str]]:
    """Make a curve for each task and method, and a sentence for each log that can't be read."""
    made, notes = [], []
    for (task, method), runs in cells.items():
        metric = next(iter(runs.values())).result["metric"]
        tables = []
        for run in runs.values():
            try:
                table = run.folder.read_curve(metric)
            except RankwiseError as error:
                notes.append(f"Left out of the training curves: {error}")
                continue
            if len(table):
                tables.append(table)
        if tables:
            made.append(_curve(task, method, metric, tables))
    return made, notes


def _curve(task: str, method: str, metric: str, tables: list[pa.Table]) -> Curve:
    last = max(max(table["step"].to_pylist()) for table in tables)
    edges = np.unique(np.linspace(0, last, min(POINTS, last) + 1).round().astype(int))
    seeds = np.array([_binned(table["step"].to_numpy(), table["loss"].to_numpy(), edges) for table in tables])
    some = ~np.isnan(seeds).all(axis=0)
    seeds, steps = seeds[:, some], edges[1:][some]
    scored: dict[int, list[float]] = {}
    for table in tables:
        rows = table.filter(table["score"].is_valid())
        for step, score in zip(rows["step"].to_pylist(), rows["score"].to_pylist(), strict=True):
            scored.setdefault(step, []).append(score)
    return Curve(
        task=task,
        method=method,
        metric=metric,
        steps=steps.tolist(),
        loss=_rounded(np.nanmean(seeds, axis=0)),
        low=_rounded(np.nanmin(seeds, axis=0)),
        high=_rounded(np.nanmax(seeds, axis=0)),
        scored=sorted(scored),
        scores=_rounded(np.array([np.mean(scored[step]) for step in sorted(scored)])),
        n=len(tables),
    )


def _binned(steps: np.ndarray, values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Average `values` between the edges; NaN where there are none."""
    place = np.searchsorted(edges, steps, side="left") - 1
    total = np.bincount(place, weights=values, minlength=len(edges) - 1)
    number = np.bincount(place, minlength=len(edges) - 1)
    return np.where(number, total / np.maximum(number, 1), np.nan)


def _rounded(values: np.ndarray) -> list[float]:
    return [float(f"{value:.4g}") for value in values]
