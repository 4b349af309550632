"""One token for each packed row: the first, the mean or the last, as the family pools."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers as hf

from float64 import assert_equal, assert_packed_is_padded, model_of, outcome, packed_outcome, rows_of
from rankwise.engine.compute import Compute, predict_logits
from rankwise.engine.packing import pad
from rankwise.errors import RankwiseError

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


def end_pooled(family: str) -> hf.PreTrainedModel:
    sizes = {
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 64,
        "num_layers": 1,
        "num_heads": 4,
        "encoder_layers": 1,
        "decoder_layers": 1,
    }
    heads = {
        f"{part}_{name}": n
        for part in ("encoder", "decoder")
        for name, n in (("attention_heads", 4), ("ffn_dim", 64))
    }
    ids = {"vocab_size": 100, "pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 0}
    known = hf.AutoConfig.for_model(family)
    sizes = {k: v for k, v in {**sizes, **heads, "max_position_embeddings": 64}.items() if hasattr(known, k)}
    torch.manual_seed(0)
    config = hf.AutoConfig.for_model(family, **sizes, **ids)
    return hf.AutoModelForSequenceClassification.from_config(config).double().eval()


@pytest.mark.parametrize("family", ["bart", "mbart", "t5", "mvp"])
def test_a_text_that_holds_an_end_of_text_token_is_run_as_alone(family):
    """Transformers refuses a batch whose rows have different numbers of end-of-text tokens."""
    model, end = end_pooled(family), 2
    texts = [[5, 7, 8, end], [9, end, 6, end], [4, end], [end, 11, 12, end], [5, end, end, 6, end]]
    rows = replace(rows_of([len(t) for t in texts]), input_ids=np.concatenate(texts).astype(np.int32))
    compute = Compute.for_model(model, dtype=torch.float64, frozen_base=True, max_length=64, pad_id=0)
    with torch.no_grad():
        alone = [
            model(torch.tensor([t]), attention_mask=torch.ones(1, len(t), dtype=torch.int64)).logits
            for t in texts
        ]
    np.testing.assert_allclose(predict_logits(model, rows, compute), torch.cat(alone), rtol=1e-5)
    none = replace(rows_of([2]), input_ids=np.array([5, 6], np.int32))
    with pytest.raises(
        RankwiseError, match="reads a text at its end-of-text token .* puts none behind a text"
    ):
        predict_logits(model, none, compute)
