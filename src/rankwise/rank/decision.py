"""A proposal of the controller and what became of it: a line of ranks.jsonl, and a sentence for people."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

DONE = {"prune": "pruned", "grow": "grown", "restore": "restored"}


@dataclass(frozen=True)
class Decision:
    """A proposal and what became of it.

    Attributes:
        step: optimizer steps taken before it; 0 where a finished adapter is compressed.
        kind: `prune`, `grow` or `restore`.
        accepted: the layers were resized.
        changes: module path → (rank before, rank proposed); only where they differ.
        ranks: module path → rank after the decision.
        loss_increase: mean over held-out rows of the loss without the components minus with them.
        error: its standard error.
        rows: held-out rows it was measured on.
        limit: loss increase that is tolerated: a share of the gain, or the noise tolerance. Where the gain isn't sure and all components
            may go, a share of the loss without adapters.
        expected: loss increase that the statistics expect, where they say something.
        factor: upper 95 % bound of loss increase / expected, by a trial pruning; None where there was none.
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
        they = "the last of each" if self.kind == "grow" else f"the {abs(added)}"
        return (
            f"{when}: {'' if self.accepted else 'not '}{DONE[self.kind]}, {before} → {before + added} components, in {layers}; "
            f"held-out loss without {they}: {self.loss_increase:+.4f} ± {self.error:.4f} on {self.rows} rows, "
            f"limit {self.limit:.4f}"
        )


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
