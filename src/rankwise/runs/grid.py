"""A grid of runs, each in its own process: memory is measured for each run alone, and a crash ends one run only.

    CompareConfig ─► one folder a run ─► finished: kept · unfinished: continued · new: started ─► events ─► progress
                                         held by another process: left to it, taken over if that is lost (see `claims`)

A run folder holds everything about its run, so the same request continues a grid that was stopped in any way. Several processes that are
asked for the same grid share it.
"""

import queue
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rankwise.config import RunConfig
from rankwise.config_json import options_of, to_json
from rankwise.errors import RankwiseError
from rankwise.files import make_folder, write_yaml
from rankwise.run_folder import RunFolder, method_slug, read_grid, run_name, write_grid
from rankwise.runs.claims import Claims
from rankwise.runs.config import CompareConfig
from rankwise.runs.methods import check_start
from rankwise.runs.ray_work import RayWork
from rankwise.runs.work import LOST, Command, Heard, Listener, Run, Work, keep, refuse_changes, worker_command


def run_grid(config: CompareConfig, listen: Listener, *, command: Command = worker_command) -> dict[str, str]:
    """Run what isn't finished of a grid.

    Args:
        config: tasks × methods × seeds, and where.
        listen: called with `planned`, `kept`, `failed` and every event of the runs; with `elsewhere` for a run that another process
            does, and `left` for one that it still does at the end, both with `holder`: who that is.
        command: starts a run; on a Ray cluster `worker_command` does.

    Returns:
        For the name of each run that failed, a sentence that says why.

    Raises:
        RankwiseError: the folder can't be written, or holds runs with other settings; or there is no Ray cluster, or none any more.
        KeyboardInterrupt: Ctrl-C; the processes are stopped, and the same call continues the grid.
    """
    make_folder(config.out)
    heard: Heard = queue.Queue()
    every = cells(config)
    by_name = {run.name: run for run in every}

    def lost(name: str) -> None:
        if name in by_name:
            heard.put((by_name[name], LOST))

    with Claims(config.out, lost) as claims:
        unreadable = _unreadable(every)
        runs = [run for run in every if run.name not in unreadable]
        claimed = claims.claimed()
        refuse_changes(config.out, runs, claimed)
        _check_starts(runs)
        with claims.alone():
            _remember(config)
        waiting = []
        for run in every:
            listen(run.name, {"event": "planned"})
            if run.name in unreadable:
                listen(run.name, {"event": "failed", "message": unreadable[run.name]})
            elif run.folder.finished:
                keep(run, listen, claims, claimed)
            else:
                waiting.append(run)
        work = Work if config.ray is None else RayWork
        return unreadable | work(config, waiting, listen, command, claims, heard).do()


def _unreadable(runs: Sequence[Run]) -> dict[str, str]:
    """Return the runs whose folder holds damaged records, with a sentence for each. They neither stop the others nor are written over."""
    found = {}
    for run in runs:
        try:
            if run.folder.finished:
                run.folder.read_result()
            if run.folder.has_run or run.folder.finished:
                run.folder.read_run()
        except RankwiseError as error:
            found[run.name] = str(error)
    return found


def cells(config: CompareConfig) -> list[Run]:
    """Return every run once, in order, even if a task or method is named twice."""
    runs: dict[str, Run] = {}
    for run in map(_start, config.runs()):
        name = run_name(run.task, run.method, run.seed)
        other = runs.setdefault(name, Run(name, run, RunFolder(config.out / name)))
        if other.config != run:
            raise RankwiseError(
                f"{other.config.method} and {run.method} would share the folder {name}. "
                "Give one of them its own grid with `out=`."
            )
    return list(runs.values())


def _start(run: RunConfig) -> RunConfig:
    """Return the run with its task, method and seed filled in where the folder it starts from has `{task}`, `{method}`, `{seed}`."""
    if run.model.from_adapter is None:
        return run
    folder = str(run.model.from_adapter)
    for name, value in (("task", run.task), ("method", method_slug(run.method)), ("seed", str(run.seed))):
        folder = folder.replace(f"{{{name}}}", value)
    return replace(run, model=replace(run.model, from_adapter=Path(folder)))


def _check_starts(runs: Sequence[Run]) -> None:
    """Refuses a grid in which a run has nothing to start from, before any run is started."""
    for run in runs:
        folder = run.config.model.from_adapter
        if folder is not None and not run.folder.finished:
            check_start(folder, run.config.method)


def _remember(config: CompareConfig) -> None:
    """Writes grid.json: everything asked for so far, and the command that asked for it last."""
    asked = to_json(config)
    known = read_grid(config.out)
    asked["tasks"] = list(dict.fromkeys([*known.get("tasks", []), *config.names]))
    asked["methods"] = list(dict.fromkeys([*known.get("methods", []), *config.methods]))
    asked["seeds"] = max(known.get("seeds", 0), config.repeats)
    write_grid(config.out, {**asked, "command": shlex.join(["rankwise", *sys.argv[1:]])})
    options = options_of(config, config.out)
    write_yaml(config.out / "compare.yaml", "rankwise compare --config compare.yaml", options)
