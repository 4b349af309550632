"""The rank pattern: every adapted layer's rank over the steps of a run, and the evidence of each decision that changed it."""

import re
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from rankwise import records
from rankwise.errors import RankwiseError
from rankwise.report.cells import Cells, Run

NUMBER = re.compile(r"[0-9]{1,9}")
DRAWN = 24
"""Runs whose rank pattern is drawn: the first seed of every task and method before any second one."""


@dataclass(frozen=True)
class LoggedDecision:
    """A line of ranks.jsonl.

    Attributes:
        step: optimizer steps taken before it.
        kind: start, prune, grow or restore.
        accepted: the layers were resized.
        changes: layer → (rank before, rank proposed).
        text: the evidence in a sentence.
    """

    step: int
    kind: str
    accepted: bool
    changes: dict[str, tuple[int, int]]
    text: str


@dataclass(frozen=True)
class RankPattern:
    """The ranks of one run.

    Attributes:
        task: its name.
        method: its name.
        seed: of the run.
        layers: short names, in the model's order.
        edges: steps between which no rank changes, [columns + 1].
        ranks: [layers][columns].
        decisions: in their order, with `changes` by the same short names.
        memory: step → MB by kind at the peak of that step, for the steps that were recorded.
    """

    task: str
    method: str
    seed: int
    layers: list[str]
    edges: list[int]
    ranks: list[list[int | None]]
    decisions: list[LoggedDecision]
    memory: dict[int, dict[str, float]]


def rank_patterns(cells: Cells) -> tuple[list[RankPattern], list[str]]:
    """Make the rank patterns of runs that logged decisions, and sentences about what isn't shown."""
    runs = [(place, cell, run) for cell, seeds in cells.items() for place, run in enumerate(seeds.values())]
    made, notes, more = [], [], 0
    for _, (task, method), run in sorted(runs, key=lambda item: item[0]):
        lines, unread = run.folder.read_decisions()
        if unread:
            notes.append(
                f"{unread} line{'s' * (unread > 1)} of {run.folder.path / 'ranks.jsonl'} can't be read: "
                "left out of the rank pattern."
            )
        if not lines or len(made) == DRAWN:
            more += bool(lines)
            continue
        pattern = rank_pattern(task, method, run.result["seed"], lines, run.result.get("steps"), _memory(run))
        if pattern.layers:
            made.append(pattern)
    if more:
        notes.append(f"{more} more runs have a rank pattern; the page draws {DRAWN}.")
    order = {cell: place for place, cell in enumerate(cells)}
    return sorted(made, key=lambda pattern: (order[pattern.task, pattern.method], pattern.seed)), notes


def _memory(run: Run) -> dict[int, dict[str, float]]:
    try:
        lines = [line for line in run.folder.read_steps() if line.get("memory")]
        return {line["step"]: line["memory"] for line in lines if not records.fault(records.Step, line)}
    except RankwiseError:  # reported with the training curves
        return {}


def rank_pattern(
    task: str,
    method: str,
    seed: int,
    lines: list[dict[str, Any]],
    last_step: int | None,
    memory: dict[int, dict[str, float]] | None = None,
) -> RankPattern:
    """Make the rank pattern of one run.

    Args:
        task: its name.
        method: its name.
        seed: of the run.
        lines: its decisions (`records.Decision`); fields may be missing.
        last_step: of the run, where the last column ends.
        memory: see `RankPattern`.
    """
    known: dict[str, int] = {}
    columns: list[tuple[int, dict[str, int]]] = []
    decisions = []
    for line in sorted(lines, key=lambda line: line["step"]):
        accepted, changes = bool(line.get("accepted", True)), _changes(line)
        if accepted:
            known = known | {layer: after for layer, (_, after) in changes.items()}
        known = known | (line.get("ranks") or {})
        if columns and columns[-1][0] == line["step"]:
            columns.pop()
        if not columns or columns[-1][1] != known:
            columns.append((line["step"], known))
        decisions.append(
            LoggedDecision(line["step"], str(line.get("kind", "")), accepted, changes, _text(line, changes))
        )
    layers = sorted(known, key=_order)
    short = dict(zip(layers, short_names(layers), strict=True))
    end = max([last_step or 0, *(step + 1 for step, _ in columns)])
    return RankPattern(
        task,
        method,
        seed,
        layers=list(short.values()),
        edges=[step for step, _ in columns] + [end],
        ranks=[[ranks.get(layer) for _, ranks in columns] for layer in layers],
        decisions=[
            LoggedDecision(
                d.step, d.kind, d.accepted, {short[k]: v for k, v in d.changes.items() if k in short}, d.text
            )
            for d in decisions
        ],
        memory=memory or {},
    )


def short_names(paths: list[str]) -> list[str]:
    """Shorten module paths to as much of their end as tells them apart.

    `roberta.encoder.layer.4.attention.self.value` → `4 value`.
    """
    parts = [path.split(".") for path in paths]
    for depth in range(1, max(map(len, parts), default=0) + 1):
        names = [_name(part, depth) for part in parts]
        if len(set(names)) == len(names):
            return names
    return paths


def _name(parts: list[str], depth: int) -> str:
    """Join the layer's number and the last `depth` parts of its path; what precedes the number is dropped."""
    number = next((place for place, part in enumerate(parts) if NUMBER.fullmatch(part)), -1)
    end = ".".join(parts[max(number + 1, len(parts) - depth) :])
    return f"{parts[number]} {end}" if number >= 0 else end


def _order(path: str) -> tuple[bool, list[int]]:
    """Sort by layer number; modules without one, such as a pooler, come last."""
    numbers = [int(part) for part in path.split(".") if NUMBER.fullmatch(part)]
    return not numbers, numbers


def _changes(line: dict[str, Any]) -> dict[str, tuple[int, int]]:
    return {layer: (before, after) for layer, (before, after) in (line.get("changes") or {}).items()}


def _text(line: dict[str, Any], changes: dict[str, tuple[int, int]]) -> str:
    """The line's own sentence; without one, its changes and the loss increase."""
    if line.get("text"):
        return line["text"]
    shown = [f"{layer}: {before} → {after}" for layer, (before, after) in changes.items()]
    evidence = line.get("evidence") or {}
    increase, error = evidence.get("loss_increase"), evidence.get("error")
    if increase is not None:
        shown.append(
            f"held-out loss increase {increase:+.4f}" + (f" ± {error:.4f}" if error is not None else "")
        )
    return f"step {line['step']}: {'; '.join(shown) or line.get('kind', 'decision')}"


def summary(pattern: RankPattern) -> str:
    """Say in a sentence how the ranks changed."""
    first, last = ([row[place] or 0 for row in pattern.ranks] for place in (0, -1))
    changed = sum(any(a != b for a, b in pairwise(row)) for row in pattern.ranks)
    decisions = pattern.decisions
    return (
        f"mean rank {sum(first) / len(first):.1f} at step {pattern.edges[0]}, {sum(last) / len(last):.1f} at the end; "
        f"{changed} of {len(last)} layers changed; {sum(d.accepted for d in decisions)} of {len(decisions)} decisions accepted"
    )
