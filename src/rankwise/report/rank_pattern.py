"""The rank map: every adapted layer's rank from the first step to the last, and what each decision was based on."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from rankwise.errors import RankwiseError

if TYPE_CHECKING:
    from rankwise.report.document import Cell, Run

MAPS = 24
"""Runs whose map is drawn: the first seed of every task and method before any second one."""


@dataclass(frozen=True)
class Decision:
    """One rank decision.

    Attributes:
        kind: start, cut, grow.
        changes: layer → rank before and after it (what was tried, where it was not accepted).
        text: its evidence in a sentence.
    """

    step: int
    kind: str
    accepted: bool
    changes: dict[str, tuple[int, int]]
    text: str


@dataclass(frozen=True)
class RankMap:
    """One run's.

    Attributes:
        layers: short names, in the model's order.
        edges: steps between which no rank changes; one more than there are columns.
        ranks: [layers][columns].
        decisions: in their order, `changes` by the same short names.
        memory: MB by kind at the peak of the steps that were followed, by step.
    """

    task: str
    method: str
    seed: int
    layers: list[str]
    edges: list[int]
    ranks: list[list[int | None]]
    decisions: list[Decision]
    memory: dict[int, dict[str, float]]


def rank_maps(cells: "Mapping[Cell, dict[int, Run]]") -> tuple[list[RankMap], list[str]]:
    """The maps of runs that logged decisions, and sentences on what isn't shown."""
    runs = [(place, cell, run) for cell, seeds in cells.items() for place, run in enumerate(seeds.values())]
    maps, notes, more = [], [], 0
    for _, (task, method), run in sorted(runs, key=lambda item: item[0]):
        lines, unread = run.folder.read_decisions()
        if unread:
            notes.append(
                f"{unread} line{'s' * (unread > 1)} of {run.folder.path / 'ranks.jsonl'} can't be read: left out of the rank map."
            )
        if not lines or len(maps) == MAPS:
            more += bool(lines)
            continue
        made = rank_map(task, method, run.result["seed"], lines, run.result.get("steps"), _memory(run))
        if made.layers:
            maps.append(made)
    if more:
        notes.append(f"{more} more runs have a rank map; the page draws {MAPS}.")
    order = {cell: place for place, cell in enumerate(cells)}
    return sorted(maps, key=lambda m: (order[m.task, m.method], m.seed)), notes


def _memory(run: "Run") -> dict[int, dict[str, float]]:
    try:
        return {line["step"]: line["memory"] for line in run.folder.read_steps() if line.get("memory")}
    except RankwiseError:  # said beside the training curves
        return {}


def rank_map(
    task: str,
    method: str,
    seed: int,
    lines: list[dict[str, Any]],
    last_step: int | None,
    memory: dict[int, dict[str, float]] | None = None,
) -> RankMap:
    """The map of one run.

    Args:
        lines: its decisions, as ranks.jsonl has them; a missing field says nothing.
        last_step: of the run, where its last column ends.
        memory: see `RankMap`.
    """
    known: dict[str, int] = {}
    columns: list[tuple[int, dict[str, int]]] = []
    decisions = []
    for line in sorted(lines, key=lambda line: line["step"]):
        accepted, changes = bool(line.get("accepted", True)), _changes(line)
        if accepted:
            known = known | {layer: after for layer, (_, after) in changes.items()}
        ranks = line.get("ranks")
        if isinstance(ranks, dict):
            known = known | {layer: rank for layer, rank in ranks.items() if isinstance(rank, int)}
        if columns and columns[-1][0] == line["step"]:
            columns.pop()
        if not columns or columns[-1][1] != known:
            columns.append((line["step"], known))
        decisions.append(
            Decision(line["step"], str(line.get("kind", "")), accepted, changes, _text(line, changes))
        )
    layers = sorted(known, key=_place)
    short = dict(zip(layers, short_names(layers), strict=True))
    end = max([last_step or 0, *(step + 1 for step, _ in columns)])
    return RankMap(
        task,
        method,
        seed,
        layers=list(short.values()),
        edges=[step for step, _ in columns] + [end],
        ranks=[[ranks.get(layer) for _, ranks in columns] for layer in layers],
        decisions=[
            Decision(
                d.step, d.kind, d.accepted, {short[k]: v for k, v in d.changes.items() if k in short}, d.text
            )
            for d in decisions
        ],
        memory=memory or {},
    )


def short_names(paths: list[str]) -> list[str]:
    """`roberta.encoder.layer.4.attention.self.value` → `4 value`; as much of the path's end as tells two apart."""
    parts = [path.split(".") for path in paths]
    for depth in range(1, max(map(len, parts), default=0) + 1):
        names = [_name(part, depth) for part in parts]
        if len(set(names)) == len(names):
            return names
    return paths


def _name(parts: list[str], depth: int) -> str:
    """The layer's number and the last `depth` parts of its path, without what comes before the number."""
    number = next((place for place, part in enumerate(parts) if part.isdigit()), -1)
    end = ".".join(parts[max(number + 1, len(parts) - depth) :])
    return f"{parts[number]} {end}" if number >= 0 else end


def _numbers(path: str) -> list[str]:
    return [part for part in path.split(".") if part.isdigit()]


def _place(path: str) -> tuple[list[int], str]:
    """By layer number, then by name."""
    return [int(number) for number in _numbers(path)], re.sub(r"\d+", "", path)


def _changes(line: dict[str, Any]) -> dict[str, tuple[int, int]]:
    changes = line.get("changes")
    if not isinstance(changes, dict):
        return {}
    return {
        layer: (ranks[0], ranks[1])
        for layer, ranks in changes.items()
        if isinstance(ranks, list) and len(ranks) == 2 and all(isinstance(rank, int) for rank in ranks)
    }


def _text(line: dict[str, Any], changes: dict[str, tuple[int, int]]) -> str:
    """The line's own sentence; without one, what of it is known."""
    if line.get("text"):
        return str(line["text"])
    shown = [f"{layer}: {before} → {after}" for layer, (before, after) in changes.items()]
    evidence = line.get("evidence")
    if isinstance(evidence, dict) and isinstance(evidence.get("difference"), int | float):
        error = f" ± {evidence['error']:.4f}" if isinstance(evidence.get("error"), int | float) else ""
        shown.append(f"held-out loss {evidence['difference']:+.4f}{error}")
    return f"step {line['step']}: {'; '.join(shown) or line.get('kind', 'decision')}"


def held(rank_map: RankMap) -> str:
    """What became of the ranks, in a sentence."""
    first, last = ([row[place] or 0 for row in rank_map.ranks] for place in (0, -1))
    changed = sum(any(a != b for a, b in pairwise(row)) for row in rank_map.ranks)
    decisions = rank_map.decisions
    return (
        f"mean rank {sum(first) / len(first):.1f} at step {rank_map.edges[0]}, {sum(last) / len(last):.1f} at the end; "
        f"{changed} of {len(last)} layers changed; {sum(d.accepted for d in decisions)} of {len(decisions)} decisions accepted"
    )
