"""Objectives: what a model learns from its labels. To add one, write a subclass of `Objective` and put it into `OBJECTIVES`.

    classification   logits [rows, classes]   labels int64 [rows]              cross-entropy          predicts the highest logit
    multi-label      logits [rows, labels]    labels float32 [rows, labels]    binary cross-entropy   predicts every logit above 0
    regression       logits [rows, 1]         labels float32 [rows]            squared error          predicts the logit itself
    tokens           logits [words, tags]     labels int64 [words]             cross-entropy          predicts the highest logit
    generation       logits [tokens, words]   labels int64 [tokens]            cross-entropy          its loss on each row is evaluated

An objective owns everything that differs between them: the labels' form in a table, in Python and as numbers, the loss, the prediction, the
metrics, and what Transformers and PEFT call it. The rest of the code holds an `Objective` and never asks which one it is.
"""

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int64

from rankwise.errors import RankwiseError, nearest
from rankwise.tasks.cells import OddCell, class_name, is_empty, is_whole, number, plain, whole_numbers
from rankwise.tasks.labels import IGNORED, Labels

if TYPE_CHECKING:
    import torch  # for its types alone: the grid's own process reads tasks and needs no torch

TOKENS = 256
"""Tokens whose losses are computed at a time where nothing is kept for backward: each has a logit for every word."""
LARGEST = 1e18
"""The largest number of a regression: the mean of squares must be one too, in float32."""


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
        _refuse_missing(names, with_it, len(labels) - with_it)
        return len(labels) / (len(names) * with_it)

    def strata(self, labels: Labels) -> Int64[np.ndarray, "rows"]:
        return labels

    def predict(self, logits: np.ndarray) -> Labels:
        return logits.argmax(axis=1)

    def columns(
        self, logits: np.ndarray, names: Sequence[str], said: Labels | None = None
    ) -> tuple[dict[str, Any], dict[str, float]]:
        from scipy.special import softmax

        said, labels = self.predict(logits) if said is None else said, _as_numbers(names)
        counts = np.bincount(said, minlength=len(names))
        columns = _of_each_name(names, softmax(logits, axis=1), logits)
        return {"label": [labels[i] for i in said], **columns}, _counted(names, counts)

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
        _refuse_missing(names, with_it, without)
        return without / with_it

    def predict(self, logits: np.ndarray) -> Labels:
        return (logits > 0).astype(np.float32)

    def columns(
        self, logits: np.ndarray, names: Sequence[str], said: Labels | None = None
    ) -> tuple[dict[str, Any], dict[str, float]]:
        from scipy.special import expit

        said, labels = self.predict(logits) if said is None else said, _as_numbers(names)
        columns = _of_each_name(names, expit(logits), logits)
        lists = [[labels[i] for i in np.flatnonzero(row)] for row in said]
        return {"label": lists, **columns}, _counted(names, said.sum(axis=0))

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


class Generation(Objective):
    """The next token, wherever it counts. A row has no label beside its own tokens.

    Evaluation keeps of each row its loss (the mean cross-entropy of its tokens that count), their number, and how many of them have the
    highest logit. A row's label is the loss that it should have, 0.
    """

    name = "generation"
    problem_type = ""
    task_type = "CAUSAL_LM"
    pipeline_tag = "text-generation"
    metrics = ("cross_entropy", "perplexity", "token_accuracy")
    fewest_names = 0
    has_column = False

    def parse(self, value: Any, names: Sequence[str] = (), *, ids: bool = False) -> float:
        return 0.0

    def encode(self, labels: Sequence[Any], ids: Mapping[str, int], outputs: int) -> Labels:
        return np.zeros(len(labels), dtype=np.float32)

    def example_losses(
        self, logits: "torch.Tensor", labels: "torch.Tensor", weights: "torch.Tensor | None" = None
    ) -> "torch.Tensor":
        from rankwise.tasks import losses

        return losses.cross_entropy(logits, labels)

    def outputs(
        self, logits: "torch.Tensor", labels: "torch.Tensor | None", rows: "torch.Tensor | None", count: int
    ) -> "torch.Tensor":
        import torch

        assert labels is not None
        assert rows is not None
        found = logits.new_zeros(count, 3)
        for z, y, row in zip(logits.split(TOKENS), labels.split(TOKENS), rows.split(TOKENS), strict=True):
            right = (z.argmax(dim=1) == y).to(z.dtype)
            each = torch.stack([self.example_losses(z, y), torch.ones_like(right), right], dim=1)
            found.index_add_(0, row, each)
        found[:, 0] /= found[:, 1]
        return found

    def mean_loss(self, logits: np.ndarray, labels: Labels) -> float:
        return float(logits[:, 0].mean(dtype=np.float64))

    def row_losses(
        self, logits: "torch.Tensor", labels: "torch.Tensor", weights: "torch.Tensor | None" = None
    ) -> "torch.Tensor":
        return logits[:, 0].double()

    def calibrated_losses(
        self, logits: "torch.Tensor", labels: "torch.Tensor", weights: "torch.Tensor | None" = None
    ) -> "torch.Tensor":
        return self.row_losses(logits, labels)

    def class_weights(self, spec: str, names: Sequence[str], labels: Labels) -> "torch.Tensor":
        raise RankwiseError("`class_weights=` is for classes, and this is generation. Leave it out.")

    def predict(self, logits: np.ndarray) -> Labels:
        return logits[:, 0].astype(np.float32)

    def columns(
        self, logits: np.ndarray, names: Sequence[str], said: Labels | None = None
    ) -> tuple[dict[str, Any], dict[str, float]]:
        losses = self.predict(logits)
        low, mean, high = (float(f(losses)) for f in (np.min, np.mean, np.max))
        return {"loss": losses, "tokens": logits[:, 1].astype(np.int64)}, {
            "lowest": low,
            "mean": mean,
            "highest": high,
        }

    def score(
        self, metrics: Sequence[str], labels: Labels, logits: np.ndarray, names: Sequence[str] = ()
    ) -> dict[str, float]:
        from rankwise.tasks.metrics import token_scores

        return token_scores(metrics, *logits.astype(np.float64).T)

    def describe(self, names: Sequence[str]) -> str:
        return "Writes text."

    def loaded_by(self, names: Sequence[str]) -> str:
        return "`AutoModelForCausalLM.from_pretrained`"


class Tokens(Classification):
    """A tag for each word, which is a class.

    Evaluation keeps the logits of the words of each row: [rows, words, tags], NaN behind a row's last word.
    """

    name = "tokens"
    problem_type = ""
    task_type = "TOKEN_CLS"
    pipeline_tag = "token-classification"
    metrics = ("entity_f1", "entity_precision", "entity_recall", "accuracy")
    more_metrics = ("macro_f1",)
    of_words = True

    def read(self, values: Sequence[Any], names: Sequence[str] = (), *, ids: bool = False) -> list[Any]:
        return self._each([plain(value) for value in values], names, ids=ids)

    def parse(self, value: Any, names: Sequence[str] = (), *, ids: bool = False) -> Any:
        """Return a row's tags, None for an empty cell."""
        if value is None or value == []:
            return None
        if not isinstance(value, list):
            raise OddCell(value, "tags are a list in each row (JSONL, Parquet), one for each word")
        found = tuple(class_name(one, names, ids=ids) for one in value)
        if None in found:
            raise OddCell(value, f"every word has a tag, and word {found.index(None) + 1} has none")
        return found

    def names_in(self, label: Any) -> tuple[str, ...]:
        return label

    def encode(self, labels: Sequence[Any], ids: Mapping[str, int], outputs: int) -> Labels:
        found = np.full((len(labels), max(map(len, labels), default=0)), IGNORED, dtype=np.int64)
        for row, tags in enumerate(labels):
            found[row, : len(tags)] = [ids[tag] for tag in tags]
        return found

    def outputs(
        self, logits: "torch.Tensor", labels: "torch.Tensor | None", rows: "torch.Tensor | None", count: int
    ) -> "torch.Tensor":
        import torch

        assert rows is not None
        words = torch.bincount(rows, minlength=count)
        found = logits.new_full((count, int(words.max()), logits.shape[1]), float("nan"))
        # tokens of one row stand in order, whichever way the rows are packed
        order = torch.argsort(rows, stable=True)
        first = words.cumsum(0) - words
        place = torch.arange(len(rows), device=rows.device) - first[rows[order]]
        found[rows[order], place] = logits[order]
        return found

    def mean_loss(self, logits: np.ndarray, labels: Labels) -> float:
        import torch

        labelled = _labelled(logits, labels)
        return self.example_losses(*map(torch.from_numpy, labelled)).mean().item()

    def row_losses(
        self, logits: "torch.Tensor", labels: "torch.Tensor", weights: "torch.Tensor | None" = None
    ) -> "torch.Tensor":
        return self._by_row(self.example_losses, logits, labels, weights)

    def calibrated_losses(
        self, logits: "torch.Tensor", labels: "torch.Tensor", weights: "torch.Tensor | None" = None
    ) -> "torch.Tensor":
        return self._by_row(super().calibrated_losses, logits, labels, weights)

    def _by_row(self, losses: Any, logits: Any, labels: Any, weights: Any) -> "torch.Tensor":
        """Return the mean of the losses of each row's words."""
        import torch

        labels = labels[:, : logits.shape[1]]
        row, word = (labels != IGNORED).nonzero(as_tuple=True)
        each = losses(logits[row, word], labels[row, word], weights)
        words = torch.bincount(row, minlength=len(labels))
        return each.new_zeros(len(labels)).index_add_(0, row, each) / words

    def _balanced(self, names: Sequence[str], labels: Labels) -> np.ndarray:
        tags = labels[labels != IGNORED]
        with_it = np.bincount(tags, minlength=len(names))
        _refuse_missing(names, with_it, len(tags) - with_it)
        return len(tags) / (len(names) * with_it)

    def strata(self, labels: Labels) -> Int64[np.ndarray, "rows"]:
        return np.zeros(len(labels), dtype=np.int64)

    def predict(self, logits: np.ndarray) -> Labels:
        return np.where(
            np.isnan(logits).all(axis=2), IGNORED, np.nan_to_num(logits, nan=-np.inf).argmax(axis=2)
        )

    def columns(
        self, logits: np.ndarray, names: Sequence[str], said: Labels | None = None
    ) -> tuple[dict[str, Any], dict[str, float]]:
        from scipy.special import softmax

        said, labels = self.predict(logits) if said is None else said, _as_numbers(names)
        last = [int(np.flatnonzero(row != IGNORED).max(initial=-1)) + 1 for row in said]
        rows = list(zip(said, softmax(logits, axis=2), last, strict=True))
        tags = [[None if tag == IGNORED else labels[tag] for tag in row[:end]] for row, _, end in rows]
        sure = [
            [
                None if tag == IGNORED else float(p[tag])
                for tag, p in zip(row[:end], probabilities, strict=False)
            ]
            for row, probabilities, end in rows
        ]
        counts = np.bincount(said[said != IGNORED], minlength=len(names))
        return {"label": tags, "probability": sure}, _counted(names, counts)

    def metrics_for(self, names: Sequence[str]) -> tuple[str, ...]:
        from rankwise.tasks.metrics import check_seqeval

        if not all(ENTITY_TAG.fullmatch(name) for name in names):
            return ("accuracy", "macro_f1")
        check_seqeval()
        return self.metrics

    def score(
        self, metrics: Sequence[str], labels: Labels, logits: np.ndarray, names: Sequence[str] = ()
    ) -> dict[str, float]:
        from rankwise.tasks.metrics import ENTITY_METRICS, entity_scores, scores

        said, labels = self.predict(logits), labels[:, : logits.shape[1]]
        words, fitting = labels != IGNORED, (*self.metrics, *self.more_metrics)
        of_words = [name for name in metrics if name not in ENTITY_METRICS]
        found = scores(of_words, labels[words], said[words], problem=self.name, fitting=fitting)
        if of_entities := [name for name in metrics if name in ENTITY_METRICS]:
            found |= entity_scores(of_entities, *(_tags(tags, words, names) for tags in (labels, said)))
        return {name: found[name] for name in metrics}

    def describe(self, names: Sequence[str]) -> str:
        return f"Tags each word of a text as {', '.join(names)}."

    def loaded_by(self, names: Sequence[str]) -> str:
        return f"`AutoModelForTokenClassification.from_pretrained` with\n`num_labels={len(names)}`"


ENTITY_TAG = re.compile(r"O|[BIESLU]-.+")
"""Tags of entities: outside of one, or at the beginning, inside or at the end of one of a kind."""


def _tags(tags: Labels, words: np.ndarray, names: Sequence[str]) -> list[list[str]]:
    """Return the names of tags [rows, words] where there are words."""
    return [[names[int(tag)] for tag in row[kept]] for row, kept in zip(tags, words, strict=True)]


def _labelled(logits: np.ndarray, labels: Labels) -> tuple[np.ndarray, np.ndarray]:
    """Return the logits of the words that have a label [words, tags], and their labels [words]."""
    labels = labels[:, : logits.shape[1]]
    words = labels != IGNORED
    return logits[words], labels[words]


OBJECTIVES: dict[str, Objective] = {
    o.name: o for o in (Classification(), MultiLabel(), Regression(), Generation(), Tokens())
}
"""By name."""


def named(name: str) -> Objective:
    """Return the objective of that name.

    Raises:
        RankwiseError: there is none; the message gives the nearest.
    """
    if name not in OBJECTIVES:
        raise RankwiseError(f"There is no problem {name!r}.{nearest(name, OBJECTIVES)}")
    return OBJECTIVES[name]


def of_model(model: "torch.nn.Module") -> Objective:
    """Return what a Transformers model is for: by its class, and by its config where it classifies."""
    from rankwise.models.families import task_type

    said = task_type(model)
    found = next((o for o in OBJECTIVES.values() if o.task_type == said != "SEQ_CLS"), None)
    return found or of_config(getattr(model, "config", None))


def of_config(config: object) -> Objective:
    """Return the objective that the config of a classifier says it is for. Without a word about it, one output is a number."""
    said = getattr(config, "problem_type", None)
    found = next((o for o in OBJECTIVES.values() if o.problem_type == said), None)
    return found or OBJECTIVES["regression" if getattr(config, "num_labels", 2) == 1 else "classification"]


# ── What they share ───────────────────────────────────────────────────────────────────────────────────────────────────────


def default_names(outputs: int) -> list[str]:
    """Return the names that Transformers gives the outputs of a model whose labels have none."""
    return [f"LABEL_{place}" for place in range(outputs)]


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


def all_integers(names: Iterable[str]) -> bool:
    """Whether all names are integers, of a length that Python reads, so that they are sorted by size and not by spelling."""
    return all(re.fullmatch(r"[+-]?[0-9]{1,1000}", name) for name in names)


def _as_numbers(names: Sequence[str]) -> list[Any]:
    """Return names as integers if all of them are, so that a column of integers comes back as one."""
    whole = all_integers(names) and all(name == str(int(name)) for name in names)
    return [int(name) for name in names] if whole else list(names)


def _of_each_name(names: Sequence[str], probabilities: np.ndarray, logits: np.ndarray) -> dict[str, Any]:
    columns = {f"probability_{name}": probabilities[:, i] for i, name in enumerate(names)}
    return columns | {f"logit_{name}": logits[:, i] for i, name in enumerate(names)}


def _counted(names: Sequence[str], counts: np.ndarray) -> dict[str, float]:
    return {name: int(n) for name, n in zip(names, counts, strict=True)}


def _refuse_missing(names: Sequence[str], with_it: np.ndarray, without: np.ndarray) -> None:
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
