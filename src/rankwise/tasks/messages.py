"""Conversations: lists of messages as chat models are trained on, checked on reading and kept as JSON.

[{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}] ─► checked ─► a text that `load` reads again
"""

import json
from itertools import pairwise
from typing import Any

from rankwise.tasks.cells import OddCell, plain, whole_text

FIRST = ("system", "developer")
"""Roles of a message that may stand before all others."""
Messages = list[dict[str, Any]]


def dump(value: Any) -> str:
    """Return a list of messages as JSON; empty for a missing cell.

    Raises:
        OddCell: it is no list of messages, a message has no content, or roles don't take turns.
    """
    value = plain(value)
    if value is None or value == []:
        return ""
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise OddCell(value, 'messages are a list of {"role": …, "content": …}')
    messages = [_message(place, one) for place, one in enumerate(value, start=1)]
    _check_turns([one["role"] for one in messages])
    return json.dumps(messages, ensure_ascii=False)


def load(text: str) -> Messages:
    """Read what `dump` returned."""
    return json.loads(text)


def check_pair(prompt: str, completion: str) -> None:
    """Check that a completion, as `dump` returns it, goes on where a prompt ends.

    Raises:
        OddCell: the prompt ends with the assistant, or somebody else begins the completion.
    """
    last, first = load(prompt)[-1]["role"], load(completion)[0]["role"]
    if last == "assistant" or first != "assistant":
        raise OddCell(
            [last, first],
            "roles are out of order: a prompt ends with the user, and its completion begins with the assistant",
        )


def _message(place: int, message: dict[str, Any]) -> dict[str, Any]:
    held = {
        key: value for key, value in message.items() if value is not None
    }  # Parquet fills in what others have
    role, content = held.get("role"), held.get("content")
    if not isinstance(role, str) or not role:
        raise OddCell(message, f"message {place} has no role")
    if isinstance(content, list) or "tool_calls" in held:
        raise OddCell(
            message, f"message {place} holds something else than text; rankwise trains on texts alone"
        )
    if not isinstance(content, str) or not content.strip():
        raise OddCell(message, f"message {place} ({role}) has no content")
    return {**held, "content": whole_text(content)}


def _check_turns(roles: list[str]) -> None:
    turns = roles[1:] if roles[0] in FIRST else roles
    odd = next((role for role in turns if role not in ("user", "assistant")), None)
    if odd in FIRST:
        raise OddCell(roles, f"a {odd} message is the first")
    if odd is not None:
        raise OddCell(roles, f"rankwise knows the roles system, user and assistant, and not {odd!r:.40}")
    if any(first == second for first, second in pairwise(turns)):
        raise OddCell(roles, "roles are out of order: user and assistant take turns")
