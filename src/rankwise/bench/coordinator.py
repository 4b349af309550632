"""The referee: starts each contender in a process of its own, and lets one compute at a time, turn and turn about.

repeat 0:  A B C D      so that what drifts on the machine (heat, neighbours) meets all alike,
repeat 1:  B C D A      and a ratio is taken between turns that lie next to each other
repeat 2:  C D A B
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

Command = Callable[[str], list[str]]
"""A contender's name → the command line of its process."""


@dataclass(frozen=True)
class Progress:
    """What is going on: `done` of `total` turns; `seconds_left` is unknown until every contender has had a turn."""

    done: int
    total: int
    text: str
    seconds_left: float | None


@dataclass
class Record:
    """What one contender reported: an object a repeat, one about memory, or why it dropped out."""

    name: str
    repeats: list[dict[str, Any]] = field(default_factory=list)
    memory: dict[str, Any] = field(default_factory=dict)
    failure: str | None = None


def worker_command(name: str) -> list[str]:
    """The process of a real contender."""
    return [sys.executable, "-m", "rankwise.bench.worker"]


def compete(
    names: Sequence[str],
    config: dict[str, Any],
    repeats: int,
    *,
    command: Command = worker_command,
    environment: dict[str, str] | None = None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> list[Record]:
    """Runs a measurement. A contender that fails drops out with its reason; the others go on.

    Args:
        names: the contenders.
        config: sent to each.
        repeats: turns of each.
        command: starts a contender's process.
        environment: variables set for each process.
        on_progress: told before each turn, and at the end.
    """
    records = {name: Record(name) for name in names}
    seats: dict[str, _Seat] = {}
    pace = _Pace(names, repeats, on_progress)
    try:
        for name in names:
            pace.announce(f"{name}: starting and warming up")
            seats[name] = _Seat(command(name), {"contender": name, "config": config}, environment or {})
            _turn(seats, records[name], seats[name].listen)
            pace.tick(name, None)
        for i in range(repeats):
            for name in _rotated(names, i):
                pace.announce(f"{name}: repeat {i + 1} of {repeats}")
                if name in seats and (report := _turn(seats, records[name], seats[name].go)):
                    records[name].repeats.append(report)
                    pace.tick(name, report.get("seconds"))
                else:
                    pace.tick(name, 0.0)
        for name in names:
            pace.announce(f"{name}: memory")
            if name in seats and (report := _turn(seats, records[name], seats[name].go)):
                records[name].memory = report
            pace.tick(name, None)
        pace.announce("done")
    finally:
        for seat in seats.values():
            seat.close()
    return list(records.values())


def _rotated(names: Sequence[str], by: int) -> list[str]:
    by %= len(names)
    return [*names[by:], *names[:by]]


def _turn(
    seats: dict[str, "_Seat"], record: Record, take: Callable[[], dict[str, Any]]
) -> dict[str, Any] | None:
    try:
        return take()
    except _DroppedOut as reason:
        record.failure = str(reason)
        seats.pop(record.name).close()
        return None


class _DroppedOut(Exception):
    """A contender's process ended before its time; the last line of its log."""


class _Seat:
    """One contender's process."""

    def __init__(self, command: list[str], order: dict[str, Any], environment: dict[str, str]) -> None:
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the seat)
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={**os.environ, **environment},
        )
        self._say(json.dumps(order))

    def go(self) -> dict[str, Any]:
        """Lets it compute, until it reports."""
        self._say("go")
        return self.listen()

    def listen(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise self._dropped_out()
        return json.loads(line)

    def _say(self, line: str) -> None:
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):  # it is gone; `listen` says so, with the reason
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()

    def _dropped_out(self) -> _DroppedOut:
        code = self._process.wait()
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return _DroppedOut(lines[-1].strip() if lines else f"its process ended with code {code}")

    def close(self) -> None:
        """Ends the process, whatever it is doing."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._log):
            with contextlib.suppress(BrokenPipeError):
                stream.close()  # pyright: ignore[reportOptionalMemberAccess]


class _Pace:
    """Counts turns, and knows from each contender's last turn how long the rest will take."""

    def __init__(self, names: Sequence[str], repeats: int, tell: Callable[[Progress], None]) -> None:
        self._done, self._total, self._tell = 0, len(names) * (repeats + 2), tell
        self._left = dict.fromkeys(names, repeats)
        self._seconds: dict[str, float] = {}

    def announce(self, text: str) -> None:
        known = self._seconds.keys() == self._left.keys()
        left = sum(self._left[name] * seconds for name, seconds in self._seconds.items()) if known else None
        self._tell(Progress(self._done, self._total, text, left))

    def tick(self, name: str, repeat_seconds: float | None) -> None:
        """A turn is over; `repeat_seconds` when it was a repeat."""
        self._done += 1
        if repeat_seconds is not None:
            self._left[name] -= 1
            self._seconds[name] = repeat_seconds
