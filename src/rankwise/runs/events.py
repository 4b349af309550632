"""What a run reports while it works: events, plain dicts with the key `event` (start, step, rank, evaluate, note, result, error).

Some of what a run writes is for people only. A failure there must not end the run: `optional` reports it and goes on.
"""

import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any

from rankwise.errors import machine_fault

Event = dict[str, Any]
Emit = Callable[[Event], None]


def to_line(event: Event) -> str:
    """Return an event as the line of JSON that a grid's process prints; ASCII, whatever encoding its stdout has."""
    return json.dumps(event, allow_nan=True)


@contextlib.contextmanager
def optional(what: str, emit: Emit) -> Iterator[None]:
    """Report an error in a `with` block and go on behind it.

    Args:
        what: the subject of the note: `The model card`.
        emit: gets a `note`.
    """
    try:
        yield
    except Exception as error:
        why = machine_fault(error) or " ".join(f"{type(error).__name__}: {error}".split())
        emit({"event": "note", "text": f"{what} couldn't be written. {why:.300}"})
