"""What a run reports while it works: events, which are plain dicts with the key `event` (start, step, rank, evaluate, result, error)."""

import json
from collections.abc import Callable
from typing import Any

Event = dict[str, Any]
Emit = Callable[[Event], None]


def to_line(event: Event) -> str:
    """Return an event as the line of JSON that a grid's process prints; ASCII, whatever encoding its stdout has."""
    return json.dumps(event, allow_nan=True)
