"""The commands `compare` and `report`."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from rankwise import hardware
from rankwise.cli.app import Json, command, people, print_json, say
from rankwise.cli.checks import check_names, find_model, refuse_table_options
from rankwise.cli.parameters import in_flags
from rankwise.config import RunConfig
from rankwise.errors import RankwiseError
from rankwise.runs import trackers
from rankwise.runs.config import CompareConfig


@command
def compare(
    files: Annotated[
        tuple[Path, ...],
        Parameter(
            help="A table of your own: CSV, TSV, JSONL or Parquet, one file, several or a pattern. Default: the tasks that --tasks names."
        ),
    ] = (),
    /,
    config: CompareConfig = CompareConfig(),  # noqa: B008 (frozen)
    *,
    json: Json = False,
) -> None:
    """Compare methods: tasks × methods × seeds, each run in its own process. With a file, methods on a table of your own.

    The same command again keeps finished runs and continues interrupted ones. With the same --out, more tasks, methods or seeds are added
    to the grid.

    Example: rankwise compare --tasks sst2 rte --methods full lora --seeds 5 --out runs/first
    """
    from rankwise.cli.progress import GridProgress
    from rankwise.run_folder import run_name
    from rankwise.runs import grid, ray_work
    from rankwise.tasks import tables

    if hardware.processes() > 1:
        raise RankwiseError(
            "`rankwise compare` starts a process for each of its runs, and torchrun started several of it. Start it without torchrun."
        )
    if config.model.shard:
        raise RankwiseError("`shard=` is for a training in several processes; each run of a grid has one.")
    if files:
        config = replace(config, table=replace(config.table, train_file=tables.expand(files)))
    if not config.table.given:
        refuse_table_options(config, "compare")
    elif config.tasks != CompareConfig().tasks:
        raise RankwiseError("`tasks=` names tasks by name, and a table of your own is given. Leave one out.")
    check_names(() if config.table.given else config.tasks, config.methods, config.train.recipe)
    trackers.check(config.report_to)
    ray_work.check(config.ray)
    runs = config.runs()
    n = len(runs)
    _fetch(config)
    if config.table.given:
        _check_table(runs)
    try:
        with GridProgress(people(json)) as progress:
            failed = {name: in_flags(why) for name, why in grid.run_grid(config, progress).items()}
    except KeyboardInterrupt as interrupted:
        names = {run_name(run.task, run.method, run.seed) for run in runs}
        raise _interrupted_grid(config.out, names) from interrupted
    if len(failed) < n:
        _report(config.out, json)
        say(json, f"The page with curves, ranks and examples: {config.out / 'report.html'}")
    elif json:
        print_json({"out": str(config.out), "failed": failed})
    if failed:
        whys = "; ".join(dict.fromkeys(failed.values()))
        raise RankwiseError(f"{len(failed)} of {n} run{'s' * (n != 1)} failed: {whys}")


def _fetch(config: CompareConfig) -> None:
    """Fetch an embedded model and data in this process, so that the download's progress is shown."""
    from rankwise.models import hub
    from rankwise.tasks import registry

    name = find_model(config)
    if name in hub.EMBEDDED or name in hub.SCRATCH:
        hub.find(name)
    for name in () if config.table.given else config.tasks:
        if (download := registry.named(name).download) is not None:
            download.path()


def _check_table(runs: Sequence[RunConfig]) -> None:
    """Refuse a table that can't be trained on before any run is started, or one that is too small for its folds."""
    from rankwise.tasks.load import load_dataset

    for run in {run.table.fold: run for run in runs}.values():
        load_dataset(run)


def _interrupted_grid(out: Path, names: set[str]) -> KeyboardInterrupt:
    """Return an interruption that says what there is of the runs of these names; the folder may have others' too."""
    from rankwise.run_folder import run_folders
    from rankwise.runs.interruption import Interrupted, words

    folders = [folder for folder in run_folders(out) if folder.path.name in names]
    finished = sum(folder.finished for folder in folders)
    begun = sum(not folder.finished and folder.checkpoint is not None for folder in folders)
    if not finished and not begun:
        return Interrupted(f"{words()} before anything was saved.")
    return Interrupted(
        f"{words()}: {finished} of {len(names)} runs are finished, {begun} begun. The same command continues from there."
    )


@command
def report(
    out: Annotated[Path, Parameter(help="Folder that `rankwise compare` or `rankwise train` wrote.")],
    /,
    *,
    watch: Annotated[
        bool,
        Parameter(help="Write the report again whenever a run ends, until the grid is finished."),
    ] = False,
    json: Json = False,
) -> None:
    """Write report.html, report.md, report.json and results.parquet from the run folders of a grid, or from one run's.

    Example: rankwise report runs/first
    """
    from rankwise import report

    if not watch:
        _report(out, json)
        return
    stream = people(json)
    document = report.watch(out, lambda document: report.show_progress(document, stream))
    report.show(document, stream)
    if json:
        print_json(report.to_json(document))


def _report(out: Path, json: bool) -> None:
    from rankwise import report

    unwritten = None
    try:
        document = report.write(out)
    except RankwiseError as error:  # the table can be shown all the same, if there is one
        document, unwritten = report.collect(out), error
    report.show(document, people(json), written=unwritten is None)
    if json:
        print_json(report.to_json(document))
    if unwritten is not None:
        raise RankwiseError(f"{unwritten} The runs are kept; rankwise report {out} writes the report again.")
