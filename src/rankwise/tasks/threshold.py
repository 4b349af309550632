"""A threshold on one class's probability: a row is of the class where its probability reaches it, and of the best other class elsewhere.

It is found on labelled rows, for a precision or a recall that is asked for (`precision=0.9`), and stored beside the adapter.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from pydantic import TypeAdapter
from sklearn.metrics import accuracy_score, precision_recall_curve, precision_score, recall_score

from rankwise.errors import RankwiseError, nearest
from rankwise.tasks.labels import Labels
from rankwise.tasks.objectives import Objective
from rankwise.tasks.quality import probabilities

WANTED = ("precision", "recall")


@dataclass(frozen=True)
class Threshold:
    """From which probability on a row is of a class.

    Attributes:
        name: of the class or label.
        probability: the smallest that counts as the class.
        wanted: what it was found for, `precision=0.9`.
        precision: of the class with it, on the rows that it was found on.
        recall: likewise.
        rows: their number.
    """

    name: str
    probability: float
    wanted: str
    precision: float
    recall: float
    rows: int

    def __str__(self) -> str:
        return (
            f"{self.name} from probability {self.probability:.4f} on (for {self.wanted}): precision {self.precision:.4f}, "
            f"recall {self.recall:.4f} on the {self.rows:,} rows that it was found on"
        )

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self)

    def on(
        self, objective: Objective, labels: Labels, logits: np.ndarray, names: Sequence[str]
    ) -> dict[str, float]:
        """Return precision and recall of the class, and the share of right rows, on labelled rows with this threshold."""
        said, place = self.decide(objective, logits, names), list(names).index(self.name)
        is_it, taken = (
            column == place if labels.ndim == 1 else column[:, place] > 0 for column in (labels, said)
        )
        return {
            "precision": float(precision_score(is_it, taken, zero_division=0.0)),  # pyright: ignore[reportArgumentType]
            "recall": float(recall_score(is_it, taken, zero_division=0.0)),  # pyright: ignore[reportArgumentType]
            "accuracy": float(accuracy_score(labels, said)),
        }

    def decide(self, objective: Objective, logits: np.ndarray, names: Sequence[str]) -> Labels:
        """Return the predictions of logits [rows, outputs] with this threshold, in the labels' form."""
        said, place = objective.predict(logits).copy(), list(names).index(self.name)
        reached = probabilities(objective, logits)[:, place] >= self.probability
        if said.ndim > 1:
            said[:, place] = reached
            return said
        others = logits.astype(np.float64)
        others[:, place] = -np.inf
        return np.where(reached, place, others.argmax(axis=1)).astype(said.dtype)


def from_json(stored: Any) -> Threshold:
    """Return what `to_json` returned as a threshold.

    Raises:
        ValueError: it is something else.
    """
    return TypeAdapter(Threshold).validate_python(stored)


def parse(wanted: str) -> tuple[str, float]:
    """Read `precision=0.9`.

    Raises:
        RankwiseError: it is something else.
    """
    kind, _, text = wanted.partition("=")
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if kind not in WANTED or not 0 < value <= 1:
        raise RankwiseError(
            f"`threshold_for=` takes precision or recall with a share, such as precision=0.9, not {wanted!r}."
        )
    return kind, value


def check(wanted: str | None, name: str | None, objective: Objective, names: Sequence[str]) -> None:
    """Refuse a threshold that can't be found, before anything slow is done.

    Args:
        wanted: such as `precision=0.9`; None asks for no threshold.
        name: of the class.
        objective: what is learned.
        names: of its outputs.

    Raises:
        RankwiseError: saying what is missing or wrong.
    """
    if wanted is None:
        if name is not None:
            raise RankwiseError("`of_class=` goes with `threshold_for=`, such as precision=0.9.")
        return
    parse(wanted)
    if not objective.fewest_names or objective.of_words:
        raise RankwiseError(f"`threshold_for=` is for classes, and this is {objective.name}. Leave it out.")
    if name is None:
        raise RankwiseError(
            f"`threshold_for=` needs a class: name it with `of_class=`. Known: {', '.join(names)}."
        )
    if name not in names:
        raise RankwiseError(f"There is no class {name!r}.{nearest(name, names)}")


def find(
    wanted: str, name: str, objective: Objective, labels: np.ndarray, logits: np.ndarray, names: Sequence[str]
) -> Threshold:
    """Return the threshold with the best recall at the precision that is wanted, or the best precision at the recall.

    The arguments are those of `check`, and labelled rows with their logits.

    Raises:
        RankwiseError: no row has the class, or no threshold reaches what is wanted.
    """
    kind, least = parse(wanted)
    place = list(names).index(name)
    is_it = labels == place if labels.ndim == 1 else labels[:, place] > 0
    if not is_it.any():
        raise RankwiseError(f"None of these {len(labels):,} rows is {name!r}: a threshold for it needs some.")
    curve = precision_recall_curve(is_it, probabilities(objective, logits)[:, place])
    precision, recall, thresholds = curve[0][:-1], curve[1][:-1], curve[2]  # the last point has no threshold
    held, best = (precision, recall) if kind == "precision" else (recall, precision)
    reached = np.flatnonzero(held >= least)
    if not len(reached):
        at = int(held.argmax())
        raise RankwiseError(
            f"No threshold reaches {wanted} for {name!r} on these {len(labels):,} rows: the highest {kind} is {held[at]:.4f}, "
            f"at {'recall' if kind == 'precision' else 'precision'} {best[at]:.4f}."
        )
    at = int(reached[np.lexsort((held[reached], best[reached]))[-1]])
    return Threshold(
        name, float(thresholds[at]), wanted, float(precision[at]), float(recall[at]), len(labels)
    )
