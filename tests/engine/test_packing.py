"""Packed rows keep their tokens, and padded rows are the same tokens and padding."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from float64 import rows_of
from rankwise.engine.packing import pack, pad


def tokens_of(batch, encoded):
    """The tokens of each row of a packed batch, by the row's number."""
    ends = batch.cu_seqlens.tolist()
    at = dict(zip(batch.rows.tolist(), batch.order.tolist(), strict=True))
    return {row: batch.input_ids[0, ends[i] : ends[i + 1]].tolist() for row, i in at.items()}


@given(st.lists(st.integers(1, 70), min_size=1, max_size=12), st.integers(1, 6), st.integers(1, 90))
def test_every_row_keeps_its_tokens_however_a_batch_is_divided(lengths, count, most):
    rows = rows_of(lengths)
    expected = {
        i: rows.input_ids[rows.offsets[i] : rows.offsets[i + 1]].tolist() for i in range(len(lengths))
    }
    batch = pack(rows, np.random.default_rng(1).permutation(len(lengths)), key=(0,))
    assert tokens_of(batch, rows) == expected
    assert tokens_of(batch.fill(), rows) == expected
    for divided in (batch.divide(count), batch.split(most)):
        found = [tokens_of(one, rows) for one in divided]
        assert {row: tokens for one in found for row, tokens in one.items()} == expected
        assert sum(map(len, found)) == len(lengths)
    assert all(len(one) == 1 or one.tokens <= most for one in batch.split(most))


def test_few_numbers_of_tokens_occur_once_batches_are_filled():
    sizes = {
        pack(rows_of([n]), np.arange(1), key=(0,)).fill().input_ids.shape[1] for n in range(512, 1024, 9)
    }
    assert len(sizes) <= 17
    assert all(
        pack(rows_of([n]), np.arange(1), key=(0,)).fill().input_ids.shape[1] <= 1.07 * n
        for n in (513, 700, 1000)
    )


def test_padded_rows_are_the_packed_ones_and_padding():
    rows = rows_of([3, 5, 1])
    batch = pad(rows, np.array([1, 2]), pad_id=0)
    assert batch["attention_mask"].tolist() == [[1] * 5, [1, 0, 0, 0, 0]]
    assert batch["input_ids"][1].tolist() == [int(rows.input_ids[8]), 0, 0, 0, 0]
    assert torch.equal(batch["labels"], torch.from_numpy(rows.labels[[1, 2]]))
    with pytest.raises(ValueError, match="A row of 5 tokens doesn't fit in 4"):
        pad(rows, np.array([1]), 0, 4)
