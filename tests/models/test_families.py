"""What differs between model families, against Transformers' own models."""

import pytest
import torch

import tiny
from rankwise.models.families import (
    FAMILIES,
    body_and_heads,
    first_position,
    position_limit,
    text_limit,
    token_limit,
    width,
)

BEHIND_PADDING = {"camembert", "mpnet", "roberta", "xlm-roberta"}


@pytest.mark.parametrize("family", tiny.CONFIGS)
def test_every_family_has_query_and_value_layers_and_a_width(family):
    model = tiny.classifier(family)
    names = [name for name, _ in model.named_modules()]
    for target in FAMILIES[family].query_value:
        assert any(name.endswith(f".{target}") for name in names)
    assert width(model.config) == model.get_input_embeddings().weight.shape[1] or family in (
        "albert",
        "electra",
    )


@pytest.mark.parametrize("family", tiny.CONFIGS)
def test_the_head_is_what_stands_beside_the_body(family):
    model = tiny.classifier(family)
    body, heads = body_and_heads(model)
    assert body is model.base_model
    rest = {
        name.split(".")[0]
        for name, _ in model.named_parameters()
        if not name.startswith(model.base_model_prefix)
    }
    assert set(heads) == rest


def test_a_plain_module_is_all_body():
    module = torch.nn.Linear(2, 2)
    assert body_and_heads(module) == (module, [])


@pytest.mark.parametrize("family", sorted(BEHIND_PADDING & tiny.CONFIGS.keys()))
def test_positions_behind_the_padding_index_cost_table_rows(family):
    """A text of as many tokens as the limit says has a position for each, and one more token has none."""
    model = tiny.classifier(family, pad_token_id=1)
    limit = position_limit(model.config)
    assert limit == model.config.max_position_embeddings - 2
    with torch.no_grad():
        model(input_ids=torch.full((1, limit), 5))
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.full((1, limit + 1), 5))


@pytest.mark.parametrize("family", ["roberta", "xlm-roberta"])
def test_the_first_position_is_the_one_behind_the_padding_index(family):
    model = tiny.classifier(family, pad_token_id=1)
    assert first_position(model) == 2
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        own = model(input_ids=ids).logits
        given = model(input_ids=ids, position_ids=torch.arange(2, 5)[None]).logits
    assert torch.equal(own, given)


def test_other_families_begin_at_position_0_and_use_the_whole_table():
    model = tiny.classifier("bert")
    assert (first_position(model), position_limit(model.config)) == (0, 64)
    assert {name for name, family in FAMILIES.items() if family.reserved_positions} == BEHIND_PADDING


def test_the_limit_of_a_text_is_the_smaller_one_and_512_at_most():
    config, tokenizer = tiny.CONFIGS["bert"], tiny.tokenizer()
    assert token_limit(config, tokenizer) == 64
    tokenizer.model_max_length = 40
    assert text_limit(config, tokenizer) == 40
    tokenizer.model_max_length = 10**30  # Transformers' number for a tokenizer without a limit
    long = type(config)(**{**config.to_dict(), "max_position_embeddings": 8192})
    assert (token_limit(long, tokenizer), text_limit(long, tokenizer)) == (8192, 512)
