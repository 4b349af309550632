"""Token classification from a table to an adapter that PEFT loads."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from peft import LoraConfig, PeftModel, get_peft_model

import rankwise
import tiny
from rankwise.cli import main
from rankwise.run_folder import RunFolder

pytest.importorskip("seqeval")
NAMES = ["B-POS", "I-POS", "O"]


def rows(n: int, seed: int) -> list[dict[str, list[str]]]:
    """A word's tag follows from the word and the one before it."""
    generator, found = torch.Generator().manual_seed(seed), []
    for _ in range(n):
        length = int(torch.randint(1, 8, (), generator=generator))
        said = [tiny.WORDS[i] for i in torch.randint(12, (length,), generator=generator).tolist()]
        tags: list[str] = []
        for word in said:
            inside = word == "film" and bool(tags) and tags[-1] != "O"
            tags.append("B-POS" if word in ("good", "fine") else "I-POS" if inside else "O")
        found.append({"tokens": said, "tags": tags})
    return found


def run(*arguments: object) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([str(one) for one in arguments])
    assert stopped.value.code == 0


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a base, tables and a run that learned them."""
    folder = tmp_path_factory.mktemp("tokens")
    tiny.model_folder(folder / "bert")
    for name, n, seed in (("train", 400, 0), ("test", 60, 1)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(n, seed)))
    run(
        "train", folder / "train.jsonl", "--validation", folder / "test.jsonl", "--problem", "tokens",
        "--model", folder / "bert", "--method", "lora:targets=all-linear", "--lr", "0.01", "--epochs", "6",
        "--threads", "1", "--dtype", "float32", "--out", folder / "run",
    )  # fmt: skip
    return folder


def in_peft(folder):
    base = hf.AutoModelForTokenClassification.from_pretrained(folder / "bert", num_labels=3)
    return PeftModel.from_pretrained(base, str(folder / "run")).eval()


def test_a_run_learns_tags_and_evaluate_says_the_same(trained, capfd):
    result = RunFolder(trained / "run").read_result()
    assert result["metric"] == "entity_f1"
    assert result["score"] > 0.9
    capfd.readouterr()
    run("evaluate", trained / "run", trained / "test.jsonl", "--json")
    again = json.loads(capfd.readouterr().out)
    assert again["entity_f1"] == pytest.approx(result["score"])
    assert again["loss"] == pytest.approx(result["scores"]["validation"]["loss"], rel=1e-5)


def test_the_adapter_is_one_for_tokens_and_has_equal_logits_in_peft(trained):
    config = json.loads((trained / "run" / "adapter_config.json").read_text())
    assert config["task_type"] == "TOKEN_CLS"
    peft, ours = in_peft(trained), rankwise.load(trained / "run").eval()
    ids = torch.tensor([[1, 4, 6, 9, 2]])
    with torch.no_grad():
        torch.testing.assert_close(ours(ids).logits, peft(ids).logits, rtol=1e-5, atol=1e-5)


def test_the_loss_is_transformers_mean_over_labelled_tokens(trained):
    peft, tokenizer = in_peft(trained), tiny.tokenizer()
    losses = []
    for row in rows(60, 1):
        ids = tokenizer(row["tokens"], is_split_into_words=True, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            logits = peft(ids).logits[0, 1:-1]
        losses.append(
            F.cross_entropy(logits, torch.tensor([NAMES.index(t) for t in row["tags"]]), reduction="none")
        )
    loss = RunFolder(trained / "run").read_result()["scores"]["validation"]["loss"]
    assert torch.cat(losses).mean().item() == pytest.approx(loss, rel=1e-4)


def test_an_adapter_that_peft_made_for_tokens_is_loaded(trained, tmp_path):
    base = hf.AutoModelForTokenClassification.from_pretrained(trained / "bert", num_labels=5)
    peft = get_peft_model(base, LoraConfig(task_type="TOKEN_CLS", init_lora_weights=False)).eval()
    peft.save_pretrained(tmp_path)
    ids = torch.tensor([[1, 4, 6, 9, 2]])
    with torch.no_grad():
        torch.testing.assert_close(rankwise.load(tmp_path)(ids).logits, peft(ids).logits)


def test_predict_gives_a_tag_for_each_word(trained):
    run("predict", trained / "run", trained / "test.jsonl", "--out", trained / "said.jsonl")
    said = [json.loads(line) for line in (trained / "said.jsonl").read_text().splitlines()]
    there = rows(60, 1)
    assert [len(row["label"]) for row in said] == [len(row["tokens"]) for row in there]
    right = [
        a == b
        for row, one in zip(there, said, strict=True)
        for a, b in zip(row["tags"], one["label"], strict=True)
    ]
    accuracy = RunFolder(trained / "run").read_result()["scores"]["validation"]["accuracy"]
    assert np.mean(right) == pytest.approx(accuracy)


def test_fit_trains_a_token_classifier(trained):
    model = hf.AutoModelForTokenClassification.from_pretrained(
        trained / "bert",
        num_labels=3,
        id2label=dict(enumerate(NAMES)),
        label2id={n: i for i, n in enumerate(NAMES)},
    )
    rankwise.adapt(model, rank=4)
    options = rankwise.TrainOptions(epochs=8, batch_size=16, lr=1e-2)
    found = rankwise.fit(model, tiny.tokenizer(), rows(200, 0), rows(40, 1), options=options)
    assert found.scores["accuracy"] > 0.8
    assert found.scores["entity_f1"] == pytest.approx(
        rankwise.evaluate(model, tiny.tokenizer(), rows(40, 1))["entity_f1"]
    )
    logits = rankwise.predict(model, tiny.tokenizer(), rows(5, 2))
    assert (~np.isnan(logits).all(axis=2)).sum(axis=1).tolist() == [len(row["tokens"]) for row in rows(5, 2)]
