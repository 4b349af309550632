"""The coordinator of a measurement: it starts each contender in its own process and lets one compute at a time.

    repeat 0:  A B C D
    repeat 1:  B C D A      each repeat starts with the next contender
    repeat 2:  C D A B

So drift of the machine (heat, other processes) affects all contenders alike, and ratios compare turns that are close in time.
A contender that trains in several processes has each of them started here. They take their turns together.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import IO, Any

from rankwise.errors import RankwiseError

Command = Callable[[str], list[str]]
"""A contender's name → the command line of its process."""


@dataclass(frozen=True)
class Progress:
    """Where a measurement is: `done` of `total` turns. `seconds_left` is None until every contender has had a turn."""

    done: int
    total: int
    text: str
    seconds_left: float | None


@dataclass
class Record:
    """What one contender reported: one object per repeat, one about memory, one about a step's operations; or why it failed."""

    name: str
    repeats: list[dict[str, Any]] = field(default_factory=list)
    memory: dict[str, Any] = field(default_factory=dict)
    operations: dict[str, Any] = field(default_factory=dict)
    failure: str | None = None


def worker_command(name: str) -> list[str]:
    """Return the command line of a real contender's process."""
    return [sys.executable, "-m", "rankwise.bench.worker"]


def compete(
    names: Sequence[str],
    config: dict[str, Any],
    repeats: int,
    *,
    command: Command = worker_command,
    processes: Callable[[str], int] = lambda name: 1,
    environment: dict[str, str] | None = None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> list[Record]:
    """Run a measurement. A contender that fails is recorded with its reason, and the others continue.

    One that trains in several processes ends the measurement.

    Args:
        names: of the contenders.
        config: sent to each contender.
        repeats: turns of each contender.
        command: command line of a contender's process.
        processes: of a contender, that train together.
        environment: variables set for each process.
        on_progress: called before each turn and at the end.

    Raises:
        RankwiseError: one of several processes failed.
    """
    records = {name: Record(name) for name in names}
    running: dict[str, _Contender] = {}
    turns = _Turns(names, repeats, on_progress)
    try:
        for name in names:
            turns.announce(f"{name}: starting and warming up")
            running[name] = _Contender(
                command(name), {"contender": name, "config": config}, environment or {}, processes(name)
            )
            _take_turn(running, records[name], running[name].listen)
            turns.tick(name, None)
        for i in range(repeats):
            for name in _rotated(names, i):
                turns.announce(f"{name}: repeat {i + 1} of {repeats}")
                if name in running and (report := _take_turn(running, records[name], running[name].go)):
                    records[name].repeats.append(report)
                    turns.tick(name, report.get("seconds"))
                else:
                    turns.tick(name, 0.0)
        for about in ("memory", "operations"):
            for name in names:
                turns.announce(f"{name}: {about}")
                if name in running and (report := _take_turn(running, records[name], running[name].go)):
                    setattr(records[name], about, report)
                turns.tick(name, None)
        turns.announce("done")
    finally:
        for process in running.values():
            process.close()
    return list(records.values())


def _rotated(names: Sequence[str], by: int) -> list[str]:
    by %= len(names)
    return [*names[by:], *names[:by]]


def _take_turn(
    running: dict[str, "_Contender"], record: Record, turn: Callable[[], dict[str, Any]]
) -> dict[str, Any] | None:
    """Return what a turn reports, or None where the contender failed; then its process is closed."""
    try:
        return turn()
    except _FailedError as reason:
        record.failure = str(reason)
        running.pop(record.name).close()
        return None


class _FailedError(Exception):
    """A contender's process ended too early. The message is the last line of its log."""


class _Contender:
    """The processes of one contender: one, or several that train together."""

    def __init__(
        self, command: list[str], request: dict[str, Any], environment: dict[str, str], count: int
    ) -> None:
        self._name, self._processes = request["contender"], []
        for own in _environments(count):
            self._processes.append(_Process(command, request, environment | own))

    def go(self) -> dict[str, Any]:
        """Let it take a turn, and return its report."""
        for process in self._processes:
            process.send("go")
        return self.listen()

    def listen(self) -> dict[str, Any]:
        """Return its next report; of several processes the one with the highest peak of memory, or the first's.

        Raises:
            _FailedError: its one process has ended.
            RankwiseError: one of its several processes has ended.
        """
        if len(self._processes) == 1:
            return self._processes[0].listen()
        with ThreadPoolExecutor(len(self._processes)) as pool:
            number = {pool.submit(process.listen): i for i, process in enumerate(self._processes)}
            for heard in as_completed(number):
                if (reason := heard.exception()) is None:
                    continue
                for process in self._processes:  # so that nobody waits for it
                    process.kill()
                raise RankwiseError(
                    f"{self._name} can't be measured, because process {number[heard]} failed: {reason}"
                )
        return max((heard.result() for heard in number), key=lambda report: report.get("peak_memory_mb", 0))

    def close(self) -> None:
        """End its processes, whatever they are doing."""
        for process in self._processes:
            process.close()


def _environments(count: int) -> list[dict[str, str]]:
    """Return the variables by which so many processes on this machine find each other, as torchrun sets them."""
    if count == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    size = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    return [shared | size | {"RANK": str(i), "LOCAL_RANK": str(i)} for i in range(count)]


class _Process:
    """One process of a contender."""

    def __init__(self, command: list[str], request: dict[str, Any], environment: dict[str, str]) -> None:
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (`close` closes it)
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={**os.environ, **environment},
        )
        self.send(json.dumps(request))

    def listen(self) -> dict[str, Any]:
        """Return its next report.

        Raises:
            _FailedError: the process has ended.
        """
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise self._failure()
        return json.loads(line)

    def send(self, line: str) -> None:
        """Send it a line."""
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):  # the process has ended; `listen` raises with the reason
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()

    def _failure(self) -> _FailedError:
        code = self._process.wait()
        if code < 0:
            return _FailedError(f"{signal.Signals(-code).name} ended it.")
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return _FailedError(lines[-1].strip() if lines else f"its process ended with code {code}")

    def kill(self) -> None:
        """End the process, and leave its log."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def close(self) -> None:
        """End the process, whatever it is doing."""
        self.kill()
        for stream in (self._process.stdin, self._process.stdout, self._log):
            with contextlib.suppress(BrokenPipeError):
                stream.close()  # pyright: ignore[reportOptionalMemberAccess]


class _Turns:
    """Counts turns, and estimates the time left from the last turn of each contender."""

    def __init__(self, names: Sequence[str], repeats: int, tell: Callable[[Progress], None]) -> None:
        self._done, self._total, self._tell = 0, len(names) * (repeats + 3), tell
        self._left = dict.fromkeys(names, repeats)
        self._seconds: dict[str, float] = {}

    def announce(self, text: str) -> None:
        """Report progress: what happens next."""
        known = self._seconds.keys() == self._left.keys()
        left = sum(self._left[name] * seconds for name, seconds in self._seconds.items()) if known else None
        self._tell(Progress(self._done, self._total, text, left))

    def tick(self, name: str, repeat_seconds: float | None) -> None:
        """Count a turn. `repeat_seconds` is its time if it was a repeat."""
        self._done += 1
        if repeat_seconds is not None:
            self._left[name] -= 1
            self._seconds[name] = repeat_seconds
