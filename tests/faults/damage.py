"""Ways to damage a file: its bytes, the JSON in it, the tensors in it."""

import json
import random
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 10**9, -(10**9), 10**400, 0.5, 1e308, float("nan"), float("inf")),
    *("", "x", "1", "nan", "../..", "\x1b[31mred", "=cmd()", "# heading", "a\nb", "(a+)+$", "x" * 5000),
    *([], [None], ["x"], [1, [2]], {}, {"x": 1}, {"": None}),
)
"""What may stand in place of any value."""


def file_bytes(rng: random.Random, file: Path) -> None:
    """Flip, drop, double, cut off or insert bytes."""
    content = bytearray(file.read_bytes())
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(content) + 1)
        length = rng.choice((1, 2, 16, 500))
        kind = rng.randrange(6)
        if kind == 0:
            content[at : at + length] = bytes(rng.randrange(256) for _ in content[at : at + length])
        elif kind == 1:
            del content[at : at + length]
        elif kind == 2:
            content[at:at] = content[at : at + length]
        elif kind == 3:
            del content[at:]
        elif kind == 4:
            content[at:at] = rng.choice(
                (b"\0", b"\xff", b"\n", b'"', b"{", b"[" * 60_000, b"null\n", b"1e999")
            )
        else:
            content[at:at] = bytes(rng.randrange(256) for _ in range(length))
    file.write_bytes(bytes(content))


def document(rng: random.Random, value: Any) -> Any:
    """Return a JSON value with one to three of its parts replaced, dropped, renamed or nested deep."""
    for _ in range(rng.randint(1, 3)):
        value = _one_part(rng, value)
    return value


def _one_part(rng: random.Random, value: Any) -> Any:
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(sorted(value))
        changed = dict(value)
        kind = rng.random()
        if kind < 0.15:
            del changed[key]
        elif kind < 0.25:
            changed[rng.choice(("", "x", key.upper(), f"{key}.{key}"))] = changed.pop(key)
        else:
            changed[key] = _one_part(rng, value[key])
        return changed
    if isinstance(value, list) and value and rng.random() < 0.85:
        at = rng.randrange(len(value))
        return [*value[:at], *([] if rng.random() < 0.2 else [_one_part(rng, value[at])]), *value[at + 1 :]]
    if rng.random() < 0.03:
        deep: Any = value
        for _ in range(200):
            deep = [deep]
        return deep
    return rng.choice(VALUES)


def json_file(rng: random.Random, file: Path) -> None:
    """Damage a JSON document and write it back; sometimes its bytes instead."""
    if rng.random() < 0.2:
        file_bytes(rng, file)
    else:
        file.write_text(json.dumps(document(rng, json.loads(file.read_text()))))


def json_lines(rng: random.Random, file: Path) -> None:
    """Damage some lines of JSON, or the file's bytes."""
    if rng.random() < 0.3:
        file_bytes(rng, file)
        return
    lines = file.read_text().splitlines()
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(lines))
        kind = rng.randrange(5)
        if kind == 0:
            lines[at] = rng.choice(("null", "7", "[]", "{}", "", "NaN", '"x"', "[" * 60_000 + "]" * 60_000))
        elif kind == 1:
            lines[at] += lines[at]
        else:
            lines[at] = _line(rng, lines[at])
    file.write_text("\n".join(lines) + "\n")


def _line(rng: random.Random, line: str) -> str:
    try:
        return json.dumps(document(rng, json.loads(line)))
    except (ValueError, RecursionError):  # damaged before
        return "{"


def tensors(rng: random.Random, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return tensors of which one to three are dropped, renamed, reshaped, of another kind, or hold what is no number."""
    state = dict(state)
    for _ in range(rng.randint(1, 3)):
        if not state:
            break
        name = rng.choice(sorted(state))
        value = state.pop(name)
        kind = rng.randrange(10)
        if kind == 0:
            continue
        if value.is_complex():  # damaged enough
            state[name] = value
            break
        if kind == 1:
            name = rng.choice(
                (name.upper(), f"{name}.x", name.rpartition(".")[0] or "x", name.replace("lora_A", "lora_B"))
            )
        elif kind == 2:
            value = value.flatten()
        elif kind == 3:
            value = value.t() if value.ndim == 2 else value[None]
        elif kind == 4:
            value = value[: max(value.shape[0] // 2, 1)] if value.ndim else value[None]
        elif kind == 5:
            value = value.to(rng.choice((torch.int64, torch.bool, torch.uint8, torch.float64, torch.float16)))
        elif kind == 6:
            value = value.to(torch.complex64)
        elif kind == 7:
            value = value[:0] if value.ndim else value[None][:0]
        elif kind == 8:
            value = value.float().clone(memory_format=torch.contiguous_format)
            value.view(-1)[:1] = rng.choice((float("nan"), float("inf"), 3e38))
        else:
            value = torch.cat([value, value]) if value.ndim else value
        state[name] = value
    return state


def tensor_file(rng: random.Random, file: Path) -> None:
    """Damage the tensors of a safetensors file, or its bytes."""
    if rng.random() < 0.25:
        file_bytes(rng, file)
        return
    state = {name: value.contiguous().clone() for name, value in tensors(rng, load_file(file)).items()}
    save_file(state, file, metadata={"format": "pt"})
