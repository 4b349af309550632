"""A grid of runs, each in its own process: memory is measured for each run alone, and a crash ends one run only.

    CompareConfig ─► one folder a run ─► finished: kept · unfinished: continued · new: started ─► events ─► progress

A run folder holds everything about its run, so the same request continues a grid that was stopped in any way.
"""

import contextlib
import json
import os
import queue
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from rankwise.config import CompareConfig, RunConfig, differences, options_of, same_run, to_json
from rankwise.errors import RankwiseError, machine_fault
from rankwise.files import make_folder, write_yaml
from rankwise.hardware import cores
from rankwise.run_folder import RunFolder, method_slug, read_grid, run_name, write_grid
from rankwise.runs.methods import check_start

STOP_SECONDS = 10.0
"""Time that runs get to save a checkpoint when the grid is interrupted."""
Command = Callable[[Path], list[str]]
"""From a run folder, the command line of the process that runs it."""
Listener = Callable[[str, dict[str, Any]], None]
"""Called with a run's name and each of its events."""


def worker_command(folder: Path) -> list[str]:
    """Return the command line of the process that runs a folder."""
    return [sys.executable, "-m", "rankwise.runs.worker", str(folder)]


@dataclass(frozen=True)
class Run:
    """One cell of the grid."""

    name: str
    config: RunConfig
    folder: RunFolder


def run_grid(config: CompareConfig, listen: Listener, *, command: Command = worker_command) -> dict[str, str]:
    """Run what isn't finished of a grid.

    Args:
        config: tasks × methods × seeds, and where.
        listen: called with `planned`, `kept`, `failed` and every event of the runs.
        command: starts a run.

    Returns:
        For the name of each run that failed, a sentence that says why.

    Raises:
        RankwiseError: the folder can't be written, is in use, or holds runs with other settings.
        KeyboardInterrupt: Ctrl-C; the processes are stopped, and the same call continues the grid.
    """
    make_folder(config.out)
    lock = FileLock(config.out / ".lock")
    try:
        at_work = lock.acquire(timeout=0)
    except Timeout:
        raise RankwiseError(
            f"Another rankwise is at work in {config.out}. Wait for it, or give another `out=`."
        ) from None
    with at_work:
        cells = _cells(config)
        unreadable = _unreadable(cells)
        runs = [run for run in cells if run.name not in unreadable]
        refuse_changes(config.out, runs)
        _check_starts(runs)
        _remember(config)
        waiting = []
        for run in cells:
            listen(run.name, {"event": "planned"})
            if run.name in unreadable:
                listen(run.name, {"event": "failed", "message": unreadable[run.name]})
            elif run.folder.finished:
                listen(run.name, {"event": "kept", **run.folder.read_result()})
                run.folder.remove_checkpoint()  # a killed process may have left it beside its result
            else:
                waiting.append(run)
        return unreadable | _run_all(config, waiting, listen, command)


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


def _cells(config: CompareConfig) -> list[Run]:
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


def refuse_changes(out: Path, runs: Sequence[Run]) -> None:
    """Refuses a grid whose folder holds runs with other settings.

    Raises:
        RankwiseError: naming each setting that differs once; or a finished run's record is damaged.
    """
    found: dict[str, None] = {}
    for run in runs:
        if run.folder.finished or (run.folder.has_run and run.folder.checkpoint):
            there = same_run(run.folder.read_run()["requested"])
            found |= dict.fromkeys(differences(there, same_run(to_json(run.config))))
    if found:
        raise RankwiseError(
            f"{out} holds runs with other settings: {'; '.join(found)}. Give another `out=`, or the settings there."
        )


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


def _run_all(config: CompareConfig, waiting: list[Run], listen: Listener, command: Command) -> dict[str, str]:
    heard: queue.Queue[tuple[Run, dict[str, Any] | None]] = queue.Queue()
    running: dict[str, _Child] = {}
    failed: dict[str, str] = {}
    waiting = list(reversed(waiting))

    def fail(run: Run, why: str) -> None:
        failed[run.name] = why
        listen(run.name, {"event": "failed", "message": why})

    try:
        while waiting or running:
            while waiting and len(running) < config.jobs:
                run = waiting.pop()
                try:
                    _ask(config, run)
                    running[run.name] = _Child(run, command(run.folder.path), heard)
                except (OSError, RankwiseError) as error:  # a full disk: other runs may need less
                    fail(run, machine_fault(error) or str(error))
            if not running:
                continue
            run, event = heard.get()
            if event is not None:
                running[run.name].note(event)
                listen(run.name, event)
                continue
            why = running.pop(run.name).end()
            if why is not None:
                with contextlib.suppress(OSError, RankwiseError):  # the disk that it failed for may be full
                    run.folder.update_run_json(failed=why)
                fail(run, why)
    finally:
        for child in running.values():
            child.ask_to_stop()
        until = time.monotonic() + STOP_SECONDS
        for child in running.values():
            child.stop(until)
    return failed


def _ask(config: CompareConfig, run: Run) -> None:
    """Writes the request. Threads that were assigned to an earlier start stay, because a resumed run is exact; those asked for don't."""
    known = run.folder.read_run() if run.folder.has_run else {}
    if same_run(known.get("requested") or {}) != same_run(to_json(run.config)):
        known = {}  # an earlier attempt failed before its first checkpoint
    threads = config.model.threads or max(1, cores() // config.jobs)
    assigned = {"threads": threads, "shared_machine": False} | (known.get("assigned") or {})
    assigned["shared_machine"] |= config.jobs > 1
    chosen = {"keep_model": config.keep_models, "report_to": list(config.report_to)}
    run.folder.write_request(to_json(run.config), {**assigned, **chosen})
    run.folder.update_run_json(failed=None, **({} if known else {"facts": None}))


class _Child:
    """A run's process. Its events go to a queue, followed by None when the process has ended."""

    def __init__(
        self, run: Run, command: list[str], heard: "queue.Queue[tuple[Run, dict[str, Any] | None]]"
    ) -> None:
        self._run, self._error = run, ""
        with run.folder.log.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log
            )
        assert self._process.stdout
        threading.Thread(target=self._listen, args=(self._process.stdout, heard), daemon=True).start()

    def _listen(self, lines: IO[bytes], heard: "queue.Queue[tuple[Run, dict[str, Any] | None]]") -> None:
        for line in lines:
            try:
                event = json.loads(line)
            except ValueError:
                continue  # printed by a library
            if isinstance(event, dict) and "event" in event:
                heard.put((self._run, event))
        heard.put((self._run, None))

    def note(self, event: dict[str, Any]) -> None:
        if event["event"] == "error":
            self._error = event["message"]

    def end(self) -> str | None:
        """Return why the run failed, or None. A run whose result is written hasn't failed, whatever the exit code."""
        code = self._process.wait()
        self._close()
        if self._run.folder.finished:
            return None
        if self._error:
            return self._error
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return f"The process {how}; see its last output in {self._run.folder.log}."

    def ask_to_stop(self) -> None:
        """Have it save what it trained and end."""
        self._process.terminate()

    def stop(self, until: float) -> None:
        try:
            self._process.wait(timeout=max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._close()

    def _close(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                pipe.close()


def die_with_parent() -> None:
    """Ends this process when its parent has ended in any way: the parent holds the other end of stdin."""

    def watch() -> None:
        while os.read(0, 1024):  # not sys.stdin: a thread must not hold its lock when Python ends
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
