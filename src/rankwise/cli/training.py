"""The command `train`."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from rankwise import hardware
from rankwise.cli.app import Json, OfClass, ThresholdFor, command, people, print_json, say
from rankwise.cli.checks import check_names, find_model, refuse_table_options
from rankwise.config import RunConfig
from rankwise.config_json import differences, same_run, to_json
from rankwise.errors import ProcessLost, RankwiseError
from rankwise.runs import trackers

BEGIN = "begin"
"""What the first of several processes tells the others, once the run's folder is ready."""


@command
def train(
    files: Annotated[
        tuple[Path, ...],
        Parameter(
            help="CSV, TSV, JSONL or Parquet: one file, several or a pattern. Default: the task that --task names, or --dataset."
        ),
    ] = (),
    /,
    config: RunConfig = RunConfig(),  # noqa: B008 (frozen)
    *,
    out: Annotated[Path, Parameter(help="Folder of the run: the adapter, its record, and its scores.")],
    threshold_for: ThresholdFor = None,
    of_class: OfClass = None,
    report_to: Annotated[
        tuple[str, ...],
        Parameter(
            help="Also report the run's curves to tensorboard, wandb, mlflow or trackio: one or several."
        ),
    ] = (),
    json: Json = False,
) -> None:
    """Train one adapter (or a whole model), on a task by name or on a table of your own.

    The same command again continues an interrupted run.

    Example: rankwise train reviews.csv --text review --label stars --out my-adapter
    """
    from rankwise.run_folder import RunFolder, one_answer
    from rankwise.tasks import tables

    trackers.check(report_to)
    _check_threshold(threshold_for, of_class)
    by_name = not files and config.table.dataset is None
    if by_name:
        refuse_table_options(config, "train")
    if files:
        config = replace(config, table=replace(config.table, train_file=tables.expand(files)))
    check_names([config.task] if by_name else [], [config.method], config.train.recipe)
    folder = RunFolder(out)
    if hardware.processes() == 1:
        result = _result(folder, config, report_to, json)
    else:
        result = _in_several(folder, config, report_to, json)
        if result is None:  # the first process shows it
            return
    ranks = result.get("rank") or {}
    if ranks and result.get("rank_seconds") is not None:  # they were found
        _draw_ranks(ranks, result, json)
        if not any(ranks.values()):
            say(
                json,
                "No layer kept a component: the adapters didn't lower the loss on held-out rows, so only the head is trained. "
                "More rows or --epochs may change that. --method lora has a fixed rank.",
            )
    _say_quality(result.get("quality"), json)
    if result.get("processes"):
        _say_processes(result, json)
    say(
        json,
        f"{result['metric']} {result['score']:.4f} on {result['n_validation']:,} validation rows. Saved in {out}.",
    )
    with suppress(RankwiseError):  # predictions that went missing say nothing of the result
        if one_answer(folder.read_predictions()):
            lr = f" (now {result['lr']:g})" if isinstance(result.get("lr"), int | float) else ""
            say(
                json,
                f"Every validation row got the same prediction: nothing was learned. Try a lower --lr{lr}, or more steps.",
            )
    found = (
        None
        if threshold_for is None or of_class is None
        else _find_threshold(folder, threshold_for, of_class)
    )
    if found is not None:
        say(json, f"Threshold stored, which predict uses: {found}.")
    if json:
        print_json({"out": str(out), **result, **({"threshold": found.to_json()} if found else {})})


def _in_several(
    folder: Any, config: RunConfig, report_to: Sequence[str], json: bool
) -> dict[str, Any] | None:
    """Train in several processes; return the result in the first one, and None in the others, which write and say nothing."""
    import warnings

    from rankwise.engine.processes import joined
    from rankwise.run_folder import FollowedRun

    try:
        with joined() as processes:
            if processes.first:
                return _result(folder, config, report_to, json, processes)
            warnings.simplefilter("ignore")
            if processes.of_first(None) == BEGIN:
                from rankwise.runs.run import execute

                execute(FollowedRun(folder.path), lambda event: None, processes)
            return None
    except ProcessLost as error:
        then = (
            "The same command shows the result."
            if folder.finished
            else "The same command continues from the last checkpoint."
            if folder.checkpoint is not None
            else "Nothing was saved yet: the same command begins anew."
        )
        raise ProcessLost(f"{error} {then}") from error


def _result(
    folder: Any, config: RunConfig, report_to: Sequence[str], json: bool, processes: Any = None
) -> dict[str, Any]:
    """Train, or read the result of a run that is finished."""
    from rankwise.runs import methods

    _refuse_foreign(folder)
    request = to_json(config)
    if folder.finished:
        _refuse_other(folder, request)
        result = folder.read_result()
        with suppress(RankwiseError, OSError), _alone(folder):
            folder.remove_checkpoint()  # a killed process may have left it beside its result
        if processes is not None:
            processes.of_first(None)
        return result
    if config.model.from_adapter is not None:
        methods.check_start(config.model.from_adapter, config.method)
    find_model(config)
    return _train(folder, request, {"report_to": list(report_to)}, json, processes)


def _train(
    folder: Any, request: dict[str, Any], assigned: dict[str, Any], json: bool, processes: Any = None
) -> dict[str, Any]:
    from rankwise.cli.progress import RunProgress

    if folder.checkpoint is not None:
        _refuse_other(folder, request)
    try:
        with _nothing_half_written(folder), _alone(folder):
            if folder.checkpoint is None:  # this is a new run, whatever the file of an earlier one says
                folder.forget_request()
            folder.write_request(request, assigned)
            # slow to import: only once the folder is known to be writable
            from rankwise.runs.run import execute

            with RunProgress(people(json)) as progress:
                if processes is None:
                    return execute(folder, progress)
                processes.of_first(BEGIN)
                return execute(folder, progress, processes)
    except KeyboardInterrupt as interrupted:
        raise _interrupted(folder, str(interrupted)) from interrupted


def _interrupted(folder: Any, said: str) -> KeyboardInterrupt:
    """Return an interruption that says what there is of a run, unless it says so itself."""
    from rankwise.runs.interruption import Interrupted, words

    if said:
        return Interrupted(said)
    if folder.finished:
        return Interrupted(f"{words()}, but the run is finished. The same command shows its result.")
    if folder.checkpoint is not None:
        return Interrupted(f"{words()}. The same command continues from the last checkpoint.")
    return Interrupted(f"{words()} before anything was saved.")


@contextmanager
def _alone(folder: Any) -> Iterator[None]:
    """Refuse a folder in which another process is running."""
    from filelock import FileLock, Timeout

    from rankwise.files import make_folder

    make_folder(folder.path)
    lock = FileLock(folder.path / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise RankwiseError(
            f"Another rankwise is at work in {folder.path}. Wait for it, or give another --out."
        ) from None
    try:
        yield
    finally:
        with suppress(OSError):  # before it is released: then nobody else can hold it
            (folder.path / ".lock").unlink()
        lock.release()


@contextmanager
def _nothing_half_written(folder: Any) -> Iterator[None]:
    """Remove a folder that this run made, if it ended before its first step."""
    new = not folder.path.exists()
    try:
        yield
    except BaseException:
        if new:
            folder.remove_unstarted()
        raise


def _refuse_foreign(folder: Any) -> None:
    """Refuse a folder that holds a model or an adapter of something else than a run: it would be overwritten."""
    names = ("adapter_config.json", "adapter_model.safetensors", "config.json", "model.safetensors")
    held = [name for name in names if (folder.path / name).exists()]
    if held and not folder.has_run and not folder.finished:
        raise RankwiseError(
            f"{folder.path} holds a model or an adapter ({held[0]}), which would be lost. Name another folder with `out=`."
        )


def _refuse_other(folder: Any, request: dict[str, Any]) -> None:
    differing = differences(same_run(folder.read_run()["requested"]), same_run(request))
    if differing:
        raise RankwiseError(
            f"{folder.path} holds a run with other settings ({'; '.join(differing)}). "
            "Give another --out, these settings, or remove that folder."
        )


def _draw_ranks(ranks: dict[str, int], result: dict[str, Any], json: bool) -> None:
    from rankwise.adapters import rank_table

    for line in rank_table.draw(ranks):
        say(json, line)
    mean = sum(ranks.values()) / len(ranks)
    say(json, f"Mean rank {mean:.2f}, {result['adapter_params']:,} adapter parameters.")
    if result.get("rank_summary"):
        say(json, result["rank_summary"])


def _say_quality(stored: Any, json: bool) -> None:
    """Print how good a run's predictions are, if its result says so."""
    from rankwise.tasks import quality

    with suppress(ValueError):
        for line in quality.lines(quality.from_json(stored)):
            say(json, line)


def _say_processes(result: dict[str, Any], json: bool) -> None:
    """Print what several processes cost."""
    sent, speed = result.get("bytes_sent_a_step", 0), result.get("speed")
    share = (speed or {}).get("shares", {}).get("communication")
    waited = "" if share is None else f" Communication took {share:.0%} of the time, waiting included."
    say(json, f"Each of {result['processes']} processes sent {sent / 1e6:,.3g} MB a step.{waited}")


def _check_threshold(wanted: str | None, name: str | None) -> None:
    """Refuse a threshold that can't be found whatever the classes are, before training."""
    from rankwise.tasks import threshold

    if wanted is not None:
        threshold.parse(wanted)
    if (wanted is None) != (name is None):
        raise RankwiseError(
            "`threshold_for=` and `of_class=` go together: --threshold-for precision=0.9 --class spam."
        )


def _find_threshold(folder: Any, wanted: str, name: str) -> Any:
    """Find a threshold on a run's validation rows and store it beside what was trained."""
    import numpy as np

    from rankwise.adapters import threshold_file
    from rankwise.tasks import objectives, threshold

    task, table = folder.read_run()["task"], folder.read_predictions()
    objective, names = objectives.named(task["problem"]), task["label_names"]
    threshold.check(wanted, name, objective, names)
    labels, logits = (np.array(table[column].to_pylist()) for column in ("label", "logits"))
    found = threshold.find(wanted, name, objective, labels, logits, names)
    threshold_file.write(folder.path, found)
    return found
