"""However a model is run, its logits and gradients are those of each row alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import PrefixTuningConfig, PromptTuningConfig, get_peft_model
from torch import nn

import tiny
from float64 import PAD, assert_equal, model_of, outcome, rows_of
from rankwise.engine.compute import Compute, choose_padding, predict_logits
from rankwise.engine.execution import Engine
from rankwise.engine.packing import pad
from rankwise.errors import RankwiseError
from short_training import fixed

METHODS = ["lora", "full"]


def logits_by(how, model, rows, which):
    (batch,) = how.batches(model, rows, which)
    return how.logits(model, batch)


def compute(padding, max_length=24):
    return Compute(device=torch.device("cpu"), padding=padding, max_length=max_length, pad_id=PAD)


@pytest.mark.parametrize("padding", ["longest", "max_length"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", ["deberta-v2", "mpnet", "opt"])  # OPT packs, and may be asked for padded
def test_padded_training_equals_each_row_run_alone(family, method, padding):
    model, rows = model_of(family, method), rows_of([5, 1, 9, 5, 2, 7])
    which = np.array([4, 2, 0, 1])
    batched = outcome(model, lambda: logits_by(compute(padding), model, rows, which))
    alone = [pad(rows, which[i : i + 1], PAD)["input_ids"] for i in range(len(which))]
    assert [ids.shape[1] for ids in alone] == [2, 9, 5, 1]
    assert_equal(batched, outcome(model, lambda: torch.cat([model(input_ids=ids).logits for ids in alone])))


@pytest.mark.parametrize("family", ["roberta", "gpt2", "modernbert"])
def test_compute_gives_the_same_packed_and_padded(family):
    model, rows, which = model_of(family, "lora"), rows_of([5, 1, 9, 5, 2, 7]), np.array([4, 2, 0, 1])
    padded, tight = compute("longest"), compute("packed")
    with tight.running(model):
        ours = outcome(model, lambda: logits_by(tight, model, rows, which))
    assert_equal(ours, outcome(model, lambda: logits_by(padded, model, rows, which)))


def test_predictions_agree_by_padding_and_keep_the_rows_order():
    state = fixed()
    logits = {
        padding: predict_logits(
            state.model, state.rows, replace(state.compute, padding=padding), max_tokens=100
        )
        for padding in ("packed", "longest", "max_length")
    }
    alone = [
        predict_logits(state.model, state.rows.select(np.array([i])), state.compute)[0] for i in (0, 31, 59)
    ]
    np.testing.assert_allclose(logits["packed"], logits["longest"], atol=1e-5)
    np.testing.assert_allclose(logits["max_length"], logits["longest"], atol=1e-5)
    np.testing.assert_allclose(logits["packed"][[0, 31, 59]], alone, atol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "frozen_base", "autocast"),
    [(torch.bfloat16, False, torch.bfloat16), (torch.bfloat16, True, None), (torch.float32, False, None)],
)
def test_products_are_autocast_where_trained_weights_stay_in_float32(dtype, frozen_base, autocast):
    made = Compute.for_model(
        tiny.classifier("bert"), dtype=dtype, frozen_base=frozen_base, max_length=24, pad_id=PAD
    )
    assert made.autocast == autocast
    assert (made.padding, made.padding_reason, made.device.type) == ("packed", "packed: no padding", "cpu")


def test_a_model_that_cannot_be_packed_is_padded_and_says_why():
    made = Compute.for_model(
        tiny.classifier("mpnet"), dtype=torch.float32, frozen_base=True, max_length=24, pad_id=PAD
    )
    assert made.padding == "longest"
    assert "attention registry" in made.padding_reason


@pytest.mark.parametrize("method", [PrefixTuningConfig, PromptTuningConfig])
def test_rows_behind_virtual_tokens_are_padded_and_the_reason_says_so(method):
    model = get_peft_model(tiny.classifier("bert"), method(task_type="SEQ_CLS", num_virtual_tokens=4))
    assert choose_padding(model, "packed") == (
        "longest",
        "padded to the longest of a batch: a prompt method of PEFT puts its virtual tokens before each row",
    )


def test_checkpointing_is_off_again_behind_the_block():
    model, lean = tiny.classifier("bert"), replace(compute("packed"), engine=Engine(recompute=True))
    with lean.running(model):
        assert any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    assert not any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def test_a_model_without_layers_to_checkpoint_is_refused():
    lean = replace(compute("longest"), engine=Engine(recompute=True))
    with (
        pytest.raises(RankwiseError, match="Linear can't recompute its layers"),
        lean.running(nn.Linear(2, 2)),
    ):
        pass
