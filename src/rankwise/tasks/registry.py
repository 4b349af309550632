"""The tasks that have a name. To add a task, put one entry into `TASKS`, or call `register` with one.

GLUE: Wang et al. 2019, arXiv:1804.07461. Columns, class ids and metrics are those of `nyu-mll/glue`.
"""

from rankwise import plugins
from rankwise.downloads import MOVIES
from rankwise.errors import RankwiseError, nearest
from rankwise.tasks.generation_scores import NUMBER
from rankwise.tasks.movies import load_movies
from rankwise.tasks.objectives import OBJECTIVES
from rankwise.tasks.task import Task


def _glue(
    name: str,
    text: str,
    label_names: tuple[str, ...],
    metrics: tuple[str, ...],
    source: str,
    official_train_rows: int,
    text_pair: str | None = None,
    validation: tuple[str, ...] = ("validation",),
    problem: str = "classification",
) -> Task:
    return Task(
        name=name,
        text=text,
        text_pair=text_pair,
        label="label",
        label_names=label_names,
        metrics=metrics,
        source=f"{source}; GLUE: Wang et al. 2019",
        validation=validation,
        official_train_rows=official_train_rows,
        problem=problem,
        benchmark="GLUE",
        hub="nyu-mll/glue",
        license="that of the original data set",
    )


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        _glue(
            name="sst2",
            text="sentence",
            label_names=("negative", "positive"),
            metrics=("accuracy",),
            source="SST-2: Socher et al. 2013",
            official_train_rows=67_349,
        ),
        _glue(
            name="rte",
            text="sentence1",
            text_pair="sentence2",
            label_names=("entailment", "not_entailment"),
            metrics=("accuracy",),
            source="RTE: Dagan et al. 2006 and its successors",
            official_train_rows=2_490,
        ),
        _glue(
            name="mrpc",
            text="sentence1",
            text_pair="sentence2",
            label_names=("not_equivalent", "equivalent"),
            metrics=("accuracy", "f1"),
            source="MRPC: Dolan & Brockett 2005",
            official_train_rows=3_668,
        ),
        _glue(
            name="qnli",
            text="question",
            text_pair="sentence",
            label_names=("entailment", "not_entailment"),
            metrics=("accuracy",),
            source="QNLI from SQuAD: Rajpurkar et al. 2016",
            official_train_rows=104_743,
        ),
        _glue(
            name="mnli",
            text="premise",
            text_pair="hypothesis",
            label_names=("entailment", "neutral", "contradiction"),
            metrics=("accuracy",),
            source="MultiNLI: Williams et al. 2018",
            validation=("validation_matched", "validation_mismatched"),
            official_train_rows=392_702,
        ),
        _glue(
            name="qqp",
            text="question1",
            text_pair="question2",
            label_names=("not_duplicate", "duplicate"),
            metrics=("accuracy", "f1"),
            source="Quora Question Pairs: Iyer et al. 2017",
            official_train_rows=363_846,
        ),
        _glue(
            name="cola",
            text="sentence",
            label_names=("unacceptable", "acceptable"),
            metrics=("mcc", "accuracy"),
            source="CoLA: Warstadt et al. 2019",
            official_train_rows=8_551,
        ),
        _glue(
            name="stsb",
            text="sentence1",
            text_pair="sentence2",
            label_names=("similarity",),
            metrics=("pearson", "spearman"),
            source="STS-B: Cer et al. 2017",
            official_train_rows=5_749,
            problem="regression",
        ),
        _glue(
            name="wnli",
            text="sentence1",
            text_pair="sentence2",
            label_names=("not_entailment", "entailment"),
            metrics=("accuracy",),
            source="WNLI from the Winograd schemas: Levesque et al. 2012",
            official_train_rows=635,
        ),
        Task(
            name="movies",
            text="text",
            text_pair=None,
            label="label",
            label_names=("negative", "positive"),
            metrics=("accuracy",),
            source="Movie-review sentences with human ratings: Hutto & Gilbert, VADER, ICWSM 2014",
            license="MIT, as the package vaderSentiment",
            loader=load_movies,
            download=MOVIES,
        ),
        Task(
            name="e2e",
            text="prompt",
            text_pair="completion",
            label=None,
            label_names=(),
            metrics=OBJECTIVES["generation"].metrics,
            source="E2E NLG Challenge: Novikova et al. 2017",
            validation=("test",),
            problem="generation",
            license="CC BY-SA 4.0",
            loss_on="completion",
            separator="\n",
        ),
        Task(
            name="gsm8k",
            text="messages",
            text_pair=None,
            label=None,
            label_names=(),
            metrics=OBJECTIVES["generation"].metrics,
            source="GSM8K: Cobbe et al. 2021",
            validation=("test",),
            problem="generation",
            license="MIT",
            loss_on="assistant",
            scores=("exact",),
            answer=NUMBER,
        ),
    )
}
"""By name."""


def register(task: Task) -> None:
    """Add a task. From then on its name works wherever a task is named in this process.

    Raises:
        RankwiseError: a task of that name exists.
    """
    if task.name in TASKS:
        raise RankwiseError(f"There is a task {task.name!r} already. Give yours another name.")
    TASKS[task.name] = task


def named(name: str) -> Task:
    """Return the task of that name.

    Raises:
        RankwiseError: there is none; the message gives the nearest.
    """
    plugins.load()
    if name not in TASKS:
        raise RankwiseError(f"There is no task {name!r}.{nearest(name, TASKS)}")
    return TASKS[name]


def entry(task: Task) -> Task | None:
    """Return the registered task that `task` is, or None for a table (which may be called sst2.csv)."""
    found = TASKS.get(task.name)
    return found if found is not None and found.source == task.source else None
