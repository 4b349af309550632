"""Rows that a model doesn't take are refused before anything is run on them."""

import json

import numpy as np
import pytest
import torch

import rankwise
import tiny
from rankwise.engine.row_check import check
from rankwise.errors import RankwiseError
from rankwise.tasks.encoding import Encoded


def encoded(*rows, types=None) -> Encoded:
    return Encoded(
        input_ids=np.concatenate(rows).astype(np.int32),
        offsets=np.cumsum([0, *map(len, rows)]),
        token_type_ids=None if types is None else np.concatenate(types).astype(np.int8),
        labels=None, idx=np.arange(10, 10 + len(rows)), n_truncated=0,
    )  # fmt: skip


@pytest.mark.parametrize("family", tiny.CONFIGS)
def test_the_longest_row_that_a_model_takes_is_taken(family):
    model = tiny.classifier(family)
    state = torch.get_rng_state()
    check(model.train(), encoded([1, 2], np.full(64 - (family in ("roberta", "xlm-roberta")), 5)))
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2", "distilbert", "opt", "electra"])
def test_a_longer_row_is_refused_by_its_number(family):
    with pytest.raises(RankwiseError, match=r"doesn't take a text of 67 tokens \(row 11\)"):
        check(tiny.classifier(family), encoded([1, 2], np.full(67, 5)))


def test_only_the_first_layer_runs():
    model, ran = tiny.classifier("bert"), []
    for i, layer in enumerate(model.bert.encoder.layer):
        layer.register_forward_hook(lambda *_, i=i: ran.append(i))
    check(model, encoded([1, 5, 2]))
    assert ran == [0]
    model(torch.tensor([[1, 5, 2]]))
    assert ran == [0, 0, 1]


def test_tokens_that_the_model_has_not_are_refused():
    with pytest.raises(
        RankwiseError, match="Row 11 has the token 100, but the vocabulary of this model has 100"
    ):
        check(tiny.classifier("bert"), encoded([1, 99, 2], [1, 100]))


def test_token_types_that_the_model_has_not_are_refused():
    """RoBERTa has one; a BERT tokenizer gives a pair two."""
    rows = encoded([1, 5, 2], [5, 2], types=[[0, 0, 1], [0, 0]])
    check(tiny.classifier("bert"), rows)
    with pytest.raises(RankwiseError, match="Row 10 has the token type 1, but .* has 1:"):
        check(tiny.classifier("roberta", type_vocab_size=1), rows)
    check(tiny.classifier("distilbert"), rows)  # takes no token types at all


@pytest.mark.parametrize("padding", ["packed", "longest", "max_length"])
def test_a_roberta_of_another_padding_index_trains_on_long_texts(padding):
    """66 positions behind padding index 3 are 62."""
    model = rankwise.adapt(tiny.classifier("roberta", pad_token_id=3), 2)
    rows = [{"text": "good film " * 60, "label": i % 2} for i in range(8)]
    options = rankwise.TrainOptions(epochs=1, batch_size=4, lr=1e-3, padding=padding)
    fitted = rankwise.fit(model, tiny.tokenizer(), rows, rows, options=options)
    assert fitted.steps[0].tokens == 4 * 62


def test_the_command_line_trains_it_too(told, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tiny.classifier("roberta", pad_token_id=3).base_model.save_pretrained(tmp_path / "base")
    tiny.tokenizer().save_pretrained(tmp_path / "base")
    table = tmp_path / "rows.jsonl"
    rows = [{"text": f"good film {row['text']} " * 12, "label": row["label"]} for row in tiny.reviews(40)]
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    told("train", table, "--model", tmp_path / "base", "--out", tmp_path / "run", "--epochs", "1")
    facts = json.loads((tmp_path / "run" / "run.json").read_text())["facts"]
    assert facts["max_length"] == 62
    told("evaluate", tmp_path / "run")


@pytest.mark.parametrize("call", [rankwise.fit, rankwise.evaluate, rankwise.predict])
def test_python_refuses_more_tokens_than_the_model_has_positions(call):
    rows = [{"text": "good film " * 60, "label": i % 2} for i in range(8)]
    with pytest.raises(RankwiseError, match="takes 64 tokens at most; `max_length=100`"):
        call(tiny.classifier("bert"), tiny.tokenizer(), rows, max_length=100)
