"""What tests run is held to rankwise's annotations."""

import sys

import pytest
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import TypeCheckError

import runtime_types

MODULE = """
from contextlib import contextmanager
from collections.abc import Iterator
from dataclasses import dataclass
from jaxtyping import Float
from torch import Tensor

def doubled(x: Float[Tensor, "rows columns"], y: Float[Tensor, "rows"]) -> Float[Tensor, "rows columns"]:
    return x * y[:, None]

def named(count: int) -> str:
    return count * "x" if count < 3 else 3

def unresolved(count: "OnlyForTheTypeChecker") -> int:
    return count

@contextmanager
def inside() -> Iterator[int]:
    yield 1

@dataclass
class Held:
    values: Float[Tensor, "rows"]

    @property
    def name(self) -> str:
        return 3

    @staticmethod
    def of(count: int) -> int:
        return count
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "checked_sample.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    runtime_types.install("checked_sample")
    import checked_sample  # pyright: ignore[reportMissingImports]

    yield checked_sample
    del sys.modules["checked_sample"]


def test_shapes_are_checked_at_every_call(module):
    import torch

    for _ in range(2 * runtime_types.FIRST_CALLS):
        module.doubled(torch.ones(2, 3), torch.ones(2))
    with pytest.raises(TypeCheckError):
        module.doubled(torch.ones(2, 3), torch.ones(3))
    with pytest.raises(TypeCheckError):
        module.Held(torch.ones(2, 3))


def test_other_types_are_checked_at_the_first_calls(module):
    assert module.named(2) == "xx"
    for wrong in ("2", 3):
        with pytest.raises(BeartypeCallHintViolation):
            module.named(wrong)
    with pytest.raises(BeartypeCallHintViolation):
        module.Held.of("2")
    with pytest.raises(BeartypeCallHintViolation):
        _ = module.Held.__new__(module.Held).name
    assert module.unresolved(1) == 1
    with module.inside() as value:
        assert value == 1
