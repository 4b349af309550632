"""Language models trained from a table to a saved adapter; PEFT and Transformers are asked for the loss of each validation row."""

import json
from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, BertForMaskedLM

import tiny
from rankwise.adapters.load import load, merge
from rankwise.config import DataOptions, LoraOptions, ModelOptions, RunConfig, TableOptions, TrainOptions
from rankwise.config_json import to_json
from rankwise.errors import RankwiseError
from rankwise.run_folder import RunFolder
from rankwise.runs.prepare import prepare
from rankwise.runs.run import execute


@pytest.fixture
def place(tmp_path):
    """A folder with a tiny model, and rows that repeat two words of their prompt."""
    tiny.language_model_folder(tmp_path / "model")
    tiny.language_tokenizer().save_pretrained(tmp_path / "model")
    rows = [
        {"prompt": f"{tiny.WORDS[i % 12]} {tiny.WORDS[i * 7 % 11]} ", "completion": f"{tiny.WORDS[i * 7 % 11]} {tiny.WORDS[i % 12]}"}
        for i in range(120)
    ]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def asked(place, method="lora", *, model="model", train=None, data=None, **table):
    return RunConfig(
        method=method,
        table=TableOptions(train_file=(place / "rows.jsonl",), **{"problem": "generation", **table}),
        model=ModelOptions(model=str(place / model), threads=1, dtype="float32"),
        data=data or DataOptions(),
        lora=LoraOptions(),
        train=TrainOptions(**{"epochs": 2, "batch_size": 8, "lr": 1e-2, **(train or {})}),
    )


def run(folder, config):
    store = RunFolder(folder)
    store.write_request(to_json(config))
    return execute(store, lambda event: None)


def losses_by_transformers(model, rows):
    """The mean loss of each row's labelled tokens, one row at a time."""
    found = []
    for first, last in zip(rows.offsets[:-1], rows.offsets[1:], strict=True):
        ids = torch.tensor(rows.input_ids[first:last], dtype=torch.long)
        labels = torch.tensor([-100, *rows.token_labels[first : last - 1]])
        with torch.no_grad():
            found.append(model(input_ids=ids[None], labels=labels[None]).loss.item())
    return found


@pytest.mark.parametrize("method", ["full", "lora", "adaptive", "peft:dora", "peft:prefix", "peft:prompt"])
def test_what_is_saved_has_the_losses_that_were_reported(method, place):
    config = asked(place, method)
    result = run(place / "out", config)
    assert result["metric"] == "cross_entropy"
    assert list(result["scores"]["validation"]) == ["cross_entropy", "perplexity", "token_accuracy", "loss"]
    if method == "full":
        model = AutoModelForCausalLM.from_pretrained(place / "out")
    else:
        base = AutoModelForCausalLM.from_pretrained(place / "model")
        model = PeftModel.from_pretrained(base, str(place / "out"))
        assert result["head_params"] == 0
        assert json.loads((place / "out" / "adapter_config.json").read_text())["task_type"] == "CAUSAL_LM"
        assert "AutoModelForCausalLM" in (place / "out" / "README.md").read_text()
    store = RunFolder(place / "prepared")
    store.write_request(to_json(config))
    rows = prepare(store).rows.validation["validation"]
    predictions = RunFolder(place / "out").read_predictions()
    assert predictions["idx"].to_pylist() == rows.idx.tolist()
    expected = losses_by_transformers(model.eval(), rows)
    assert predictions["prediction"].to_pylist() == pytest.approx(expected, rel=1e-4)
    assert result["scores"]["validation"]["loss"] == pytest.approx(sum(expected) / len(expected), rel=1e-4)
    assert all(step["loss"] > 0 for step in RunFolder(place / "out").read_steps())


def test_training_lowers_the_loss_of_all_tokens_of_a_batch(place):
    config = asked(place, "full", train={"epochs": 6})
    result = run(place / "out", config)
    assert result["scores"]["validation"]["cross_entropy"] < 2.5  # from 4.6


@pytest.mark.parametrize("method", ["full", "lora"])
def test_what_is_saved_is_loaded_and_merged_as_a_language_model(method, place):
    run(place / "out", asked(place, method))
    ids = torch.randint(3, 15, (2, 6))
    loaded = load(place / "out")
    if method == "full":
        expected = AutoModelForCausalLM.from_pretrained(place / "out")
        with pytest.raises(RankwiseError, match="nothing to merge"):
            merge(place / "out", place / "merged")
    else:
        base = AutoModelForCausalLM.from_pretrained(place / "model")
        expected = PeftModel.from_pretrained(base, str(place / "out")).eval()
        merge(place / "out", place / "merged")
        whole = AutoModelForCausalLM.from_pretrained(place / "merged")
        with torch.no_grad():
            torch.testing.assert_close(whole(ids).logits, expected(ids).logits, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, expected(ids).logits, rtol=1e-4, atol=1e-5)


def test_a_run_starts_from_the_adapter_of_another(place):
    run(place / "first", asked(place, train={"epochs": 4}))
    config = asked(place, train={"epochs": 1, "lr": 1e-6})
    config = replace(config, model=replace(config.model, model=None, from_adapter=place / "first"))
    second = run(place / "second", config)
    first = RunFolder(place / "first").read_result()
    assert second["score"] == pytest.approx(first["score"], rel=1e-3)
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in tiny.reviews(40)))
    table = replace(config.table, problem="classification")
    with pytest.raises(RankwiseError, match=r"another task \(CAUSAL_LM\)"):
        run(place / "third", replace(config, table=table))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"label": ("prompt",)}, "`label=` is not for generation"),
        ({"train": {"class_weights": "balanced"}}, "`class_weights=` is for classes"),
        ({"train": {"assistant_only_loss": True}}, "is for rows of messages"),
        ({"prompt": "question"}, "has no column 'question'"),
        ({"problem": None}, "has no column 'label', and what .*: prompt and completion"),
        ({"problem": "classification", "prompt": "prompt"}, 'is for `problem="generation"`'),
        ({"data": DataOptions(max_length=3)}, "Nothing of any row"),
        ({"method": "head"}, "has no head that is trained apart"),
    ],
)  # fmt: skip
def test_options_that_do_not_go_with_language_models_are_refused(options, said, place):
    with pytest.raises(RankwiseError, match=said):
        run(place / "out", asked(place, **options))


def test_an_encoder_with_a_language_models_head_is_refused(place):
    """It sees the tokens that it has to predict."""
    config = tiny.config("bert")
    BertForMaskedLM(config).save_pretrained(place / "bert")
    tiny.language_tokenizer().save_pretrained(place / "bert")
    with pytest.raises(RankwiseError, match="sees the tokens that it has to predict"):
        run(place / "out", asked(place, model="bert"))


def test_a_tokenizer_with_more_words_than_the_model_is_refused(place):
    words = tiny.language_tokenizer()
    words.add_tokens([f"word{i}" for i in range(100)] + ["film"])
    words.save_pretrained(place / "model")
    row = {"prompt": "word99", "completion": "the film"}
    (place / "rows.jsonl").write_text(
        "".join(json.dumps(row | {"prompt": f"word{i}"}) + "\n" for i in range(100))
    )
    with pytest.raises(RankwiseError, match="but the vocabulary of this model has 100"):
        run(place / "out", asked(place))


def test_a_model_that_is_no_causal_language_model_is_refused(place):
    tiny.model_folder(place / "bert")
    tiny.language_tokenizer().save_pretrained(place / "bert")
    with pytest.raises(RankwiseError, match="no head .*Take a causal language model"):
        run(place / "out", asked(place, model="bert"))


@pytest.mark.parametrize("method", ["full", "lora", "peft:prefix"])
def test_a_run_stores_what_it_writes_for_a_few_prompts_as_transformers_would(method, place):
    run(place / "out", asked(place, method))
    stored = json.loads((place / "out" / "texts.json").read_text())["texts"]
    assert len(stored) == 4
    assert len({one["prompt"] for one in stored}) == 4
    rows = [json.loads(line) for line in (place / "rows.jsonl").read_text().splitlines()]
    tokenizer = AutoTokenizer.from_pretrained(place / "model")
    if method == "full":
        model = AutoModelForCausalLM.from_pretrained(place / "out")
    else:
        base = AutoModelForCausalLM.from_pretrained(place / "model")
        model = PeftModel.from_pretrained(base, str(place / "out"))
    for one in stored:
        completions = {row["completion"] for row in rows if row["prompt"] == one["prompt"]}
        assert set(one["references"]) <= completions
        ids = tokenizer(one["prompt"], return_tensors="pt").input_ids
        written = model.generate(input_ids=ids, max_new_tokens=32, do_sample=False)[0, ids.shape[1] :]
        assert one["text"] == tokenizer.decode(written, skip_special_tokens=True).strip()


def test_rows_without_references_have_no_texts(place):
    texts = [{"text": " ".join(tiny.WORDS[i : i + 4])} for i in range(8)] * 10
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts))
    run(place / "out", asked(place))
    assert not (place / "out" / "texts.json").exists()
