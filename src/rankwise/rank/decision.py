"""A proposal of the controller and what became of it: a line of ranks.jsonl, and a sentence for people."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

DONE = {"prune": "pruned", "grow": "grown", "restore": "restored", "undo": "undone"}


@dataclass(frozen=True)
class Decision:
    """A proposal and what became of it.

    Attributes:
        step: optimizer steps taken before it; 0 where a finished adapter is compressed.
        kind: `prune`, `grow`, `restore` (what an earlier prune removed) or `undo` (the last prune, which training has not made up for).
        accepted: the layers were resized.
        changes: module path → (rank before, rank proposed); only where they differ.
        ranks: module path → rank after the decision.
        loss_increase: mean over held-out rows of the loss without the components minus with them. Of an `undo`: of the loss now minus
            before the prune.
        error: its standard error.
        rows: held-out rows it was measured on.
        limit: loss increase that is tolerated: a share of the gain, or the noise tolerance. Where the gain isn't sure and all components
            may go, a share of the loss without adapters.
        expected: loss increase that the statistics expect; None where they weren't asked.
        factor: upper 95 % bound of loss increase / expected, by a trial pruning; None where there was none.
        gain: mean held-out loss without any adapter minus with all of them, as the check began; None where it wasn't asked.
    """

    step: int
    kind: str
    accepted: bool
    changes: dict[str, tuple[int, int]]
    ranks: dict[str, int]
    loss_increase: float
    error: float
    rows: int
    limit: float
    expected: float | None = None
    factor: float | None = None
    gain: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain values, a line of ranks.jsonl."""
        return {
            "step": self.step,
            "kind": self.kind,
            "accepted": self.accepted,
            "changes": {path: list(change) for path, change in self.changes.items()},
            "ranks": self.ranks,
            "evidence": {
                "loss_increase": self.loss_increase,
                "error": self.error,
                "rows": self.rows,
                "limit": self.limit,
                "expected": self.expected,
                "factor": self.factor,
                "gain": self.gain,
            },
            "text": str(self),
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "Decision":
        """Return the decision that `to_json` was called on."""
        changes = {path: (before, after) for path, (before, after) in stored["changes"].items()}
        evidence = stored["evidence"]
        return cls(stored["step"], stored["kind"], stored["accepted"], changes, stored["ranks"], **evidence)

    def __str__(self) -> str:
        added = sum(after - before for before, after in self.changes.values())
        before = sum(self.ranks.values()) - (added if self.accepted else 0)
        when = f"step {self.step}" if self.step else "compress"
        layers = f"{len(self.changes)} layer{'s' * (len(self.changes) > 1)}"
        they = "the last quarter of each" if self.kind == "grow" else f"the {abs(added)}"
        return (
            f"{when}: {'' if self.accepted else 'not '}{DONE[self.kind]}, {before} → {before + added} components, in {layers}; "
            f"held-out loss without {they}: {self.loss_increase:+.4f} ± {self.error:.4f} on {self.rows} rows, "
            f"limit {self.limit:.4f}"
        )


def summary(decisions: Sequence[Decision], most: int, kept: int) -> str:
    """Return what became of an adapter's parameters, in a sentence or two for people.

    Args:
        decisions: of the whole training.
        most: adapter parameters when there were most of them.
        kept: adapter parameters now.
    """
    pruned = [d for d in decisions if d.kind == "prune" and d.accepted]
    if not pruned:
        return f"Kept all {most:,} adapter parameters: held-out rows can't show that any are negligible."
    last, after = pruned[-1], decisions[-1]
    line = f"Kept {100 * kept / most:.0f} % of {most:,} adapter parameters. "
    if after.kind == "undo" and after.accepted:
        return line + (
            f"The last prune was undone: after further training the held-out loss was {_of_gain(after, last.gain)} higher than before it."
        )
    change = "fell" if last.loss_increase < 0 else "rose"
    line += f"Without what was pruned last, the held-out loss {change} by {_of_gain(last, last.gain)} ({last.rows} rows)"
    if after.kind == "undo":
        change = "lower" if after.loss_increase < 0 else "higher"
        line += f"; after further training it was {_of_gain(after, last.gain)} {change} than before the prune"
    return line + "."


def _of_gain(decision: Decision, gain: float | None) -> str:
    """Return the size of a loss increase or decrease as a share of the gain, or of the loss where the gain isn't known or isn't above 0."""
    size = abs(decision.loss_increase)
    if gain is None or gain <= 0:
        return f"{size:.4f} ± {decision.error:.4f}"
    return f"{100 * size / gain:.1f} ± {100 * decision.error / gain:.1f} % of what the adapter gains"


def start_line(ranks: Mapping[str, int]) -> dict[str, Any]:
    """Return the first line of ranks.jsonl: the rank at which every layer starts."""
    low, high = min(ranks.values()), max(ranks.values())
    starts = f"rank {low}" if low == high else f"ranks of {low} to {high}"
    return {
        "step": 0,
        "kind": "start",
        "accepted": True,
        "changes": {},
        "ranks": dict(ranks),
        "evidence": None,
        "text": f"step 0: {len(ranks)} layers start at {starts}",
    }
