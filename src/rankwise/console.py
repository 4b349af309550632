"""What is printed for people: consoles and lines in which text from data is inert."""

import io
from typing import TextIO

from rich.console import Console
from rich.text import Text

from rankwise import inert

WIDTH = 160
"""Columns of a table in a stream that is no terminal."""


def console(stream: TextIO) -> Console:
    """Return a console that takes strings as they are: no markup, no highlighting. A stream that is no terminal is wide."""
    made = Console(file=lenient(stream), highlight=False, markup=False, emoji=False)
    if not made.is_terminal:
        made.width = WIDTH
    return made


def text(words: object, style: str = "") -> Text:
    """Return text for a console, made inert."""
    return Text(inert.terminal(words), style)


def line(words: object, stream: TextIO) -> None:
    """Print a line at once, made inert."""
    print(inert.terminal(words), file=lenient(stream), flush=True)


def lenient(stream: TextIO) -> TextIO:
    """Return a stream after making it print characters that its encoding lacks as escapes, where it can be told so."""
    if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
        stream.reconfigure(errors="backslashreplace")
    return stream
