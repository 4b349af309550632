"""One token for each packed row: the first, the mean or the last, as the family pools."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from float64 import assert_equal, assert_packed_is_padded, model_of, outcome, packed_outcome, rows_of
from rankwise.engine.packing import pad

METHODS = ["lora", "full"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_modernberts_pooling_is_taken_over_each_row(pooling, method):
    model = model_of("modernbert", method, classifier_pooling=pooling)
    assert_packed_is_padded(model, [4, 1, 9, 9])


def test_mean_pooling_is_not_first_token_pooling():
    rows, which = rows_of([4, 9]), np.arange(2)
    mean, first = (
        packed_outcome(model_of("modernbert", "full", classifier_pooling=pooling), rows, which)[0]
        for pooling in ("mean", "cls")
    )
    assert not torch.allclose(mean, first)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", ["gpt2", "llama", "opt"])
def test_the_last_token_is_found_where_end_of_text_also_pads(family, method):
    """GPT-2 has no padding token, so its end-of-text token pads: inside a text, at its end, and as a whole text."""
    model = model_of(family, method)
    model.config.pad_token_id = end = 2
    texts = [[5, end, 7, 8], [9, end, end], [4], [end, 6], [11, 12, end, 13, end]]
    rows = replace(rows_of([len(t) for t in texts]), input_ids=np.concatenate(texts).astype(np.int32))
    which = np.arange(len(texts))
    batch = {name: value for name, value in pad(rows, which, end).items() if name != "labels"}
    theirs = outcome(model, lambda: model(**batch).logits)
    assert_equal(packed_outcome(model, rows, which), theirs)
