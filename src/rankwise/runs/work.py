"""What a process of a grid does: it claims runs, does each in a process of its own, and keeps what others have finished.

    waiting ─► claimed ─► its process, whose events are passed on ─► finished, failed, or taken over by another process
            └► held by another process: left to it, taken over if that is lost (see `claims`)

Several runs at a time share the machine.
"""

import contextlib
import json
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from rankwise.config import RunConfig
from rankwise.config_json import differences, same_run, to_json
from rankwise.errors import RankwiseError, machine_fault
from rankwise.hardware import cores
from rankwise.run_folder import RunFolder
from rankwise.runs import parent
from rankwise.runs.claims import BEAT_SECONDS, POLL_SECONDS, Claims, Holder
from rankwise.runs.config import CompareConfig

STOP_SECONDS = 10.0
"""Time that runs get to save a checkpoint when the grid is interrupted."""
Command = Callable[[Path], list[str]]
"""From a run folder, the command line of the process that runs it."""
Listener = Callable[[str, dict[str, Any]], None]
"""Called with a run's name and each of its events."""
LOST: dict[str, Any] = {"event": "lost"}
"""Heard of a run that another process took over, because this one stood still for too long."""


def worker_command(folder: Path) -> list[str]:
    """Return the command line of the process that runs a folder."""
    return [sys.executable, "-m", "rankwise.runs.worker", str(folder)]


@dataclass(frozen=True)
class Run:
    """One cell of the grid."""

    name: str
    config: RunConfig
    folder: RunFolder


Heard = queue.Queue[tuple[Run, dict[str, Any] | None]]


def keep(run: Run, listen: Listener, claims: Claims, claimed: Collection[str]) -> None:
    """Tell of a finished run, and remove what a killed process may have left of it."""
    listen(run.name, {"event": "kept", **run.folder.read_result()})
    with contextlib.suppress(OSError):
        if run.name in claimed and not claims.claim(run.name):
            return  # another process has yet to clear up
        run.folder.remove_checkpoint()  # a killed process may have left it beside its result
    claims.release(run.name)


def refuse_changes(out: Path, runs: Sequence[Run], at_work: Collection[str] = ()) -> None:
    """Refuses a grid whose folder holds runs with other settings.

    Args:
        out: the grid's folder, for the message.
        runs: of the grid.
        at_work: names of runs that other processes do.

    Raises:
        RankwiseError: naming each setting that differs once; or a finished run's record is damaged.
    """
    found: dict[str, None] = {}
    for run in runs:
        if run.folder.finished or (run.folder.has_run and (run.folder.checkpoint or run.name in at_work)):
            there = same_run(run.folder.read_run()["requested"])
            found |= dict.fromkeys(differences(there, same_run(to_json(run.config))))
    if found:
        raise RankwiseError(
            f"{out} holds runs with other settings: {'; '.join(found)}. Give another `out=`, or the settings there."
        )


class Work:
    """The runs of a grid that aren't finished: those that this process does, and those that it leaves to others."""

    def __init__(
        self,
        config: CompareConfig,
        waiting: list[Run],
        listen: Listener,
        command: Command,
        claims: Claims,
        heard: Heard,
        *,
        threads: int | None = None,
        failures: Mapping[str, str | None] | None = None,
    ) -> None:
        """Begin nothing yet.

        Args:
            config: the grid.
            waiting: its runs that aren't finished.
            listen: called with a run's name and each of its events.
            command: starts a run.
            claims: of this process, which tell `heard` of those that are lost.
            heard: gets the events of the runs' processes.
            threads: of a run, unless they are asked for. Default: this process's share of the cores for each job.
            failures: for each run the process that is known to have failed in it. Default: as recorded now.
        """
        self._config, self._listen, self._command = config, listen, command
        self._claims, self._heard = claims, heard
        self._waiting = waiting
        self._running: dict[str, _Trains] = {}
        self._failed: dict[str, str] = {}
        self._threads = threads or max(1, cores() // config.jobs)
        self._failures = failures or {run.name: _failure(run) for run in waiting}
        self._elsewhere: dict[str, Holder] = {}
        self._look_at = self._neighbours_at = time.monotonic()

    def do(self) -> dict[str, str]:
        """Do what is left, until every run has ended; return why runs failed."""
        try:
            while self._waiting or self._running:
                self._start()
                if (
                    not self._running
                    and self._waiting
                    and not self._config.wait
                    and len(self._elsewhere) == len(self._waiting)
                ):
                    break
                with contextlib.suppress(queue.Empty):
                    self._hear(*self._heard.get(timeout=POLL_SECONDS))
                self._tell_of_neighbours()
        finally:
            for child in self._running.values():
                child.ask_to_stop()
            until = time.monotonic() + STOP_SECONDS
            for child in self._running.values():
                child.stop(until)
        return self._end()

    def _end(self) -> dict[str, str]:
        """Tell of the runs that others still do; return why runs failed."""
        for name, holder in self._elsewhere.items():
            self._listen(name, {"event": "left", "holder": str(holder)})
        return self._failed

    def _start(self) -> None:
        """Start runs while there is room, and look at those of others."""
        if len(self._running) >= self._config.jobs or time.monotonic() < self._look_at:
            return
        self._look_at = time.monotonic() + POLL_SECONDS
        self._elsewhere, holders = {}, self._claims.holders()
        for run in list(self._waiting):
            if len(self._running) >= self._config.jobs:
                break
            if run.folder.finished:
                self._keep(run)
                continue
            if run.name in holders:
                self._leave_to_others(run, holders[run.name])
                continue
            try:
                mine = self._claims.claim(run.name)
            except OSError as error:  # a full disk: another run may find it otherwise
                self._fail(run, machine_fault(error) or str(error))
                continue
            if mine:
                self._start_or_release(run)

    def _leave_to_others(self, run: Run, holder: Holder) -> None:
        """Tell of a run that another process does."""
        self._elsewhere[run.name] = holder
        self._listen(run.name, {"event": "elsewhere", "holder": str(holder)})

    def _start_or_release(self, run: Run) -> None:
        """Start a claimed run, unless another process ended it between the look and the claim."""
        with contextlib.suppress(OSError):
            list(run.folder.path.iterdir())  # a shared file system may remember that there was no result
        if run.folder.finished:
            self._claims.release(run.name)
            self._keep(run)
            return
        try:
            if (failure := _failure(run)) != self._failures[run.name] and failure:
                self._claims.release(run.name)
                self._fail(run, run.folder.read_run().get("failed") or "")
                return
            refuse_changes(self._config.out, [run])
            _ask(self._config, run, self._threads, shared=self._claims.neighbours())
            child = self._running[run.name] = _Trains(run, self._command(run.folder.path), self._heard)
            if not self._claims.record_worker(run.name, child.pid):
                child.kill()
            self._waiting.remove(run)
        except (OSError, RankwiseError) as error:  # a full disk: other runs may need less
            self._claims.release(run.name)
            self._fail(run, machine_fault(error) or str(error))

    def _hear(self, run: Run, event: dict[str, Any] | None) -> None:
        """Take an event of a run, None after its last."""
        child = self._running.get(run.name)
        if child is None:
            return
        if event is LOST:
            child.kill()
            return
        if event is not None:
            child.note(event)
            self._listen(run.name, event)
            return
        why = self._running.pop(run.name).end()
        self._look_at = time.monotonic()
        if child.killed:  # another process has taken the run over
            self._waiting.append(run)
            return
        if why is not None:
            with contextlib.suppress(OSError, RankwiseError):  # the disk that it failed for may be full
                run.folder.update_run_json(failed=why, failed_in=self._claims.token)
        self._claims.release(run.name)
        if why is not None:
            self._fail(run, why)

    def _keep(self, run: Run) -> None:
        """Take a run that another process finished."""
        self._waiting.remove(run)
        try:
            keep(run, self._listen, self._claims, self._claims.claimed())
        except RankwiseError as error:
            self._fail(run, str(error))

    def _fail(self, run: Run, why: str) -> None:
        if run in self._waiting:
            self._waiting.remove(run)
        self._failed[run.name] = why
        self._listen(run.name, {"event": "failed", "message": why})

    def _tell_of_neighbours(self) -> None:
        """Have the runs know when another process trains on this machine: their speed means nothing then."""
        if self._running and time.monotonic() >= self._neighbours_at:
            self._neighbours_at = time.monotonic() + BEAT_SECONDS
            if self._claims.neighbours():
                for child in self._running.values():
                    child.tell_that_machine_is_shared()


def _failure(run: Run) -> str | None:
    """Return which process recorded a run's failure; None where none is recorded."""
    try:
        known = run.folder.read_run() if run.folder.has_run else {}
    except RankwiseError:
        return None
    return known.get("failed_in") if known.get("failed") else None


def _ask(config: CompareConfig, run: Run, threads: int, *, shared: bool) -> None:
    """Writes the request. Threads that were assigned to an earlier start stay, because a resumed run is exact; those asked for don't."""
    known = run.folder.read_run() if run.folder.has_run else {}
    if same_run(known.get("requested") or {}) != same_run(to_json(run.config)):
        known = {}  # an earlier attempt failed before its first checkpoint
    assigned = {"threads": config.model.threads or threads, "shared_machine": False} | (
        known.get("assigned") or {}
    )
    assigned["shared_machine"] |= config.jobs > 1 or shared
    chosen = {"keep_model": config.keep_models, "report_to": list(config.report_to)}
    run.folder.write_request(to_json(run.config), {**assigned, **chosen})
    run.folder.update_run_json(failed=None, failed_in=None, **({} if known else {"facts": None}))


class Child:
    """A process that prints events, a line of JSON each. They go to a queue, followed by None when the process has ended."""

    def __init__(self, of: Any, command: list[str], log: IO[bytes], heard: queue.Queue[Any]) -> None:
        """Start it.

        Args:
            of: what stands before each event in the queue.
            command: its command line.
            log: gets what it prints to stderr.
            heard: the queue.
        """
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)
        assert self._process.stdout
        threading.Thread(target=self._listen, args=(of, self._process.stdout, heard), daemon=True).start()

    def _listen(self, of: Any, lines: IO[bytes], heard: queue.Queue[Any]) -> None:
        for line in lines:
            try:
                event = json.loads(line)
            except ValueError:
                continue  # printed by a library
            if isinstance(event, dict) and "event" in event:
                heard.put((of, event))
        heard.put((of, None))

    @property
    def pid(self) -> int:
        """The number of the process."""
        return self._process.pid

    def tell(self, what: bytes) -> None:
        """Write to its standard input, unless it has ended."""
        if self._process.stdin:
            with contextlib.suppress(OSError):
                self._process.stdin.write(what)
                self._process.stdin.flush()

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()

    def stop(self, until: float) -> None:
        """Wait for its end until a time of the steady clock, and then end it."""
        try:
            self._process.wait(timeout=max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._close()

    def _close(self) -> None:
        self.hang_up()
        if self._process.stdout:
            self._process.stdout.close()

    def hang_up(self) -> None:
        """Tell it that nothing more is coming."""
        if self._process.stdin:
            with contextlib.suppress(OSError):  # what it was told last may not have reached it
                self._process.stdin.close()


class _Trains(Child):
    """A run's process."""

    def __init__(self, run: Run, command: list[str], heard: Heard) -> None:
        self._run, self._error, self.killed, self._told = run, "", False, False
        with run.folder.log.open("ab") as log:
            super().__init__(run, command, log, heard)

    def kill(self) -> None:
        """End it at once: its folder is another process's now."""
        self.killed = True
        super().kill()

    def tell_that_machine_is_shared(self) -> None:
        """Tell it once that another process trains on this machine."""
        if not self._told:
            self._told = True
            self.tell(parent.SHARED)

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
