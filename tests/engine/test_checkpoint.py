"""A training continues from a checkpoint bit for bit."""

import pytest
import torch

from rankwise.engine import checkpoint
from short_training import fixed


def losses(state, until=None):
    found = []
    with state.compute.running(state.model):
        while not state.done and (until is None or state.step_number < until):
            found.append(state.step().loss)
    return found


@pytest.mark.parametrize("padding", ["packed", "longest"])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_resumed_training_equals_an_undisturbed_one(method, padding, tmp_path):
    whole, first, second = (fixed(method, padding=padding) for _ in range(3))
    expected = losses(whole)
    begun = losses(first, until=7)
    checkpoint.save(first, tmp_path)
    checkpoint.load(second, tmp_path)
    assert second.seconds == first.seconds
    assert begun + losses(second) == expected
    for (name, a), (_, b) in zip(second.trained_parameters(), whole.trained_parameters(), strict=True):
        assert torch.equal(a, b), name
