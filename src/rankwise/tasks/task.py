"""A task: what is to be learned from which columns, and where its rows come from."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rankwise.downloads import Download
from rankwise.tasks.encoding import Rows
from rankwise.tasks.language import LossOn

Loader = Callable[[str, Path | None], tuple[Rows, tuple[str, ...]]]
"""(split by its stored name, folder or None) → labelled rows, and notes on rows that were left out."""


@dataclass(frozen=True)
class Task:
    """What is to be learned from which columns.

    `run.json` records a task, but not its `loader`, `download` and `lengths`.

    Attributes:
        name: by which commands and configs refer to it.
        text: column of the text, or of lists of words; of a language model's prompt, messages or text.
        text_pair: column of the second text, if rows are pairs; of a language model's completion.
        label: column of the label; None if each of `label_names` is a column of 0s and 1s.
        label_names: name of each output of the head, in order: of class ids, of labels, or of the one number.
        metrics: names in `metrics.METRICS`; the first is the headline score.
        source: whom to cite.
        validation: stored names of the splits to evaluate on, the headline first. The others may be missing from a folder.
        official_train_rows: rows of the published training split, if there is one.
        problem: name of the objective, in `objectives.OBJECTIVES`.
        benchmark: the collection that the task belongs to, such as GLUE.
        hub: repository of the Hugging Face hub that holds the rows.
        hub_config: its configuration; the task's name if None.
        license: of the rows, as their publisher states it.
        loader: reads the rows of a split. By default they come from Parquet files of the folder, or else from `hub`.
        download: a file that `loader` needs and fetches once.
        loss_on: what a language model learns of a row: all of its tokens, those of its completion (`text_pair`), or those of the
            assistant's messages. None for other problems.
        separator: what stands between a prompt and its completion, where they are texts.
        scores: of texts that a language model writes, names of `generation_scores`, the headline first.
        answer: regular expression of the answer in such a text, for the score `exact`.
        lengths: training rows by their number of tokens, for plans and benchmarks. By default those shipped under the task's name.
    """

    name: str
    text: str
    text_pair: str | None
    label: str | None
    label_names: tuple[str, ...]
    metrics: tuple[str, ...]
    source: str
    validation: tuple[str, ...] = ("validation",)
    official_train_rows: int | None = None
    problem: str = "classification"
    benchmark: str | None = None
    hub: str | None = None
    hub_config: str | None = None
    license: str | None = None
    loader: Loader | None = field(default=None, compare=False, metadata={"stored": False})
    download: Download | None = field(default=None, compare=False, metadata={"stored": False})
    loss_on: LossOn | None = None
    separator: str = ""
    scores: tuple[str, ...] = ("bleu", "chrf", "rouge_l")
    answer: str | None = None
    lengths: Mapping[int, int] | None = field(default=None, compare=False, metadata={"stored": False})
