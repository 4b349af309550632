"""What differs between model families, against Transformers' own models."""

import numpy as np
import pytest
import torch
import transformers as hf

import tiny
from rankwise.engine.packing import pack
from rankwise.errors import RankwiseError
from rankwise.models import loading
from rankwise.models.families import (
    FAMILIES,
    body_and_heads,
    first_position,
    position_limit,
    text_limit,
    token_limit,
    width,
)
from rankwise.tasks.encoding import Encoded

BEHIND_PADDING = [
    "camembert", "data2vec-text", "esm", "ibert", "luke", "markuplm", "mpnet", "roberta",
    "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod",
]  # fmt: skip
"""Families whose positions begin behind the padding index; nothing in rankwise names them."""
EXTRA = {
    "esm": {"position_embedding_type": "absolute", "mask_token_id": 8, "emb_layer_norm_before": True},
    "luke": {"entity_vocab_size": 10, "entity_emb_size": 16},
    "markuplm": {"max_depth": 5},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX", "adapter_reduction_factor": 2},
}


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


def behind_padding(family: str, padding: int):
    """A family's smallest classifier with 20 rows in its position table and another padding index."""
    config = type(hf.AutoConfig.for_model(family))(
        vocab_size=60, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=20, pad_token_id=padding, bos_token_id=6, eos_token_id=7, **EXTRA.get(family, {}),
    )  # fmt: skip
    torch.manual_seed(0)
    return hf.AutoModelForSequenceClassification.from_config(config).eval()


@pytest.mark.parametrize("padding", [0, 1, 3])
@pytest.mark.parametrize("family", BEHIND_PADDING)
def test_a_text_of_as_many_tokens_as_the_limit_says_has_a_position_for_each(family, padding):
    """And one more token has none. Where positions begin shows in what the model looks up."""
    model = behind_padding(family, padding)
    limit, looked_up = position_limit(model), []
    table = model.base_model.embeddings.position_embeddings
    table.register_forward_pre_hook(lambda module, args: looked_up.append(args[0][0].tolist()))
    with torch.no_grad():
        model(input_ids=torch.full((1, limit), 5))
        assert looked_up[0][0] == first_position(model)
        assert looked_up[0][-1] == 19
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.full((1, limit + 1), 5))


def test_most_families_count_from_the_models_own_padding_index():
    assert [first_position(behind_padding("roberta", padding)) for padding in (0, 1, 3)] == [1, 2, 4]
    assert [first_position(behind_padding("mpnet", padding)) for padding in (0, 1, 3)] == [2, 2, 2]


@pytest.mark.parametrize("family", [f for f in BEHIND_PADDING if f != "mpnet"])
def test_a_packed_row_has_the_models_own_positions(family):
    """Also where the padding token stands within a text."""
    model = behind_padding(family, 3)
    rows = [[5, 8, 9], [5, 3, 8, 3, 9, 5], [4]]
    encoded = Encoded(
        input_ids=np.concatenate(rows).astype(np.int32),
        offsets=np.cumsum([0, *map(len, rows)]),
        token_type_ids=None, labels=None, idx=np.arange(3), n_truncated=0,
    )  # fmt: skip
    looked_up = []
    table = model.base_model.embeddings.position_embeddings
    table.register_forward_pre_hook(lambda module, args: looked_up.append(args[0][0].tolist()))
    batch = pack(encoded, np.array([1, 0, 2]), model=model, key=(0,))
    with torch.no_grad():
        for row in sorted(rows, key=len):
            model(input_ids=torch.tensor([row]))
    assert batch.position_ids[0].tolist() == [n for row in looked_up for n in row]


def test_other_families_begin_at_position_0_and_use_the_whole_table():
    model = tiny.classifier("bert")
    assert (first_position(model), position_limit(model)) == (0, 64)
    for family in tiny.CONFIGS:
        assert (first_position(tiny.classifier(family)) > 0) == (family in BEHIND_PADDING)


def test_the_limit_of_a_text_is_the_smaller_one_and_512_at_most():
    model, tokenizer = tiny.classifier("bert"), tiny.tokenizer()
    assert token_limit(model, tokenizer) == 64
    tokenizer.model_max_length = 40
    assert text_limit(model, tokenizer) == 40
    with pytest.raises(RankwiseError, match="takes 40 tokens at most; `max_length=41`"):
        text_limit(model, tokenizer, 41)
    tokenizer.model_max_length = 10**30  # Transformers' number for a tokenizer without a limit
    model.config.max_position_embeddings = 8192
    assert (token_limit(model, tokenizer), text_limit(model, tokenizer)) == (8192, 512)
    assert text_limit(model, tokenizer, 600) == 600


def test_padding_is_filled_with_the_models_own_token():
    """By it RoBERTa counts positions and GPT-2 finds a row's last token."""
    tokenizer = tiny.tokenizer()
    assert [loading.pad_id(behind_padding("roberta", padding), tokenizer) for padding in (1, 3)] == [1, 3]
    model = tiny.classifier("bert")
    model.config.pad_token_id = None
    assert loading.pad_id(model, tokenizer) == tokenizer.pad_token_id
