"""A look at the rows before training: classes and their shares, lengths of texts, duplicates, and what looks like a slip.

    Dataset, tokens of each row ─► Look ─► lines for a terminal · run.json · a page

A warning stops nothing: what can't be trained on is refused where rows are read.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np
from pydantic import TypeAdapter

from rankwise.tasks.cells import number
from rankwise.tasks.encoding import Rows
from rankwise.tasks.labels import Labels
from rankwise.tasks.splits import Dataset, repeated, same_row
from rankwise.tasks.table import shown

FEW = 10
"""A class with fewer rows is learned badly, and its scores say little."""
CLASSES_SHOWN = 12
"""Classes that get a line each; the report's page has more."""
BINS = 30
"""Bars of a histogram at most."""
SLUG = 40
"""Characters of the longest word that may be an id."""


@dataclass(frozen=True)
class Histogram:
    """Rows by a number. Bin i reaches from edges[i] to edges[i + 1], the last edge included.

    Attributes:
        edges: of the bins, one more than there are bins.
        counts: split → rows of it in each bin.
    """

    edges: list[float]
    counts: dict[str, list[int]]


@dataclass(frozen=True)
class Split:
    """The rows of one split.

    Attributes:
        rows: their number.
        classes: name → rows that have it, the largest first; empty where labels have no names.
        numbers: the lowest, the mean and the highest label of a regression; None for classes.
        lengths: the median, the 95th percentile and the maximum of the texts' lengths.
        truncated: texts that are longer than the limit.
        repeated: rows whose text (or pair) stands in an earlier row of the split.
        in_train: rows whose text also stands in training; 0 for the training rows themselves.
    """

    rows: int
    classes: dict[str, int]
    numbers: tuple[float, float, float] | None
    lengths: tuple[int, int, int]
    truncated: int
    repeated: int
    in_train: int


@dataclass(frozen=True)
class Look:
    """What there is to train and to evaluate on.

    Attributes:
        task: its name.
        source: where the rows come from.
        left_out: why rows are in no split → their number.
        splits: `train` first.
        unit: of the lengths: `tokens`, or `words` where there is no tokenizer.
        limit: tokens that a text is truncated to.
        lengths: of the texts.
        numbers: the labels of a regression; None for classes.
        warnings: sentences on what looks like a slip.
    """

    task: str
    source: str
    left_out: dict[str, int]
    splits: dict[str, Split]
    unit: str
    limit: int | None
    lengths: Histogram
    numbers: Histogram | None
    warnings: list[str]

    def __str__(self) -> str:
        return "\n".join(lines(self))

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self)


def most_frequent(found: Look, problem: str) -> list[str]:
    """Return the answer that most training rows have: the largest class, or the labels that more than half of them have."""
    train = found.splits["train"]
    if problem == "multi-label":
        return [name for name, n in train.classes.items() if 2 * n > train.rows]
    return list(train.classes)[:1]


def from_json(stored: Any) -> Look:
    """Return what `to_json` returned as a look.

    Raises:
        ValueError: it is something else.
    """
    return TypeAdapter(Look).validate_python(stored)


def look(
    dataset: Dataset,
    lengths: Mapping[str, np.ndarray] | None = None,
    *,
    truncated: Mapping[str, int] | None = None,
    limit: int | None = None,
) -> Look:
    """Look at the rows of a run.

    Args:
        dataset: the rows.
        lengths: split → tokens of each row. None counts words.
        truncated: split → texts that were longer than `limit`.
        limit: tokens that a text is truncated to.
    """
    splits = {"train": dataset.train, **dataset.validation}
    sizes = lengths or {split: _words(rows) for split, rows in splits.items()}
    labels = {split: cast(Labels, rows.labels) for split, rows in splits.items()}
    numbers = dataset.task.problem == "regression"
    return Look(
        task=dataset.task.name,
        source=dataset.task.source,
        left_out=dict(dataset.left_out),
        splits={
            split: Split(
                rows=len(rows),
                classes={} if numbers else _classes(labels[split], dataset.task.label_names),
                numbers=_range(labels[split]) if numbers else None,
                lengths=_quantiles(sizes[split]),
                truncated=(truncated or {}).get(split, 0),
                repeated=repeated(rows),
                in_train=0 if split == "train" else same_row(dataset.train, rows),
            )
            for split, rows in splits.items()
        },
        unit="words" if lengths is None else "tokens",
        limit=limit,
        lengths=_histogram(sizes, whole=True),
        numbers=_histogram(labels) if numbers else None,
        warnings=list(_warnings(dataset)),
    )


def _words(rows: Rows) -> np.ndarray:
    texts = [rows.text] if rows.text_pair is None else [rows.text, rows.text_pair]
    return np.array([sum(len(text.split()) for text in row) for row in zip(*texts, strict=True)], np.int64)


def _classes(labels: Labels, names: Sequence[str]) -> dict[str, int]:
    if not names:
        return {}
    if labels.ndim > 1 and labels.dtype.kind == "i":  # of words; as elsewhere, rows are counted
        labels = np.stack([(labels == i).any(axis=1) for i in range(len(names))], axis=1)
    counts = labels.sum(axis=0) if labels.ndim > 1 else np.bincount(labels, minlength=len(names))
    return {names[int(i)]: int(counts[i]) for i in np.argsort(-counts, kind="stable")}


def _range(labels: Labels) -> tuple[float, float, float]:
    return float(labels.min()), float(labels.mean()), float(labels.max())


def _quantiles(lengths: np.ndarray) -> tuple[int, int, int]:
    median, most = np.quantile(lengths, [0.5, 0.95], method="higher")
    return int(median), int(most), int(lengths.max())


def _histogram(values: Mapping[str, np.ndarray], *, whole: bool = False) -> Histogram:
    """Return the rows by value, in bins that all splits share. Those of whole numbers have whole edges."""
    every = np.concatenate(list(values.values()))
    low, high = float(every.min()), float(every.max())
    if whole:
        edges = np.arange(low, high + 1 + (step := max(1, np.ceil((high - low + 1) / BINS))), step)
    else:
        edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
    counts = {split: np.histogram(column, edges)[0].tolist() for split, column in values.items()}
    return Histogram(edges.tolist(), counts)


# ── Warnings ──────────────────────────────────────────────────────────────────────────────────


def _warnings(dataset: Dataset) -> Iterator[str]:
    rows, task = dataset.train, dataset.task
    if task.problem != "regression":
        counts = _classes(cast(Labels, rows.labels), task.label_names)
        yield from _spellings(counts)
        yield from _rare(counts)
        if task.problem == "classification":
            yield from _ids(task.label, counts, len(rows))
    if rows.learned is None:
        yield from _odd_texts(task.text, rows.text)


def _spellings(counts: Mapping[str, int]) -> Iterator[str]:
    """Name the labels that are one word to a reader."""
    alike: dict[str, list[str]] = {}
    for name in counts:
        alike.setdefault(" ".join(name.casefold().split()), []).append(name)
    for names in alike.values():
        if len(names) > 1:
            each = " and ".join(f"{name!r} ({_rows(counts[name])})" for name in names)
            yield f"The labels {each} differ by case or spaces only, and are classes of their own. Write them in one way."


def _rare(counts: Mapping[str, int]) -> Iterator[str]:
    rare = [f"{name} {counts[name]}" for name in sorted(counts, key=lambda name: counts[name])]
    rare = rare[: sum(n < FEW for n in counts.values())]
    if rare:
        which = "A class has" if len(rare) == 1 else f"{len(rare):,} classes have"
        yield f"{which} fewer than {FEW} training rows: {shown(rare, 5)}. What is learned and measured of so few says little."


def _ids(column: str | None, counts: Mapping[str, int], rows: int) -> Iterator[str]:
    if len(counts) >= 20 and rows < 5 * len(counts):
        many = f"Column {column!r} holds {len(counts):,} classes on {rows:,} training rows."
        yield f"{many} Is it an id? Say which holds the label with `label=`."


def _odd_texts(column: str, texts: Sequence[str]) -> Iterator[str]:
    """Say that a column of texts looks like labels, or like ids."""
    different = Counter(texts)
    question = f"Is column {column!r} the text? Say which is with `text=`."
    if len(texts) >= 5 * FEW and len(texts) >= 20 * len(different):
        yield f"{len(texts):,} training rows have {len(different):,} different texts, such as {texts[0]!r:.60}, as labels do. {question}"
    elif len(texts) >= FEW and all(_is_slug(text) for text in different):
        yield f"No text is longer than a word, such as {texts[0]!r}, as ids are. {question}"


def _is_slug(text: str) -> bool:
    """Whether a text is one word of a language that has spaces, and no number (which is said where texts are read)."""
    return text.isascii() and len(text.split()) < 2 and len(text) <= SLUG and number(text) is None


# ── In words ──────────────────────────────────────────────────────────────────────────────────


def lines(found: Look) -> list[str]:
    """Write a look as lines of text."""
    return [_sizes(found), *_labels(found), _lengths(found), *_duplicates(found), *warning_lines(found)]


def warning_lines(found: Look) -> list[str]:
    """Write the warnings as lines of text."""
    return [f"Warning: {warning}" for warning in found.warnings]


def _sizes(found: Look) -> str:
    parts = [
        f"{split.rows:,} {'training' if name == 'train' else name} rows"
        for name, split in found.splits.items()
    ]
    n = sum(found.left_out.values())
    why = ", ".join(f"{rows:,} {reason}" for reason, rows in found.left_out.items() if rows)
    return f"{', '.join(parts)}{f'; {n:,} rows left out: {why}' if n else ''}."


def _labels(found: Look) -> list[str]:
    """Write a table of the classes, or a line for each split's numbers."""
    if found.numbers is not None:
        each = (
            f"{name} {split.numbers[0]:g} to {split.numbers[2]:g}, mean {split.numbers[1]:.4g}"
            for name, split in found.splits.items()
            if split.numbers
        )
        return [f"Numbers to predict: {'; '.join(each)}."]
    names = list(found.splits["train"].classes)
    if not names:
        return []
    few = names[: CLASSES_SHOWN if len(names) > CLASSES_SHOWN + 1 else len(names)]
    table = [["class", *found.splits]]
    table += [[name[:40], *(_share(split, name) for split in found.splits.values())] for name in few]
    wide = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    made = ["  " + "  ".join(c.ljust(w) for c, w in zip(row, wide, strict=True)).rstrip() for row in table]
    if len(names) > len(few):
        rest = [found.splits["train"].classes[name] for name in names[len(few) :]]
        made.append(f"  and {len(rest):,} more classes of {max(rest):,} training rows or fewer")
    return made


def _share(split: Split, name: str) -> str:
    count = split.classes.get(name, 0)
    return f"{count:,} ({100 * count / max(1, split.rows):.1f} %)"


def _lengths(found: Look) -> str:
    of = np.array([split.lengths for split in found.splits.values()])
    median, most, longest = found.splits["train"].lengths[0], found.splits["train"].lengths[1], of[:, 2].max()
    line = f"{found.unit.capitalize()} of a text: median {median}, 95 % within {most}, longest {longest}."
    n = sum(split.truncated for split in found.splits.values())
    if not n:
        return line
    return f"{line} {n:,} {'text was' if n == 1 else 'texts were'} longer than {found.limit} tokens and truncated."


def _duplicates(found: Look) -> list[str]:
    parts = [
        f"{_rows(split.repeated)} of {name} repeat{'s' if split.repeated == 1 else ''} the text of another"
        for name, split in found.splits.items()
        if split.repeated
    ]
    parts += [
        f"{_rows(split.in_train)} of {name} {'has a text' if split.in_train == 1 else 'have texts'} of training rows"
        for name, split in found.splits.items()
        if split.in_train
    ]
    return [f"Duplicates: {'; '.join(parts) or 'none'}."]


def _rows(n: int) -> str:
    return f"{n:,} row{'' if n == 1 else 's'}"
