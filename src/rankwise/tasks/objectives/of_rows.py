"""Objectives whose rows have labels: a class, several labels, or a number."""

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int64

from rankwise.errors import RankwiseError
from rankwise.tasks.cells import OddCell, class_name, is_empty, is_whole, number, plain, whole_numbers
from rankwise.tasks.labels import Labels, default_names
from rankwise.tasks.objectives.objective import Objective, as_numbers, counted, of_each_name, refuse_missing

if TYPE_CHECKING:
    import torch  # for its types alone: the grid's own process reads tasks and needs no torch

LARGEST = 1e18
"""The largest number of a regression: the mean of squares must be one too, in float32."""


class Classification(Objective):
    """One class a row."""

    name = "classification"
    problem_type = "single_label_classification"
    metrics = ("accuracy", "mcc")
    more_metrics = ("balanced_accuracy", "f1", "micro_f1", "macro_f1")
    fewest_names = 2

    def read(self, values: Sequence[Any], names: Sequence[str] = (), *, ids: bool = False) -> list[Any]:
        return self._each(whole_numbers([plain(value) for value in values], names), names, ids=ids)

    def parse(self, value: Any, names: Sequence[str] = (), *, ids: bool = False) -> str | None:
        return class_name(value, names, ids=ids)

    def outputs_of(self, names: Sequence[str]) -> dict[str, int]:
        ids = super().outputs_of(names)
        if list(names) == default_names(len(names)):
            ids |= {
                str(place): place for place in range(len(names))
            }  # models without names are labelled by ids
        return ids

    def names_in(self, label: str) -> tuple[str, ...]:
        return (label,)

    def encode(self, labels: Sequence[str], ids: Mapping[str, int], outputs: int) -> Labels:
        return np.array([ids[name] for name in labels], dtype=np.int64)

    def example_losses(
        self, logits: "torch.Tensor", labels: "torch.Tensor", weights: "torch.Tensor | None" = None
    ) -> "torch.Tensor":
        from rankwise.tasks import losses

        return losses.cross_entropy(logits, labels, weights)

    def calibrated_losses(
        self, logits: "torch.Tensor", labels: "torch.Tensor", weights: "torch.Tensor | None" = None
    ) -> "torch.Tensor":
        from rankwise.tasks import losses

        return losses.calibrated(losses.cross_entropy, logits, labels, weights)

    def _balanced(self, names: Sequence[str], labels: Labels) -> np.ndarray:
        with_it = np.bincount(labels, minlength=len(names))
        refuse_missing(names, with_it, len(labels) - with_it)
        return len(labels) / (len(names) * with_it)

    def strata(self, labels: Labels) -> Int64[np.ndarray, "rows"]:
        return labels

    def predict(self, logits: np.ndarray) -> Labels:
        return logits.argmax(axis=1)

    def columns(
        self, logits: np.ndarray, names: Sequence[str], said: Labels | None = None
    ) -> tuple[dict[str, Any], dict[str, float]]:
        from scipy.special import softmax

        said, labels = self.predict(logits) if said is None else said, as_numbers(names)
        counts = np.bincount(said, minlength=len(names))
        columns = of_each_name(names, softmax(logits, axis=1), logits)
        return {"label": [labels[i] for i in said], **columns}, counted(names, counts)

    def describe(self, names: Sequence[str]) -> str:
        return f"Classifies text as {', '.join(names)}."


class MultiLabel(Objective):
    """Any number of labels a row."""

    name = "multi-label"
    problem_type = "multi_label_classification"
    metrics = ("micro_f1", "macro_f1", "accuracy")
    fewest_names = 1

    def read(self, values: Sequence[Any], names: Sequence[str] = (), *, ids: bool = False) -> list[Any]:
        cells = [plain(value) for value in values]
        if not _are_marks(cells, names):
            return self._each(cells, names, ids=ids)
        marked = list(names) or default_names(next(len(cell) for cell in cells if isinstance(cell, list)))
        return [
            tuple(name for name, mark in zip(marked, cell, strict=True) if mark)
            if isinstance(cell, list)
            else self.parse(cell)
            for cell in cells
        ]

    def parse(self, value: Any, names: Sequence[str] = (), *, ids: bool = False) -> tuple[str, ...] | None:
        """Return the names in a list. Marks, a 0 or 1 for each label, are told from names by the whole column: see `read`."""
        if is_empty(value):
            return None
        if not isinstance(value, list):
            columns = "a column of 0s and 1s for each, all of them named with `label=`"
            raise OddCell(value, f"several labels are a list in each row (JSONL, Parquet), or {columns}")
        if any(isinstance(one, float | Decimal) and not is_whole(one) for one in value):
            raise OddCell(value, "a list holds names of labels, or a 0 or 1 for each label, and no fractions")
        found = tuple(name for one in value if (name := class_name(one)) is not None)
        if len(found) < len(value) or len(set(found)) < len(found):
            raise OddCell(
                value, "a list names the labels that a row has, each once, or holds a 0 or 1 for each label"
            )
        return found

    def find_names(self, values: Sequence[Any]) -> tuple[str, ...]:
        cells = [plain(value) for value in values]
        if _are_marks(cells, ()):
            return tuple(default_names(next(len(cell) for cell in cells if isinstance(cell, list))))
        return super().find_names(values)

    def names_in(self, label: tuple[str, ...]) -> tuple[str, ...]:
        return label

    def encode(self, labels: Sequence[tuple[str, ...]], ids: Mapping[str, int], outputs: int) -> Labels:
        hot = np.zeros((len(labels), outputs), dtype=np.float32)
        for row, names in enumerate(labels):
            hot[row, [ids[name] for name in names]] = 1
        return hot

    def example_losses(
        self, logits: "torch.Tensor", labels: "torch.Tensor", weights: "torch.Tensor | None" = None
    ) -> "torch.Tensor":
        from rankwise.tasks import losses

        return losses.binary_cross_entropy(logits, labels, weights)

    def calibrated_losses(
        self, logits: "torch.Tensor", labels: "torch.Tensor", weights: "torch.Tensor | None" = None
    ) -> "torch.Tensor":
        from rankwise.tasks import losses

        return losses.calibrated(losses.binary_cross_entropy, logits, labels, weights)

    def _balanced(self, names: Sequence[str], labels: Labels) -> np.ndarray:
        with_it = labels.sum(axis=0)
        without = len(labels) - with_it
        refuse_missing(names, with_it, without)
        return without / with_it

    def predict(self, logits: np.ndarray) -> Labels:
        return (logits > 0).astype(np.float32)

    def columns(
        self, logits: np.ndarray, names: Sequence[str], said: Labels | None = None
    ) -> tuple[dict[str, Any], dict[str, float]]:
        from scipy.special import expit

        said, labels = self.predict(logits) if said is None else said, as_numbers(names)
        columns = of_each_name(names, expit(logits), logits)
        lists = [[labels[i] for i in np.flatnonzero(row)] for row in said]
        return {"label": lists, **columns}, counted(names, said.sum(axis=0))

    def describe(self, names: Sequence[str]) -> str:
        return f"Predicts which of these labels a text has: {', '.join(names)}."


class Regression(Objective):
    """A number a row."""

    name = "regression"
    problem_type = "regression"
    metrics = ("pearson", "spearman")
    fewest_names = 0

    def parse(self, value: Any, names: Sequence[str] = (), *, ids: bool = False) -> float | None:
        if is_empty(value):
            return None
        found = number(value)
        if found is None:
            raise OddCell(value, "regression takes numbers")
        if abs(found) > LARGEST:
            raise OddCell(
                value, f"regression takes numbers up to {LARGEST:g}, whose squares float32 can hold"
            )
        return found

    def encode(self, labels: Sequence[float], ids: Mapping[str, int], outputs: int) -> Labels:
        return np.array(labels, dtype=np.float32)

    def example_losses(
        self, logits: "torch.Tensor", labels: "torch.Tensor", weights: "torch.Tensor | None" = None
    ) -> "torch.Tensor":
        from rankwise.tasks import losses

        return losses.squared_error(logits, labels)

    def calibrated_losses(
        self, logits: "torch.Tensor", labels: "torch.Tensor", weights: "torch.Tensor | None" = None
    ) -> "torch.Tensor":
        return self.example_losses(logits, labels)

    def class_weights(self, spec: str, names: Sequence[str], labels: Labels) -> "torch.Tensor":
        raise RankwiseError("`class_weights=` is for classes, and this is regression. Leave it out.")

    def predict(self, logits: np.ndarray) -> Labels:
        return logits[:, 0].astype(np.float32)

    def columns(
        self, logits: np.ndarray, names: Sequence[str], said: Labels | None = None
    ) -> tuple[dict[str, Any], dict[str, float]]:
        said = self.predict(logits) if said is None else said
        low, mean, high = (float(f(said)) for f in (np.min, np.mean, np.max))
        return {"label": said}, {"lowest": low, "mean": mean, "highest": high}

    def combine(self, summaries: Sequence[tuple[int, Mapping[str, float]]]) -> dict[str, float]:
        rows = sum(n for n, _ in summaries)
        return {
            "lowest": min(one["lowest"] for _, one in summaries),
            "mean": sum(n * one["mean"] for n, one in summaries) / rows,
            "highest": max(one["highest"] for _, one in summaries),
        }

    def describe(self, names: Sequence[str]) -> str:
        return f"Predicts a number for a text: {', '.join(names)}."


# ── Marks of several labels ───────────────────────────────────────────────────────────────────────────────────────────────


def _are_marks(cells: Sequence[Any], names: Sequence[str]) -> bool:
    """Whether the lists of a column hold a 0 or 1 for each label, and not the names of the labels that a row has.

    They do if all of them hold nothing else and have the same length: that of `names`, or two or more if there are no names yet.

    Raises:
        OddCell: they may be either.
    """
    lists = [(row, cell) for row, cell in enumerate(cells) if isinstance(cell, list)]
    numbered = bool({"0", "1"} & set(names))
    if names and not numbered:
        return _all_marks(lists, len(names))
    full = [cell for _, cell in lists if cell]
    lengths = {len(cell) for cell in full}
    if len(lengths) != 1 or not all(_is_mark(one) for cell in full for one in cell):
        return False
    (length,) = lengths
    if names and length != len(names):
        return False
    if len(full) < len(lists):
        if length == 1:
            return False
        row = next(row for row, cell in lists if not cell)
        raise _odd_at(row, [], f"the other rows have a list of {length} marks, each 0 or 1")
    if length > 1 and (not names or any(len(set(cell)) < length for cell in full)):
        return True
    row, cell = lists[0]
    raise _odd_at(row, cell, "it may name labels or mark them with 0 and 1; write names as strings")


def _all_marks(lists: Sequence[tuple[int, list[Any]]], outputs: int) -> bool:
    """Whether the lists are marks, where no label is called 0 or 1: all of them are if one of them is."""
    if not any(cell and all(_is_mark(one) for one in cell) for _, cell in lists):
        return False
    for row, cell in lists:
        if len(cell) != outputs or not all(_is_mark(one) for one in cell):
            raise _odd_at(row, cell, f"a list of marks holds a 0 or 1 for each of the {outputs} labels")
    return True


def _is_mark(value: Any) -> bool:
    return isinstance(value, int | float | Decimal) and value in (0, 1)


def _odd_at(row: int, value: Any, expected: str) -> OddCell:
    odd = OddCell(value, expected)
    odd.row = row
    return odd
