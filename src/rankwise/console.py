"""What is printed for people: consoles and lines in which text from data is escaped (`inert`)."""

import io
from typing import Any, Protocol, TextIO, runtime_checkable

from rich.console import Console
from rich.text import Text

from rankwise import inert

WIDTH = 160
"""Columns of a table in a stream that is no terminal."""


@runtime_checkable
class Writable(Protocol):
    """A stream that lines can be printed to."""

    def write(self, text: str, /) -> Any:
        """Write text."""
        ...

    def flush(self) -> Any:
        """Hand on what was written."""
        ...


def console(stream: TextIO) -> Console:
    """Return a console that takes strings as they are: no markup, no highlighting. A stream that is no terminal is wide."""
    lenient(stream)
    made = Console(file=stream, highlight=False, markup=False, emoji=False)
    if not made.is_terminal:
        made.width = WIDTH
    return made


def text(words: object, style: str = "") -> Text:
    """Return text for a console, escaped."""
    return Text(inert.terminal(words), style)


def line(words: object, stream: Writable) -> None:
    """Print a line at once, escaped."""
    lenient(stream)
    print(inert.terminal(words), file=stream, flush=True)


def lenient(stream: Writable) -> None:
    """Make a stream print characters that its encoding lacks as escapes, where it can be told so."""
    if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
        stream.reconfigure(errors="backslashreplace")
