"""The tasks that have a name: GLUE's, and `movies`.

GLUE: Wang et al. 2019, arXiv:1804.07461; columns, label ids and metrics are those of `nyu-mll/glue`.
"""

from dataclasses import dataclass

from rankwise.config import ProblemName
from rankwise.errors import RankwiseError, nearest

HUB = "nyu-mll/glue"
MOVIES = "movies"


@dataclass(frozen=True)
class Task:
    """What is to be learned from which columns.

    Attributes:
        name: as in `--tasks`.
        text: column of the text.
        text_pair: column of the second text, where rows are pairs.
        label: column of the label; None where each of `label_names` is a column of 0s and 1s.
        label_names: name of each output of the head, in order: of class ids, of labels, or of the one number.
        metrics: see `metrics.METRICS`; the first is the headline score.
        source: whom to cite.
        validation: splits to evaluate on by their stored names, the headline first; the others where present.
        official_train_rows: rows of the published training split, where there is one.
        problem: see `problems.PROBLEMS`.
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
    problem: ProblemName = "classification"


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            name="sst2",
            text="sentence",
            text_pair=None,
            label="label",
            label_names=("negative", "positive"),
            metrics=("accuracy",),
            source="SST-2: Socher et al. 2013; GLUE: Wang et al. 2019",
            official_train_rows=67_349,
        ),
        Task(
            name="rte",
            text="sentence1",
            text_pair="sentence2",
            label="label",
            label_names=("entailment", "not_entailment"),
            metrics=("accuracy",),
            source="RTE: Dagan et al. 2006 and its successors; GLUE: Wang et al. 2019",
            official_train_rows=2_490,
        ),
        Task(
            name="mrpc",
            text="sentence1",
            text_pair="sentence2",
            label="label",
            label_names=("not_equivalent", "equivalent"),
            metrics=("accuracy", "f1"),
            source="MRPC: Dolan & Brockett 2005; GLUE: Wang et al. 2019",
            official_train_rows=3_668,
        ),
        Task(
            name="qnli",
            text="question",
            text_pair="sentence",
            label="label",
            label_names=("entailment", "not_entailment"),
            metrics=("accuracy",),
            source="QNLI from SQuAD: Rajpurkar et al. 2016; GLUE: Wang et al. 2019",
            official_train_rows=104_743,
        ),
        Task(
            name="mnli",
            text="premise",
            text_pair="hypothesis",
            label="label",
            label_names=("entailment", "neutral", "contradiction"),
            metrics=("accuracy",),
            source="MultiNLI: Williams et al. 2018; GLUE: Wang et al. 2019",
            validation=("validation_matched", "validation_mismatched"),
            official_train_rows=392_702,
        ),
        Task(
            name="qqp",
            text="question1",
            text_pair="question2",
            label="label",
            label_names=("not_duplicate", "duplicate"),
            metrics=("accuracy", "f1"),
            source="Quora Question Pairs: Iyer et al. 2017; GLUE: Wang et al. 2019",
            official_train_rows=363_846,
        ),
        Task(
            name="cola",
            text="sentence",
            text_pair=None,
            label="label",
            label_names=("unacceptable", "acceptable"),
            metrics=("mcc", "accuracy"),
            source="CoLA: Warstadt et al. 2019; GLUE: Wang et al. 2019",
            official_train_rows=8_551,
        ),
        Task(
            name="stsb",
            text="sentence1",
            text_pair="sentence2",
            label="label",
            label_names=("similarity",),
            metrics=("pearson", "spearman"),
            source="STS-B: Cer et al. 2017; GLUE: Wang et al. 2019",
            official_train_rows=5_749,
            problem="regression",
        ),
        Task(
            name="wnli",
            text="sentence1",
            text_pair="sentence2",
            label="label",
            label_names=("not_entailment", "entailment"),
            metrics=("accuracy",),
            source="WNLI from the Winograd schemas: Levesque et al. 2012; GLUE: Wang et al. 2019",
            official_train_rows=635,
        ),
        Task(
            name=MOVIES,
            text="text",
            text_pair=None,
            label="label",
            label_names=("negative", "positive"),
            metrics=("accuracy",),
            source="Movie-review sentences with human ratings: Hutto & Gilbert, VADER, ICWSM 2014",
        ),
    )
}


def named(name: str) -> Task:
    """The task of that name.

    Raises:
        RankwiseError: there is none; the sentence gives the nearest.
    """
    if name not in TASKS:
        raise RankwiseError(f"There is no task {name!r}.{nearest(name, TASKS)}")
    return TASKS[name]
