"""`train`, `evaluate` and `predict` on your own tables: options do what they say, and results are those of the run."""

import csv
import datetime
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

import tiny
from rankwise.cli import main
from rankwise.tasks import streams

FAST = ["--dtype", "float32", "--batch-size", "16", "--threads", "1"]
ROWS, HELD_OUT = tiny.reviews(60), tiny.reviews(20, seed=1)


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch) -> Path:
    """Gives each test its own folder and cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ".cache"))
    return tmp_path


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return str(tiny.model_folder(tmp_path_factory.mktemp("models") / "bert"))


def command(*arguments: object) -> None:
    """Run a command that must succeed."""
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    assert stopped.value.code == 0


@pytest.fixture
def answer(capfd):
    """Run a command with --json and return its object."""

    def call(*arguments: object) -> dict:
        capfd.readouterr()
        command(*arguments, "--json")
        return json.loads(capfd.readouterr().out)

    return call


def write(path: str, rows: list[dict]) -> str:
    """A table in the format of its ending."""
    if path.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.endswith(".jsonl"):
        Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with Path(path).open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.endswith(".tsv") else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


def read(path: str) -> list[dict]:
    if path.endswith(".parquet"):
        return pq.read_table(path).to_pylist()
    if path.endswith(".jsonl"):
        return [json.loads(line) for line in Path(path).read_text().splitlines()]
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t" if path.endswith(".tsv") else ","))


def steps_of(run: str) -> list[dict]:
    return [json.loads(line) for line in Path(run, "steps.jsonl").read_text().splitlines()]


def adapter_of(run: str) -> dict[str, torch.Tensor]:
    return load_file(Path(run, "adapter_model.safetensors"))


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def glue(folder: str) -> str:
    """A small rte as Parquet files."""
    Path(folder, "rte").mkdir(parents=True)
    for split, rows in (("train", ROWS), ("validation", HELD_OUT)):
        table = [
            {
                "sentence1": row["text"],
                "sentence2": "the film",
                "label": int(row["label"] == "negative"),
                "idx": i,
            }
            for i, row in enumerate(rows)
        ]
        write(f"{folder}/rte/{split}.parquet", table)
    return folder


# ── A run's own score ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize(
    "limits", [[], ["--limit-eval", "5", "--limit-train", "30"]], ids=["whole", "limited"]
)
def test_evaluating_a_run_gives_its_own_score(method, limits, model, answer):
    table = write("table.csv", ROWS)
    run = answer(
        "train", table, "--model", model, "--method", method, "--out", "run", "--epochs", "1", *limits, *FAST
    )
    own = answer("evaluate", "run")
    assert own["n"] == run["n_validation"] == (5 if limits else 12)
    assert {name: own[name] for name in ("accuracy", "mcc")} == {
        name: run["scores"]["validation"][name] for name in ("accuracy", "mcc")
    }
    assert own["loss"] == pytest.approx(run["scores"]["validation"]["loss"], rel=1e-5)


def test_evaluating_a_run_of_a_named_task_finds_its_data(model, answer):
    run = answer(
        "train",
        "--task",
        "rte",
        "--data",
        glue("glue"),
        "--model",
        model,
        "--out",
        "run",
        "--epochs",
        "1",
        *FAST,
    )
    assert run["task"] == "rte"
    own = answer("evaluate", "run")
    assert (own["n"], own["accuracy"]) == (20, run["score"])
    assert answer("evaluate", "run", "--split", "train")["n"] == 60


def test_evaluating_on_a_file_scores_its_labels(model, answer):
    """Of the same rows with every label turned round, what was right is wrong."""
    command("train", write("table.csv", ROWS), "--model", model, "--out", "run", "--epochs", "1", *FAST)
    turned = [
        {**row, "label": {"positive": "negative", "negative": "positive"}[row["label"]]} for row in HELD_OUT
    ]
    right = answer("evaluate", "run", write("right.csv", HELD_OUT))
    wrong = answer("evaluate", "run", write("wrong.jsonl", turned))
    assert right["n"] == wrong["n"] == 20
    assert right["accuracy"] == pytest.approx(1 - wrong["accuracy"])


# ── Predictions ───────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def run(model, tmp_path_factory) -> str:
    """A run that has learned its task, on the validation rows of `HELD_OUT`."""
    place = tmp_path_factory.mktemp("learned")
    train, held = write(f"{place}/train.jsonl", tiny.reviews(300)), write(f"{place}/held.jsonl", HELD_OUT)
    options = ["--targets", "all-linear", "--lr", "5e-3", "--epochs", "6"]
    command("train", train, "--validation", held, "--model", model, *options, "--out", f"{place}/run", *FAST)
    return f"{place}/run"


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_predictions_are_those_of_the_run_in_every_format(kind, run, answer):
    told = answer("predict", run, write("rows.csv", HELD_OUT), "--keep", "none", "--out", f"p.{kind}")
    rows = read(f"p.{kind}")
    assert [int(row["idx"]) for row in rows] == list(range(20))
    assert list(rows[0]) == [
        "idx", "label", "probability_negative", "probability_positive", "logit_negative", "logit_positive", "reason",
    ]  # fmt: skip
    logits = np.array([[float(row["logit_negative"]), float(row["logit_positive"])] for row in rows])
    own = np.stack(pq.read_table(f"{run}/predictions.parquet")["logits"].to_numpy())
    np.testing.assert_allclose(logits, own, rtol=1e-4, atol=1e-5)
    probabilities = np.array(
        [[float(row[f"probability_{name}"]) for name in ("negative", "positive")] for row in rows]
    )
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(
        np.log(probabilities[:, 1] / probabilities[:, 0]), logits[:, 1] - logits[:, 0], rtol=1e-3
    )
    labels = [row["label"] for row in rows]
    assert labels == [("negative", "positive")[i] for i in logits.argmax(axis=1)]
    assert np.mean([label == row["label"] for label, row in zip(labels, HELD_OUT, strict=True)]) >= 0.9
    assert told["predicted"] == {name: labels.count(name) for name in ("negative", "positive")}


def test_predictions_need_no_label_column_and_take_column_names(run):
    rows = [{"id": i, "review": row["text"]} for i, row in enumerate(HELD_OUT)]
    command("predict", run, write("a.csv", HELD_OUT), "--keep", "none", "--out", "a.jsonl")
    command(
        "predict", run, write("b.parquet", rows), "--text", "review", "--keep", "none", "--out", "b.jsonl"
    )
    assert read("a.jsonl") == read("b.jsonl")


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
@pytest.mark.parametrize("source", ["csv", "jsonl", "parquet"])
def test_predictions_stand_beside_every_column_of_every_row(source, kind, run, answer):
    """Ids come back as they were, in the rows' order; pandas joins them."""
    rows = [
        {"id": f"=0{i}", "n": 0.5 * i, "text": row["text"], "label": "?"} for i, row in enumerate(HELD_OUT)
    ]
    rows[3]["text"] = "  "
    told = answer("predict", run, write(f"rows.{source}", rows), "--out", f"p.{kind}")
    assert (told["n"], told["unscored"]) == (20, 1)
    assert any("no answer: no text in 'text'" in note for note in told["notes"])
    assert any("'label' is 'input_label'" in note for note in told["notes"])
    written = read(f"p.{kind}")
    assert list(written[0])[:5] == ["id", "n", "input_label", "text", "label"] or list(written[0])[:5] == [
        "id", "n", "text", "input_label", "label",
    ]  # fmt: skip
    apostrophe = "'" if source != "csv" and kind in ("csv", "tsv") else ""
    assert [row["id"] for row in written] == [f"{apostrophe}{row['id']}" for row in rows]
    assert [float(row["n"]) for row in written] == [row["n"] for row in rows]
    assert [row["reason"] or None for row in written] == [None] * 3 + ["no text in 'text'"] + [None] * 16
    assert {written[3][name] or None for name in ("label", "probability_negative", "logit_positive")} == {
        None
    }
    right = [row["label"] == true["label"] for row, true in zip(written, HELD_OUT, strict=True)]
    assert np.mean(right) >= 0.9


def test_pieces_of_a_file_get_the_answers_of_the_whole(run, answer, monkeypatch):
    table = write("rows.csv", [{"text": row["text"]} for row in HELD_OUT])
    whole = answer("predict", run, table, "--out", "whole.parquet")
    monkeypatch.setattr(streams, "ROWS", 7)
    pieces = answer("predict", run, table, "--out", "pieces.parquet", "--batch-size", "2", "--threads", "1")
    assert whole["predicted"] == pieces["predicted"]
    one, other = (pq.read_table(f"{name}.parquet") for name in ("whole", "pieces"))
    assert one.select(["text", "label", "reason"]) == other.select(["text", "label", "reason"])
    np.testing.assert_allclose(one["logit_negative"], other["logit_negative"], rtol=1e-4, atol=1e-5)


def test_types_of_parquet_stay_and_those_of_jsonl_hold_every_value(run):
    words = [row["text"] for row in HELD_OUT[:3]]
    day = [datetime.date(2020, 1, 1), None, datetime.date(2021, 2, 3)]
    pq.write_table(pa.table({"text": words, "day": pa.array(day, pa.date32())}), "rows.parquet")
    command("predict", run, "rows.parquet", "--out", "p.parquet")
    assert pq.read_table("p.parquet")["day"].to_pylist() == day
    command("predict", run, "rows.parquet", "--out", "p.jsonl")
    assert [row["day"] for row in read("p.jsonl")] == ["2020-01-01", None, "2021-02-03"]
    mixed = [{"text": words[0], "id": 1, "n": 1, "tags": ["a"]}, {"text": words[1], "id": "x", "n": 0.5}]
    command("predict", run, write("mixed.jsonl", mixed), "--out", "q.parquet")
    found = pq.read_table("q.parquet").to_pylist()
    assert [(row["id"], row["n"], row["tags"]) for row in found] == [("1", 1.0, ["a"]), ("x", 0.5, None)]


def test_bytes_are_refused_where_the_format_has_none(run, capfd):
    pq.write_table(pa.table({"text": ["fine"], "image": [b"\xff"]}), "rows.parquet")
    with pytest.raises(SystemExit) as stopped:
        main(["predict", run, "rows.parquet", "--out", "p.csv"])
    assert stopped.value.code == 2
    assert "leave the rows' columns out with --keep none" in capfd.readouterr().err
    assert not Path("p.csv").exists()
    assert not Path("p.csv.partial").exists()
    command("predict", run, "rows.parquet", "--out", "p.csv", "--keep", "none")


def test_texts_are_truncated_as_asked(run, answer):
    table = write("rows.csv", HELD_OUT)
    short = answer("predict", run, table, "--out", "p.csv", "--max-length", "4")
    assert any("longer than 4 tokens and truncated" in note for note in short["notes"])
    assert answer("evaluate", run, table, "--max-length", "4", "--batch-size", "3")["n"] == 20
    with pytest.raises(SystemExit):
        main(["predict", run, table, "--out", "p.csv", "--max-length", "65"])


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(run):
    """In processes of their own: 40,000 rows of 20 words take no more than 2,000 do, within a few MB."""
    peaks = {}
    for n in (2_000, 40_000):
        text = " ".join(tiny.WORDS[i % len(tiny.WORDS)] for i in range(20))
        Path(f"{n}.csv").write_text("id,text\n" + "".join(f"{i},{text}\n" for i in range(n)))
        code = (
            "import resource, sys\nfrom rankwise.cli import main\n"
            "try: main(sys.argv[1:])\nexcept SystemExit: print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        )
        arguments = ["predict", run, f"{n}.csv", "--out", f"{n}.parquet", "--threads", "1"]
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
        )
        peaks[n] = int(done.stdout.split()[-1]) / 1024
    assert pq.read_metadata("40000.parquet").num_rows == 40_000
    assert peaks[40_000] - peaks[2_000] < 60


def test_predictions_replace_an_earlier_file_whole(run):
    Path("p.csv").write_text("an earlier file\n" * 1000)
    command("predict", run, write("rows.csv", HELD_OUT[:2]), "--out", "p.csv")
    assert len(read("p.csv")) == 2
    assert sorted(path.name for path in Path().iterdir() if not path.name.startswith(".")) == [
        "p.csv",
        "rows.csv",
    ]


def test_integer_labels_come_back_as_integers_in_numeric_order(model):
    rows = [{**row, "label": 10 if row["label"] == "positive" else 9} for row in ROWS]
    command("train", write("table.parquet", rows), "--model", model, "--out", "run", "--epochs", "1", *FAST)
    command("predict", "run", "table.parquet", "--out", "p.jsonl")
    command("predict", "run", "table.parquet", "--out", "p.parquet")
    assert list(read("p.jsonl")[0])[3:5] == ["probability_9", "probability_10"]
    assert {row["label"] for row in read("p.jsonl")} <= {9, 10}
    assert pq.read_schema("p.parquet").field("label").type == pa.int64()


def test_labels_that_look_like_numbers_stay_strings(model):
    rows = [{**row, "label": "007" if row["label"] == "positive" else "008"} for row in ROWS]
    command("train", write("table.csv", rows), "--model", model, "--out", "run", "--epochs", "1", *FAST)
    command("predict", "run", "table.csv", "--out", "p.jsonl")
    assert {row["label"] for row in read("p.jsonl")} <= {"007", "008"}


# ── Options of training ───────────────────────────────────────────────────────────────────────────


def test_a_table_trains_the_same_adapter_in_every_format(model, answer):
    """Columns by any name, pairs of texts, integer labels and a validation file."""
    names = {"text": "Question", "label": "Answered"}
    pairs = [
        {
            names["text"]: row["text"],
            "Answer text": "the film was fine",
            names["label"]: int(row["label"] == "positive"),
        }
        for row in [*ROWS, *HELD_OUT]
    ]
    columns = ["--text", "Question", "--text-pair", "Answer text", "--label", "Answered"]
    results = {}
    for kind in ("csv", "jsonl", "parquet"):
        train, held = write(f"train.{kind}", pairs[:60]), write(f"held.{kind}", pairs[60:])
        arguments = ["--validation", held, *columns, "--model", model, "--out", kind, "--epochs", "1", *FAST]
        results[kind] = answer("train", train, *arguments)
    assert (results["csv"]["n_train"], results["csv"]["n_validation"]) == (60, 20)
    assert results["csv"]["score"] == results["jsonl"]["score"] == results["parquet"]["score"]
    assert equal(adapter_of("csv"), adapter_of("jsonl"))
    assert equal(adapter_of("csv"), adapter_of("parquet"))


def test_the_second_text_of_a_pair_is_read(model):
    rows = [{**row, "reply": "the film"} for row in ROWS]
    table, held = write("table.csv", rows), write("held.csv", [{**row, "reply": "fine"} for row in HELD_OUT])
    for out, columns in (("one", []), ("two", ["--text-pair", "reply"])):
        command(
            "train",
            table,
            "--validation",
            held,
            *columns,
            "--model",
            model,
            "--out",
            out,
            "--epochs",
            "1",
            *FAST,
        )
    tokens = {out: sum(step["tokens"] for step in steps_of(out)) for out in ("one", "two")}
    assert tokens["two"] == tokens["one"] + 60 * 3  # and a separator


def test_accumulated_gradients_train_the_same_model_up_to_rounding():
    """Without dropout, whose masks are drawn anew for each micro-batch."""
    plain = tiny.model_folder(Path("plain"))
    config = json.loads((plain / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (plain / "config.json").write_text(json.dumps(config))
    table = write("table.csv", ROWS)
    for out, parts in (("whole", "1"), ("parts", "4")):
        arguments = ["--accumulate", parts, "--model", plain, "--lr", "1e-3", "--epochs", "1", *FAST]
        command("train", table, *arguments, "--out", out)
    losses = {out: [step["loss"] for step in steps_of(out)] for out in ("whole", "parts")}
    assert len(losses["parts"]) == 3
    np.testing.assert_allclose(losses["parts"], losses["whole"], rtol=1e-4)


def test_patience_decides_on_rows_held_out_of_training(model, answer):
    """At a learning rate that only does harm, the first check stays the best one."""
    arguments = ["--model", model, "--lr", "0.5", "--schedule", "constant", "--epochs", "30", *FAST]
    run = answer("train", write("table.csv", ROWS), *arguments, "--patience", "2", "--out", "run")
    checks = [step for step in steps_of("run") if "held_out_loss" in step]
    losses = [step["held_out_loss"] for step in checks]
    assert run["steps"] == checks[-1]["step"] < 30 * 3
    assert losses.index(min(losses)) == len(losses) - 3  # two checks without a better one
    assert (run["n_train"], run["n_validation"]) == (43, 12)  # a tenth of 48 decides
    assert answer("evaluate", "run")["accuracy"] == run["score"]


def test_evaluating_during_training_changes_nothing(model, answer):
    table = write("table.csv", ROWS)
    arguments = ["--model", model, "--epochs", "2", *FAST]
    curve = answer("train", table, *arguments, "--evaluate-every", "2", "--out", "curve")
    plain = answer("train", table, *arguments, "--out", "plain")
    points = {step["step"]: step["validation"] for step in steps_of("curve") if "validation" in step}
    assert list(points) == [2, 4, 6]
    assert points[6]["accuracy"] == curve["score"] == plain["score"]
    assert equal(adapter_of("curve"), adapter_of("plain"))


def test_limits_draw_the_same_rows_for_every_seed(model, answer):
    table = write("table.csv", ROWS)
    tokens = []
    for seed in ("0", "1"):
        arguments = ["--limit-train", "20", "--limit-eval", "7", "--seed", seed, "--epochs", "1", *FAST]
        run = answer("train", table, "--model", model, "--out", f"run{seed}", *arguments)
        assert (run["n_train"], run["n_validation"]) == (20, 7)
        tokens.append(sum(step["tokens"] for step in steps_of(f"run{seed}")))
    assert tokens[0] == tokens[1]
    assert not equal(adapter_of("run0"), adapter_of("run1"))


def test_a_fully_fine_tuned_run_loads_in_transformers(model, answer):
    held = write("held.csv", HELD_OUT)
    arguments = ["--validation", held, "--method", "full", "--model", model, "--epochs", "1", *FAST]
    run = answer("train", write("table.csv", ROWS), *arguments, "--out", "run")
    assert run["trainable_params"] == run["total_params"]
    loaded = AutoModelForSequenceClassification.from_pretrained("run").eval()
    batch = tiny.tokenizer()([row["text"] for row in HELD_OUT], padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = loaded(**batch).logits.numpy()
    own = np.stack(pq.read_table("run/predictions.parquet")["logits"].to_numpy())
    np.testing.assert_allclose(logits, own, rtol=1e-4, atol=1e-5)
    assert loaded.config.id2label == {0: "negative", 1: "positive"}


def test_a_method_with_options_of_its_own_is_that_method(model):
    command(
        "train", write("table.csv", ROWS), "--method", "lora:rank=2,targets=query+key", "--model", model,
        "--out", "run", "--epochs", "1", *FAST,
    )  # fmt: skip
    config = json.loads(Path("run/adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["target_modules"]) == (2, 4, ["key", "query"])
