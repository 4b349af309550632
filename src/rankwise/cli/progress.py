"""Shows runs while they work: in a terminal a live table and bars, elsewhere plain lines without control characters."""

import contextlib
import math
import time
from types import TracebackType
from typing import Any, Self, TextIO

from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from rankwise import console
from rankwise.cli.parameters import in_flags
from rankwise.console import text
from rankwise.report.words import clock

PLAIN_SECONDS = 10.0
"""Time between two plain lines of one run."""
ELSEWHERE_SECONDS = 60.0
"""Time between two plain lines of a run that another process does."""
BAR_SECONDS = 2.0
"""A `Bar` appears only if the work takes longer than this."""


class _Screen:
    """A live region of a terminal, or plain lines on any other stream."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.console = stream, console.console(stream)
        self.live = Live(console=self.console, refresh_per_second=4, get_renderable=self.render)

    @property
    def terminal(self) -> bool:
        return self.console.is_terminal and not self.console.is_dumb_terminal

    def __enter__(self) -> Self:
        if self.terminal:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.terminal:
            with contextlib.suppress(OSError):
                self.live.stop()

    def say(self, line: str) -> None:
        """Prints a line that stays. A terminal that is gone, or a full disk behind it, doesn't end the work."""
        with contextlib.suppress(OSError):
            self._print(in_flags(line))

    def _print(self, line: str) -> None:
        if self.terminal:
            self.console.print(text(line))
        else:
            console.line(line, self.stream)

    def render(self) -> Any:
        """Return what the live region shows now."""
        return Text("")


class _RunState:
    """The state of one run, from its events."""

    def __init__(self) -> None:
        self.state, self.step, self.steps = "waiting", 0, 0
        self.loss: float | None = None
        self.rate: float | None = None
        self.left: float | None = None
        self.score, self.metric, self.seconds, self.message = None, "", 0.0, ""
        self.spoken = -math.inf

    def hear(self, event: dict[str, Any]) -> None:
        """Takes an event."""
        kind = event["event"]
        if kind == "start":
            self.state, self.steps = "starting", event["steps"]
        elif kind == "step":
            self.state, self.step, self.steps = "training", event["step"], event["steps"]
            self.loss, self.rate, self.left = event["loss"], event["rows_per_second"], event["seconds_left"]
        elif kind == "evaluate":
            self.state = "evaluating"
        elif kind in ("result", "kept"):
            self.state = "done"
            self.score, self.metric, self.seconds = event["score"], event["metric"], event["train_seconds"]
        elif kind == "failed":
            self.state, self.message = "failed", event["message"]
        elif kind in ("elsewhere", "left"):
            self.state, self.message = "elsewhere", event["holder"]

    @property
    def share(self) -> float:
        """The fraction of the steps that is done."""
        return self.step / self.steps if self.steps else 0.0

    def words(self) -> str:
        """Return `step 120/825 (15 %), loss 0.431, 154 rows/s, 1:32 left`."""
        parts = [f"step {self.step}/{self.steps} ({100 * self.share:.0f} %)"]
        if self.loss is not None:
            parts.append(f"loss {self.loss:.3f}")
        if self.rate:
            parts.append(f"{self.rate:.0f} rows/s")
        if self.left is not None:
            parts.append(f"{clock(self.left)} left")
        return ", ".join(parts)

    def bar(self, width: int = 24) -> Text:
        """Return a bar of the steps that are done."""
        full = round(width * self.share)
        return Text("━" * full, style="green") + Text("━" * (width - full), style="bright_black")

    def due(self) -> bool:
        """Return whether it is time for another plain line."""
        now = time.monotonic()
        seconds = ELSEWHERE_SECONDS if self.state == "elsewhere" else PLAIN_SECONDS
        if now - self.spoken < seconds and (self.state == "elsewhere" or self.step < self.steps):
            return False
        self.spoken = now
        return True


class RunProgress(_Screen):
    """Shows one run. Call it with each event."""

    def __init__(self, stream: TextIO) -> None:
        self.run = _RunState()
        super().__init__(stream)

    def __call__(self, event: dict[str, Any]) -> None:
        self.run.hear(event)
        for note in event.get("notes", []):
            self.say(note)
        if event["event"] in ("rank", "note"):
            self.say(event["text"])
        if not self.terminal and event["event"] == "step" and self.run.due():
            self.say(self.run.words())

    def render(self) -> Any:
        if self.run.state == "evaluating":
            return Text("Evaluating …")
        return self.run.bar() + Text(f" {self.run.words()}") if self.run.state == "training" else Text("")


class GridProgress(_Screen):
    """Shows a grid of runs. Call it with a run's name and each of its events."""

    SHOWN = 16
    """Most rows of the live table; further runs are only counted."""

    def __init__(self, stream: TextIO) -> None:
        self.runs: dict[str, _RunState] = {}
        self.notes: set[str] = set()
        super().__init__(stream)

    def __call__(self, name: str, event: dict[str, Any]) -> None:
        run = self.runs.setdefault(name, _RunState())
        shared = run.state == "elsewhere"
        run.hear(event)
        for note in event.get("notes", []):
            if note not in self.notes:
                self.notes.add(note)
                self.say(note)
        kind = event["event"]
        if kind == "failed":
            self.say(f"{name} failed: {event['message']}")
        elif kind == "note":
            self.say(f"{name}: {event['text']}")
        elif kind == "left":
            self.say(f"{name} isn't finished: another process does it ({event['holder']}).")
        elif not self.terminal:
            self._plain(name, run, kind, shared=shared)

    def _plain(self, name: str, run: _RunState, kind: str, *, shared: bool) -> None:
        if kind == "start":
            self.say(f"{name}: {run.steps} steps")
        elif kind == "step" and run.due():
            self.say(f"{name}: {run.words()}")
        elif kind == "result":
            self.say(f"{name}: {run.metric} {run.score:.4f} after {clock(run.seconds)}; {self._tally()}")
        elif kind == "kept":
            self.say(
                f"{name}: {run.metric} {run.score:.4f}, {'finished elsewhere' if shared else 'finished before'}"
            )
        elif kind == "elsewhere" and run.due():
            self.say(f"{name}: another process does it ({run.message})")

    def _count(self, *states: str) -> int:
        return sum(run.state in states for run in self.runs.values())

    def _tally(self) -> str:
        failed = self._count("failed")
        tally = f"{self._count('done')} of {len(self.runs)} runs done" + (
            f", {failed} failed" if failed else ""
        )
        left = self._seconds_left()
        return tally + (f", about {clock(left)} left" if left else "")

    def _seconds_left(self) -> float | None:
        """Return an estimate of the time left, from the runs that are done; None if there are none."""
        seconds = [run.seconds for run in self.runs.values() if run.state == "done" and run.seconds]
        running = [run for run in self.runs.values() if run.state in ("training", "evaluating")]
        if not seconds:
            return None
        waiting = self._count("waiting", "starting") * sum(seconds) / len(seconds)
        return (waiting + sum(run.left or 0.0 for run in running)) / max(1, len(running))

    def render(self) -> Any:
        table = Table(box=None, padding=(0, 1), show_header=False)
        for name, run in self._shown():
            table.add_row(text(name), *self._cells(run))
        hidden = len(self.runs) - len(self._shown())
        foot = self._tally() + (f" ({hidden} not shown)" if hidden > 0 else "")
        return Group(table, Text(foot, style="bold"))

    def _shown(self) -> list[tuple[str, _RunState]]:
        """Return the rows of the table: those around the first run at work."""
        runs = list(self.runs.items())
        if len(runs) <= self.SHOWN:
            return runs
        busy = [i for i, (_, run) in enumerate(runs) if run.state not in ("done", "waiting", "failed")]
        first = max(0, min((busy[0] if busy else len(runs)) - self.SHOWN // 2, len(runs) - self.SHOWN))
        return runs[first : first + self.SHOWN]

    @staticmethod
    def _cells(run: _RunState) -> tuple[Text, Text]:
        if run.state == "done":
            return Text("✓ done", style="green"), text(f"{run.metric} {run.score:.4f}")
        if run.state == "failed":
            return Text("✗ failed", style="red"), Text("")
        if run.state == "training":
            rate = f"{run.rate:.0f} rows/s" if run.rate else ""
            left = f"{clock(run.left)} left" if run.left is not None else ""
            return run.bar(12), Text(f"{100 * run.share:3.0f} %  loss {run.loss:.3f}  {rate}  {left}")
        said = text(run.message) if run.state == "elsewhere" else Text("")
        return Text(f"· {run.state}", style="bright_black"), said


class Bar:
    """Shows the progress of a pass over rows, if it takes longer than `BAR_SECONDS`. Call it with (done, of)."""

    def __init__(self, stream: TextIO, label: str) -> None:
        self._stream, self._console, self._label = stream, console.console(stream), label
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=self._console, transient=True)
        self._task, self._begun, self._spoken = None, time.monotonic(), time.monotonic()
        self._first: tuple[float, int] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *what: object) -> None:
        if self._task is not None:  # stopping a bar that never started would print an empty line
            self._progress.stop()

    def __call__(self, done: int, of: int) -> None:
        now = time.monotonic()
        self._first = self._first or (now, done)  # what came before the first rows doesn't come again
        if now - self._begun < BAR_SECONDS:
            return
        if self._console.is_terminal:
            if self._task is None:
                self._progress.start()
                self._task = self._progress.add_task(self._label, total=of)
            self._progress.update(self._task, completed=done)
        elif now - self._spoken >= PLAIN_SECONDS and done > self._first[1]:
            self._spoken = now
            left = (now - self._first[0]) / (done - self._first[1]) * (of - done)
            console.line(f"{self._label}: {done:,} of {of:,} rows, {clock(left)} left", self._stream)
