"""Objectives whose tokens have labels: the next token, or a tag for each word."""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int64

from rankwise.errors import RankwiseError
from rankwise.tasks.cells import OddCell, class_name, plain
from rankwise.tasks.labels import IGNORED, Labels
from rankwise.tasks.objectives.objective import Objective, as_numbers, counted, refuse_missing
from rankwise.tasks.objectives.of_rows import Classification

if TYPE_CHECKING:
    import torch  # for its types alone: the grid's own process reads tasks and needs no torch

TOKENS = 256
"""Tokens whose losses are computed at a time where nothing is kept for backward: each has a logit for every word."""


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
        refuse_missing(names, with_it, len(tags) - with_it)
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

        said, labels = self.predict(logits) if said is None else said, as_numbers(names)
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
        return {"label": tags, "probability": sure}, counted(names, counts)

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
