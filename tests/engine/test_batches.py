"""Batches hold every row once, within a limit of tokens, or with little padding."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rankwise.engine.batches import batch_order, token_batches


@given(st.lists(st.integers(1, 70), min_size=1, max_size=12), st.integers(1, 200))
def test_token_batches_hold_every_row_once_within_the_limit(lengths, most):
    lengths = np.array(lengths)
    batches = token_batches(lengths, most)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    assert all(len(batch) == 1 or len(batch) * lengths[batch].max() <= most for batch in batches)


def test_batches_grouped_by_length_need_less_padding():
    lengths = np.random.default_rng(0).integers(1, 100, 400)
    padding = [
        sum(
            int(len(b) * lengths[b].max() - lengths[b].sum())
            for b in batch_order(lengths, 8, seed=0, group_by_length=grouped)
        )
        for grouped in (False, True)
    ]
    assert padding[1] < 0.2 * padding[0]
