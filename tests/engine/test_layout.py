"""Groups of rows of similar length cost least."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rankwise.engine.layout import GROUP_COST, HEAD_COST, length_groups


@given(st.lists(st.integers(1, 100), min_size=1, max_size=7))
def test_groups_of_lengths_cost_least_of_all_partitions(lengths):
    lengths = np.sort(np.array(lengths))
    quantum = np.select([lengths <= 16, lengths <= 64], [4, 8], 16)
    rounded = -(-lengths // quantum) * quantum

    def cost(padded):
        groups = 1 + int((np.diff(padded) > 0).sum())
        return GROUP_COST * groups + int((padded * (padded + HEAD_COST)).sum())

    def partitions(n):
        for ends in range(1 << (n - 1)):
            yield [i for i in range(n) if i == n - 1 or ends >> i & 1]

    def padded(ends):
        return rounded[np.array(ends)[np.searchsorted(ends, np.arange(len(lengths)))]]

    found = length_groups(lengths)
    assert (found >= lengths).all()
    assert cost(found) == min(cost(padded(ends)) for ends in partitions(len(lengths)))
