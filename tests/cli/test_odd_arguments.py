"""Numbers that no setting has a use for, and files and architectures that aren't what they should be: refused in a sentence."""

import json

import pytest

from rankwise.cli import main


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("train --seed -1", "--seed must be a number, 0 or more; it is -1"),
        ("train --epochs 1e300", "--epochs must be 1,000,000 at most; it is 1e+300"),
        ("train --threads 100000", "--threads must be 1,024 at most"),
        ("train --lr 1e300", "--lr must be 1e+40 at most"),
        (f"train --batch-size {10**20}", "--batch-size must be 1,000,000,000 at most"),
        ("compare --seeds 1000000000", "--seeds must be 10,000 at most"),
        ("train --method lora --device meta", "This machine has no device 'meta'"),
        (f"plan --lengths {'9' * 200}", "Lengths are a task's name or a number of tokens"),
        (f"export t.csv --uniform-rank {10**20}", "1 or more and 65,536 at most"),
        (f"train {'x' * 300}.csv", "File name too long"),
        (f"train --model {'x' * 5000}", "File name too long"),
    ],
    ids=lambda value: value[:40],
)
def test_an_odd_argument_is_refused_in_a_sentence(tmp_path, monkeypatch, capfd, command, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.csv").write_text("text,label\n" + "".join(f"a {i},{i % 2}\n" for i in range(20)))
    name, *rest = command.split()
    files = ["t.csv"] if name == "train" and not rest[0].endswith(".csv") else []
    with pytest.raises(SystemExit) as stopped:
        main([name, *files, *rest, *(["--out", "out"] if name != "plan" else [])])
    said = capfd.readouterr().err
    assert stopped.value.code == 2, said
    assert says in said


@pytest.mark.parametrize(
    "document",
    [None, [], 7, {}, {"model_type": "bert", "hidden_size": -1}, {"model_type": "bert", "hidden_size": "x"},
     {"model_type": "bert", "num_attention_heads": 0}, {"model_type": ["bert"]}, {"model_type": "perceiver"},
     {"model_type": "bert", "vocab_size": 0}, {"model_type": "bert", "num_hidden_layers": None}],
    ids=json.dumps,
)  # fmt: skip
def test_a_plan_for_no_architecture_is_refused_in_a_sentence(tmp_path, capfd, document):
    (tmp_path / "config.json").write_text(json.dumps(document))
    with pytest.raises(SystemExit) as stopped:
        main(["plan", "--model", str(tmp_path / "config.json"), "--lengths", "4", "--methods", "lora"])
    assert stopped.value.code == 2, capfd.readouterr().err


def test_a_plan_takes_the_layers_to_adapt(tmp_path, told):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "big_bird", "vocab_size": 100, **sizes}))
    asked = [
        "plan",
        "--model",
        tmp_path / "config.json",
        "--lengths",
        "4",
        "--methods",
        "lora",
        "--memory-mode",
        "fast",
    ]
    few = told(*asked, "--targets", "query")["configurations"][0]["peak_memory_mb"]
    many = told(*asked, "--targets", "all-linear")["configurations"][0]["peak_memory_mb"]
    assert many["optimizer"] > few["optimizer"]
