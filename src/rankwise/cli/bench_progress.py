"""The progress of a measurement: a bar with the time left in a terminal, otherwise one line per turn."""

from typing import Self, TextIO

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar

from rankwise import inert
from rankwise.bench.coordinator import Progress
from rankwise.console import console, line


class BenchProgress:
    """An `on_progress` for `bench`: `with BenchProgress(sys.stderr) as progress: bench(config, progress)`.

    Args:
        stream: where it is shown.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._console = stream, console(stream)
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}", markup=False))
        self._bar = (
            Bar(*columns, console=self._console, transient=True) if self._console.is_terminal else None
        )
        self._task = self._bar.add_task("", total=None) if self._bar else None

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar:
            self._bar.stop()

    def __call__(self, progress: Progress) -> None:
        text = inert.terminal(progress.text)
        if progress.seconds_left:
            text += f" ({_duration(progress.seconds_left)} left)"
        if self._bar and self._task is not None:
            self._bar.update(self._task, completed=progress.done, total=progress.total, description=text)
        else:
            line(f"[{progress.done}/{progress.total}] {text}", self._stream)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
