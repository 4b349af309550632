"""What an objective is, and what several of them use."""

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int64

from rankwise.errors import RankwiseError, nearest
from rankwise.tasks.cells import OddCell, class_name, plain
from rankwise.tasks.labels import Labels

if TYPE_CHECKING:
    import torch  # for its types alone: the grid's own process reads tasks and needs no torch


class Objective(ABC):
    """What a model learns from its labels.

    Attributes:
        name: as in `TableOptions.problem` and `run.json`.
        problem_type: its name in the config of a Transformers model.
        task_type: its name in the config of a PEFT adapter.
        pipeline_tag: its name on the Hugging Face hub.
        metrics: names in `metrics.METRICS` that your own tables are scored with, the headline first.
        more_metrics: further ones that can be asked for.
        fewest_names: names that a table's labels have at least. 0 if labels aren't made of names.
        has_column: labels stand in a column of their own.
        of_words: texts are lists of words, and each word has a label.
    """

    name: str
    problem_type: str
    task_type: str = "SEQ_CLS"
    pipeline_tag: str = "text-classification"
    metrics: tuple[str, ...]
    more_metrics: tuple[str, ...] = ()
    fewest_names: int
    has_column: bool = True
    of_words: bool = False

    # ── The labels of a table ─────────────────────────────────────────────────────────────────────────────────────────────

    def read(self, values: Sequence[Any], names: Sequence[str] = (), *, ids: bool = False) -> list[Any]:
        """Return the labels of a whole column, None for an empty cell. All rows are read here, those of files and those given in Python.

        Args:
            values: as a file or Python holds them; values of NumPy, PyTorch and pandas too.
            names: of the head's outputs, in order. Empty if they are yet to be found in the column.
            ids: whether an integer may stand for the name of that output.

        Raises:
            OddCell: a value is no label; `row` says which.
        """
        return self._each([plain(value) for value in values], names, ids=ids)

    def _each(self, values: Sequence[Any], names: Sequence[str], *, ids: bool) -> list[Any]:
        labels = []
        for row, value in enumerate(values):
            try:
                labels.append(self.parse(value, names, ids=ids))
            except OddCell as odd:
                odd.row = row
                raise
        return labels

    @abstractmethod
    def parse(self, value: Any, names: Sequence[str] = (), *, ids: bool = False) -> Any:
        """Return the label that one cell holds, None for an empty cell. The arguments are those of `read`.

        Raises:
            OddCell: the cell holds something else.
        """

    def find_names(self, values: Sequence[Any]) -> tuple[str, ...]:
        """Return the names that the outputs get from a column of labels, in order: sorted, by size if all are integers."""
        names = {name for label in self.read(values) if label is not None for name in self.names_in(label)}
        return tuple(sorted(names, key=int) if all_integers(names) else sorted(names))

    def outputs_of(self, names: Sequence[str]) -> dict[str, int]:
        """Return the number of the output for each name that a parsed label may have."""
        ids = {name: place for place, name in enumerate(names)}
        for place, name in enumerate(names):
            ids.setdefault(class_name(name) or name, place)
        return ids

    def names_in(self, label: Any) -> tuple[str, ...]:
        """Return the names that a parsed label is made of."""
        return ()

    @abstractmethod
    def encode(self, labels: Sequence[Any], ids: Mapping[str, int], outputs: int) -> Labels:
        """Return parsed labels as numbers.

        Args:
            labels: from `parse`, without None.
            ids: name → number of the output. Every name of the labels is there.
            outputs: number of outputs of the head.
        """

    # ── Training ──────────────────────────────────────────────────────────────────────────────────────────────────────────

    @abstractmethod
    def example_losses(
        self, logits: "torch.Tensor", labels: "torch.Tensor", weights: "torch.Tensor | None" = None
    ) -> "torch.Tensor":
        """Return the loss of each row, float [rows], or of each token, where tokens have labels.

        Args:
            logits: float32 or wider [rows, outputs].
            labels: of the same rows.
            weights: float32 [outputs], from `class_weights`. None counts all classes alike.
        """

    def outputs(
        self, logits: "torch.Tensor", labels: "torch.Tensor | None", rows: "torch.Tensor | None", count: int
    ) -> "torch.Tensor":
        """Return what evaluation keeps of each row, float [rows, outputs]: its logits, unless tokens have labels.

        Everything below takes it under the name of logits.

        Args:
            logits: as `example_losses` takes them.
            labels: of the same rows or tokens.
            rows: the row of each token, from 0; None where rows have labels.
            count: number of rows.
        """
        return logits

    def row_losses(
        self, logits: "torch.Tensor", labels: "torch.Tensor", weights: "torch.Tensor | None" = None
    ) -> "torch.Tensor":
        """Return the loss of each row, float [rows], from what `outputs` keeps of it. The arguments are those of `example_losses`."""
        return self.example_losses(logits, labels, weights)

    @abstractmethod
    def calibrated_losses(
        self, logits: "torch.Tensor", labels: "torch.Tensor", weights: "torch.Tensor | None" = None
    ) -> "torch.Tensor":
        """Return the loss of each row, without what a model's confidence contributes: what held-out evidence is made of.

        The arguments are those of `example_losses`. See `losses.calibrated`.
        """

    def mean_loss(self, logits: np.ndarray, labels: Labels) -> float:
        """Return the mean loss of logits [rows, outputs], every class counted alike."""
        import torch

        return self.example_losses(torch.from_numpy(logits), torch.from_numpy(labels)).mean().item()

    def class_weights(self, spec: str, names: Sequence[str], labels: Labels) -> "torch.Tensor":
        """Return the weights of the training loss, float32 [outputs].

        Args:
            spec: `balanced`, or `name=weight,…`, where classes that are not named have 1. Balanced weights make all classes count the
                same: n / (classes · rows of the class), as in scikit-learn. For several labels: rows without it / rows with it.
            names: of the classes, in the order of their ids.
            labels: of the training rows.

        Raises:
            RankwiseError: an objective without classes, an unknown name, a weight that is no number above 0, or a class without rows.
        """
        import torch

        if spec.strip() == "balanced":
            return torch.tensor(self._balanced(names, labels), dtype=torch.float32)
        return torch.tensor(_given_weights(spec, names), dtype=torch.float32)

    def _balanced(self, names: Sequence[str], labels: Labels) -> np.ndarray:
        raise RankwiseError(f"`class_weights=` can't be balanced for {self.name}. Give weights by name.")

    def strata(self, labels: Labels) -> Int64[np.ndarray, "rows"]:
        """Return the group of each row; a split into training and validation rows keeps the groups' shares."""
        return np.zeros(len(labels), dtype=np.int64)

    # ── Predictions ───────────────────────────────────────────────────────────────────────────────────────────────────────

    @abstractmethod
    def predict(self, logits: np.ndarray) -> Labels:
        """Return the predictions of logits [rows, outputs], in the labels' form."""

    @abstractmethod
    def columns(
        self, logits: np.ndarray, names: Sequence[str], said: Labels | None = None
    ) -> tuple[dict[str, Any], dict[str, float]]:
        """Return predictions as columns of a table, and a summary of them.

        The columns are `label`, and for classes and labels `probability_<name>` and `logit_<name>`. The summary counts each name, or has
        the `lowest`, `mean` and `highest` number.

        Args:
            logits: float [rows, outputs].
            names: of the outputs.
            said: the predictions, where a threshold makes others than `predict`.
        """

    def combine(self, summaries: Sequence[tuple[int, Mapping[str, float]]]) -> dict[str, float]:
        """Return the summary of all rows from those of their pieces (rows, summary of `columns`)."""
        total: Counter[str] = Counter()
        for _, summary in summaries:
            total.update(summary)  # pyright: ignore[reportArgumentType]
        return dict(total)

    def metrics_for(self, names: Sequence[str]) -> tuple[str, ...]:
        """Return the metrics that labels of these names are scored with, the headline first.

        Raises:
            RankwiseError: a package that they need is missing.
        """
        return self.metrics

    def score(
        self, metrics: Sequence[str], labels: Labels, logits: np.ndarray, names: Sequence[str] = ()
    ) -> dict[str, float]:
        """Return the named metrics of logits [rows, outputs], in the order asked for.

        Args:
            metrics: their names.
            labels: of the same rows.
            logits: as `outputs` returns them.
            names: of the head's outputs, in order.

        Raises:
            RankwiseError: there is no metric of that name, or it is none for this objective.
        """
        from rankwise.tasks.metrics import scores

        fitting = (*self.metrics, *self.more_metrics)
        return scores(metrics, labels, self.predict(logits), problem=self.name, fitting=fitting)

    @abstractmethod
    def describe(self, names: Sequence[str]) -> str:
        """Return what a model with these outputs does, as a sentence for its card."""

    def loaded_by(self, names: Sequence[str]) -> str:
        """Return how Transformers loads the base of a model with these outputs, as the end of a sentence in Markdown."""
        return (
            f"`AutoModelForSequenceClassification.from_pretrained` with\n`num_labels={len(names)}` and\n"
            f'`problem_type="{self.problem_type}"`'
        )


# ── What they share ───────────────────────────────────────────────────────────────────────────────────────────────────────


def all_integers(names: Iterable[str]) -> bool:
    """Whether all names are integers, of a length that Python reads, so that they are sorted by size and not by spelling."""
    return all(re.fullmatch(r"[+-]?[0-9]{1,1000}", name) for name in names)


def as_numbers(names: Sequence[str]) -> list[Any]:
    """Return names as integers if all of them are, so that a column of integers comes back as one."""
    whole = all_integers(names) and all(name == str(int(name)) for name in names)
    return [int(name) for name in names] if whole else list(names)


def of_each_name(names: Sequence[str], probabilities: np.ndarray, logits: np.ndarray) -> dict[str, Any]:
    columns = {f"probability_{name}": probabilities[:, i] for i, name in enumerate(names)}
    return columns | {f"logit_{name}": logits[:, i] for i, name in enumerate(names)}


def counted(names: Sequence[str], counts: np.ndarray) -> dict[str, float]:
    return {name: int(n) for name, n in zip(names, counts, strict=True)}


def refuse_missing(names: Sequence[str], with_it: np.ndarray, without: np.ndarray) -> None:
    for rows, lacking in ((with_it, "no training row has it"), (without, "every training row has it")):
        if not rows.all():
            raise RankwiseError(
                f"`class_weights=balanced` has no weight for {names[int(np.argmin(rows))]!r}: {lacking}. Give weights by name."
            )


def _given_weights(spec: str, names: Sequence[str]) -> list[float]:
    weights = dict.fromkeys(names, 1.0)
    for part in spec.split(","):
        name, equals, text = part.strip().rpartition("=")
        if not equals:
            raise RankwiseError(
                f"`class_weights=` takes balanced, or weights by name such as {names[0]}=2, not {part.strip()!r}."
            )
        if name not in weights:
            raise RankwiseError(f"`class_weights=`: there is no class {name!r}.{nearest(name, names)}")
        try:
            weights[name] = float(text)
        except ValueError:
            weights[name] = 0.0
        if not 1e-9 <= weights[name] <= 1e9:
            raise RankwiseError(
                f"`class_weights=`: the weight of {name} must be a number above 0, 1e-9 to 1e9; it is {text!r}."
            )
    return list(weights.values())
