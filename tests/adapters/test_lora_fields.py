"""docs/reference/peft.md is what happens."""

import dataclasses

import peft
import pytest
import torch

from adapters import lora_fields

PINNED = pytest.mark.skipif(
    not peft.__version__.startswith("0.21.") or torch.cuda.is_available(),
    reason="the page is about PEFT 0.21 on a CPU",
)


@PINNED
def test_every_field_is_tried():
    assert {trial.field for trial in lora_fields.trials()} == {
        f.name for f in dataclasses.fields(peft.LoraConfig)
    }


@PINNED
@pytest.mark.slow
def test_the_page_on_pefts_settings_is_what_happens(tmp_path):
    page = lora_fields.page(tmp_path)
    assert "WRONG" not in page
    assert "can't load" not in page
    assert page == lora_fields.PAGE.read_text()
