"""The request of a grid of runs. Its fields are the flags of `rankwise compare` and are stored in grid.json."""

from dataclasses import dataclass, field, replace
from pathlib import Path

from rankwise.config import DataOptions, LoraOptions, ModelOptions, RunConfig, TableOptions, TrainOptions
from rankwise.errors import RankwiseError
from rankwise.limits import at_least

SEEDS = 2
"""Seeds of a grid that names none."""


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """A grid of runs: tasks × methods × seeds, each run in its own process."""

    tasks: tuple[str, ...] = ("movies",)
    """sst2, rte, mrpc, qnli, mnli, qqp, cola, stsb, wnli, movies, e2e, gsm8k."""
    methods: tuple[str, ...] = ("full", "lora")
    """Names of methods, with their own options after a colon: `lora:rank=4,targets=all-linear`, `full:lr=5e-5`."""
    seeds: int | None = None
    """Run each method with the seeds 0 … n−1. Default: 2, or one for each of --folds."""
    folds: int | None = None
    """Cross-validation on a table of your own: it is split into so many parts, each of which is validated on once."""
    out: Path = Path("runs/compare")
    """Folder of the grid. Give it again to continue the grid or add to it."""
    jobs: int = 1
    """Runs at a time. If more than one, they share the machine, so the speed columns stay empty."""
    ray: str | None = None
    """Do the runs on a Ray cluster that sees the folder, each with --threads CPUs and, on cuda, a GPU: its address (`10.0.0.1:6379`),
    `auto` on one of its nodes, or `local` for this machine."""
    wait: bool = True
    """When other processes do the last runs: wait for them, and do a run whose process is lost. Otherwise end and name them."""
    keep_models: bool = False
    """Also keep the weights of fully fine-tuned models."""
    report_to: tuple[str, ...] = ()
    """Also report each run's curves to tensorboard (`tensorboard --logdir` on the grid's folder shows them), wandb, mlflow or trackio."""
    table: TableOptions = field(default_factory=TableOptions)
    data: DataOptions = field(default_factory=DataOptions)
    model: ModelOptions = field(default_factory=ModelOptions)
    lora: LoraOptions = field(default_factory=LoraOptions)
    train: TrainOptions = field(default_factory=TrainOptions)

    def __post_init__(self) -> None:
        at_least(1, seeds=self.seeds, jobs=self.jobs)
        at_least(2, folds=self.folds)
        if self.folds is not None and self.seeds is not None:
            raise RankwiseError("`folds=` gives each fold a seed of its own. Leave out `seeds=`.")
        if self.ray is not None and self.jobs > 1:
            raise RankwiseError(
                "With `ray=`, as many runs are done at a time as the cluster has CPUs and GPUs for. Leave out `jobs=`, and give each run "
                "its share with `threads=`."
            )
        for argument, names in (("tasks", self.tasks), ("methods", self.methods)):
            if not names:
                raise RankwiseError(f"`{argument}=` names nothing to compare. Name one or more.")

    @property
    def names(self) -> tuple[str, ...]:
        """The tasks by name, or the name of the table."""
        return (self.table.name,) if self.table.given else self.tasks

    @property
    def repeats(self) -> int:
        """How often each method is run on each task: seeds, or folds."""
        return self.folds or self.seeds or SEEDS

    def runs(self) -> list[RunConfig]:
        """Return every run of the grid, seed by seed: a grid that was stopped has the same seeds for every method.

        Raises:
            RankwiseError: folds of a task by name are asked for.
        """
        if self.folds is not None and not self.table.given:
            raise RankwiseError(
                "`folds=` is for a table of your own: rankwise compare reviews.csv --folds 5."
            )
        tables = [
            replace(self.table, folds=self.folds, fold=fold) if self.folds else self.table
            for fold in range(self.repeats)
        ]
        shared = {"data": self.data, "model": self.model, "lora": self.lora, "train": self.train}
        return [
            RunConfig(task=task, method=method, seed=seed, table=table, **shared)
            for seed, table in enumerate(tables)
            for task in dict.fromkeys(self.names)
            for method in dict.fromkeys(self.methods)
        ]
