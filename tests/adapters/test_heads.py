"""A head that was drawn at random is never part of an answer."""

import json
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

import rankwise
import tiny
from rankwise.adapters import attach, predict
from rankwise.adapters.load import merge
from rankwise.errors import RankwiseError


def rows(folder: Path) -> Path:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in tiny.reviews(120)))
    return file


def peft_adapter(base: Path, out: Path, **settings) -> Path:
    """An adapter that PEFT made on a base, without a head in it."""
    from transformers import AutoModelForSequenceClassification

    config = peft.LoraConfig(r=2, target_modules=["query", "value"], init_lora_weights=False, **settings)
    model = peft.get_peft_model(AutoModelForSequenceClassification.from_pretrained(base), config)
    model.save_pretrained(out)
    return out


def with_head(folder: Path, **labels) -> Path:
    model = tiny.classifier("bert")
    for name, value in labels.items():
        setattr(model.config, name, value)
    model.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def headless(tmp_path) -> Path:
    base = tiny.model_folder(tmp_path / "base")
    return peft_adapter(base, tmp_path / "adapter")


def test_nothing_answers_without_a_head(headless, tmp_path):
    for answer in (
        lambda: rankwise.load(headless),
        lambda: predict.open_trained(headless),
        lambda: merge(headless, tmp_path / "merged"),
    ):
        with pytest.raises(
            RankwiseError, match=r"adapter .* on .* has no head \(classifier.bias, classifier.weight"
        ):
            answer()
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("command", ["evaluate", "predict", "compress", "merge"])
def test_every_command_refuses(headless, tmp_path, command, capfd):
    from rankwise.cli import main

    arguments = {
        "evaluate": [rows(tmp_path)],
        "predict": [rows(tmp_path), "--out", tmp_path / "p.csv"],
        "compress": [rows(tmp_path), "--out", tmp_path / "smaller"],
        "merge": ["--out", tmp_path / "merged"],
    }[command]
    with pytest.raises(SystemExit) as stopped:
        main([command, str(headless), *map(str, arguments)])
    assert stopped.value.code == 2
    assert "has no head" in capfd.readouterr().err


def test_the_bases_own_head_serves_where_it_is_one(tmp_path):
    """PEFT's answer is the truth."""
    from transformers import AutoModelForSequenceClassification

    base = with_head(tmp_path / "base")
    adapter = peft_adapter(base, tmp_path / "adapter")
    theirs = peft.PeftModel.from_pretrained(
        AutoModelForSequenceClassification.from_pretrained(base), str(adapter)
    )
    ids = torch.tensor([[1, 5, 6, 2]])
    with torch.no_grad():
        torch.testing.assert_close(rankwise.load(adapter)(ids).logits, theirs.eval()(ids).logits)


def test_a_base_whose_head_is_for_other_labels_does_not_serve(tmp_path):
    base = with_head(tmp_path / "base", id2label={0: "no", 1: "yes"})
    model = rankwise.adapt(tiny.classifier("bert"), 2)
    model.config.id2label = {0: "bad", 1: "good"}
    rankwise.save(model, tmp_path / "adapter", base_model=str(base))
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    state = {name: value for name, value in load_file(file).items() if "classifier" not in name}
    save_file(state, file, {"label_names": '["bad", "good"]', "base_model": str(base)})
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    config |= {"modules_to_save": None, "task_type": None}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(
        RankwiseError, match="has no head, and its base's is for other labels: no, yes, not bad, good"
    ):
        rankwise.load(tmp_path / "adapter")


@pytest.mark.parametrize("task", ["QUESTION_ANS", "SEQ_2_SEQ_LM"])
def test_an_adapter_for_another_task_is_called_one(headless, task):
    file = headless / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"task_type": task}))
    with pytest.raises(RankwiseError, match=f"trained for another task \\({task}\\)"):
        rankwise.load(headless)


def test_the_bases_problem_is_the_adapters_where_it_names_none(tmp_path):
    base = with_head(tmp_path / "base", problem_type="multi_label_classification")
    assert (
        rankwise.load(peft_adapter(base, tmp_path / "adapter")).config.problem_type
        == "multi_label_classification"
    )


def test_weights_that_two_layers_share_are_merged_into_one_alone():
    """Tied weights: the other layer keeps what it computes."""
    torch.manual_seed(0)
    model = torch.nn.ModuleDict({"one": torch.nn.Linear(6, 6), "two": torch.nn.Linear(6, 6)})
    model["two"].weight = model["one"].weight
    rankwise.adapt(model, 2, targets=["one"])
    torch.nn.init.normal_(model["one"].lora_B)
    x = torch.randn(3, 6)
    before = model["one"](x), model["two"](x)
    attach.merge(model)
    torch.testing.assert_close(model["one"](x), before[0])
    torch.testing.assert_close(model["two"](x), before[1])


def test_a_run_whose_model_is_for_other_labels_is_refused(tmp_path, told, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    base = tiny.model_folder(tmp_path / "base")
    told(
        "train",
        rows(tmp_path),
        "--model",
        base,
        "--method",
        "full",
        "--out",
        tmp_path / "run",
        "--epochs",
        "1",
    )
    three = tiny.classifier("bert", num_labels=3)
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "run" / name).unlink()
    three.save_pretrained(tmp_path / "run")
    with pytest.raises(
        RankwiseError, match="trained for the labels negative, positive; the model there is for LABEL_0"
    ):
        predict.open_trained(tmp_path / "run")


@pytest.mark.slow
def test_a_trainers_checkpoint_scores_what_its_model_does(tmp_path, told, monkeypatch):
    from transformers import DataCollatorWithPadding, Trainer, TrainingArguments

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tokenizer, names = tiny.tokenizer(), ["negative", "positive"]
    model = tiny.classifier("bert")
    model.config.id2label, model.config.label2id = dict(enumerate(names)), {"negative": 0, "positive": 1}
    rankwise.adapt(model, 4, targets=["all-linear"])
    examples = [{**tokenizer(row["text"]), "labels": names.index(row["label"])} for row in tiny.reviews(300)]
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "trainer"), num_train_epochs=6, learning_rate=5e-3, report_to=[], save_strategy="epoch",
        per_device_train_batch_size=16, use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    Trainer(model, arguments, DataCollatorWithPadding(tokenizer), examples).train()
    held_out = tmp_path / "held.jsonl"
    held_out.write_text("".join(json.dumps(row) + "\n" for row in tiny.reviews(40, seed=1)))
    expected = rankwise.evaluate(model, tokenizer, tiny.reviews(40, seed=1))
    assert expected["accuracy"] > 0.9
    checkpoint = max((tmp_path / "trainer").glob("checkpoint-*"), key=lambda f: int(f.name.split("-")[1]))
    scores = told("evaluate", checkpoint, held_out)
    assert scores["accuracy"] == expected["accuracy"]
