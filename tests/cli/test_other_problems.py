"""Regression and several labels from a table to a served model, by the commands that do it for classes."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf
from peft import PeftModel
from scipy.stats import pearsonr
from sklearn.metrics import f1_score

import rankwise
import tiny
from rankwise.config import TrainOptions
from rankwise.report import stats
from rankwise.run_folder import RunFolder

FAST = ["--dtype", "float32", "--batch-size", "8", "--threads", "1"]
LEARN = [*FAST, "--epochs", "10", "--lr", "3e-3"]
BRIEF = [*FAST, "--epochs", "2", "--lr", "5e-3"]
TEXTS = [
    "the film is good",
    "bad plot",
    "a very dull film",
    "good fine film",
    "the plot was bad and not good",
]


def rows(n: int, seed: int = 0) -> list[dict]:
    """A number and a set of labels that follow from the words."""
    made = []
    for i, row in enumerate(tiny.reviews(n, seed)):
        words = row["text"].split()
        made.append(
            {
                "text": row["text"],
                "stars": 2.5 + 2 * (row["label"] == "positive") + 0.1 * (i % 3),
                "tags": [word for word in ("good", "film", "plot") if word in words],
            }
        )
    return made


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ".cache"))
    for name, n, seed in (("train", 120, 0), ("held", 40, 1)):
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(n, seed)))
    return tmp_path


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> str:
    return str(tiny.model_folder(tmp_path_factory.mktemp("models") / "tiny-bert"))


@pytest.mark.parametrize(
    ("label", "method", "padding"),
    [
        pytest.param("stars", "full", "packed", marks=pytest.mark.slow),
        pytest.param("tags", "full", "longest", marks=pytest.mark.slow),
        ("stars", "adaptive", "longest"),
        ("tags", "adaptive", "packed"),
    ],
)
def test_the_score_of_a_run_is_that_of_its_predictions(told, model, label, method, padding):
    result = told(
        "train", "train.jsonl", "--validation", "held.jsonl", "--label", label, "--model", model,
        "--method", method, "--padding", padding, "--out", "run", *(LEARN if method == "full" else BRIEF),
    )  # fmt: skip
    predictions = RunFolder("run").read_predictions()
    true, said = (np.array(predictions[name].to_pylist()) for name in ("label", "prediction"))
    scored = pearsonr(true, said)[0] if label == "stars" else f1_score(true, said, average="micro")
    assert result["metric"] == ("pearson" if label == "stars" else "micro_f1")
    assert result["score"] == pytest.approx(scored)
    assert result["score"] > 0.8 or method != "full"
    assert result["padding"] == padding
    again = told("evaluate", "run", "held.jsonl")
    assert again["loss"] == pytest.approx(result["scores"]["validation"]["loss"], rel=1e-4)
    assert told("evaluate", "run")["n"] == 40


def trained(told, model: str, label: str) -> dict:
    return told(
        "train", "train.jsonl", "--validation", "held.jsonl", "--label", label, "--model", model,
        "--method", "lora", "--out", "run", *BRIEF,
    )  # fmt: skip


def test_predicted_numbers_are_written_as_numbers(told, model):
    trained(told, model, "stars")
    summary = told("predict", "run", "held.jsonl", "--out", "said.csv")
    written = list(csv.DictReader(Path("said.csv").read_text().splitlines()))
    said = [float(row["label"]) for row in written]
    assert list(written[0])[-2:] == ["label", "reason"]
    assert said == pytest.approx(RunFolder("run").read_predictions()["prediction"].to_pylist(), abs=1e-5)
    assert summary["predicted"] == pytest.approx(
        {"lowest": min(said), "mean": np.mean(said), "highest": max(said)}
    )


def test_predicted_sets_of_labels_are_lists_of_names(told, model):
    trained(told, model, "tags")
    summary = told("predict", "run", "held.jsonl", "--out", "said.jsonl")
    written = [json.loads(line) for line in Path("said.jsonl").read_text().splitlines()]
    names = ["film", "good", "plot"]
    for row in written:
        assert row["label"] == [n for n in names if row[f"probability_{n}"] > 0.5]
        assert row["probability_film"] == pytest.approx(1 / (1 + np.exp(-row["logit_film"])), abs=1e-6)
    assert summary["predicted"] == {n: sum(n in row["label"] for row in written) for n in names}
    told("predict", "run", "held.jsonl", "--out", "said.csv")
    cells = [row["label"] for row in csv.DictReader(Path("said.csv").read_text().splitlines())]
    assert [json.loads(cell) for cell in cells] == [row["label"] for row in written]


@pytest.mark.parametrize("label", ["stars", "tags"])
def test_transformers_pipeline_and_peft_say_the_same(told, model, label):
    trained(told, model, label)
    told("merge", "run", "--out", "merged")
    ours = rankwise.load("run").eval()
    batch = tiny.tokenizer()(TEXTS, return_tensors="pt", padding=True)
    with torch.no_grad():
        logits = ours(**batch).logits
        base = hf.AutoModelForSequenceClassification.from_pretrained(
            model,
            num_labels=logits.shape[1],
            problem_type=ours.config.problem_type,
            ignore_mismatched_sizes=True,
        )
        assert torch.allclose(
            PeftModel.from_pretrained(base, "run").eval()(**batch).logits, logits, atol=1e-5
        )
    outputs = hf.pipeline("text-classification", "merged", top_k=None)(TEXTS)
    values = [{entry["label"]: entry["score"] for entry in output} for output in outputs]
    expected = logits if label == "stars" else logits.sigmoid()
    names = ["stars"] if label == "stars" else ["film", "good", "plot"]
    assert values == [
        pytest.approx(dict(zip(names, row.tolist(), strict=True)), abs=1e-5) for row in expected
    ]


def test_a_card_says_how_the_base_is_loaded(told, model):
    trained(told, model, "stars")
    card = Path("run/README.md").read_text()
    assert "Predicts a number for a text: stars." in card
    assert '`problem_type="regression"`' in card


def test_class_weights_move_the_decision_and_are_recorded(told, model):
    table = [{"text": r["text"], "label": "rare" if i % 8 == 0 else "usual"} for i, r in enumerate(rows(160))]
    Path("rare.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table))
    said = {}
    for name, weights in (("plain", []), ("weighted", ["--class-weights", "balanced"])):
        told(
            "train", "rare.jsonl", "--model", model, "--method", "lora", "--out", name, *weights,
            *BRIEF,
        )  # fmt: skip
        said[name] = np.array(RunFolder(name).read_predictions()["logits"].to_pylist())
    record = RunFolder("weighted").read_run()
    assert record["resolved"]["train"]["class_weights"] == "balanced"
    assert record["facts"]["class_weights"] == pytest.approx(
        {"rare": 4.0, "usual": 4 / 7}, rel=0.2
    )  # about one row in eight is rare
    lead = {name: (logits[:, 0] - logits[:, 1]).mean() for name, logits in said.items()}
    assert lead["weighted"] > lead["plain"] + 0.5


def test_regression_starts_from_an_adapter_for_classes_with_a_new_head(told, model):
    Path("classes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in tiny.reviews(60)))
    told("train", "classes.jsonl", "--model", model, "--method", "lora", "--out", "first", *BRIEF)
    told(
        "train", "train.jsonl", "--label", "stars", "--from-adapter", "first", "--method", "lora",
        "--out", "second", *BRIEF,
    )  # fmt: skip
    assert rankwise.load("second").config.problem_type == "regression"
    assert rankwise.load("second").num_labels == 1


def test_of_numbers_an_example_counts_for_the_nearer_prediction():
    import pyarrow as pa

    def table(*said: float) -> pa.Table:
        idx, label = pa.array(range(4)), pa.array([1.0, 2.0, 3.0, 4.0], pa.float32())
        return pa.table({"idx": idx, "label": label, "prediction": pa.array(said, pa.float32())})

    first, second = table(1.0, 2.1, 3.0, 9.0), table(1.5, 2.5, 2.0, 4.5)
    assert (stats.mcnemar([(first, second)]).only_first, stats.mcnemar([(first, second)]).only_second) == (
        3,
        1,
    )


@pytest.mark.slow
def test_a_compared_grid_pairs_runs_of_regression(told, model, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = tmp_path / "glue" / "stsb"
    folder.mkdir(parents=True)
    for split, n, seed in (("train", 80, 0), ("validation", 24, 1)):
        made = rows(n, seed)
        columns = {
            "sentence1": [row["text"] for row in made],
            "sentence2": ["the film" for _ in made],
            "label": [row["stars"] for row in made],
            "idx": list(range(n)),
        }
        pq.write_table(pa.table(columns), folder / f"{split}.parquet")
    report = told(
        "compare", "--tasks", "stsb", "--methods", "full", "lora", "--seeds", 1, "--data", tmp_path / "glue",
        "--model", model, "--out", "grid", *BRIEF,
    )  # fmt: skip
    lora = next(row for row in report["rows"] if row["method"] == "lora")
    assert lora["metric"] == "pearson"
    assert lora["other_metrics"].keys() == {"spearman"}
    assert lora["only_this"] + lora["only_full"] == 24
    assert any("prediction is nearer" in note for note in report["notes"])
    assert report["examples"] == []


# In Python


@pytest.mark.parametrize(
    ("label", "head", "problem_type"),
    [
        ("stars", {"num_labels": 1}, "regression"),
        (
            "tags",
            {"num_labels": 3, "id2label": {0: "film", 1: "good", 2: "plot"}},
            "multi_label_classification",
        ),
    ],
)
def test_fit_takes_the_problem_from_the_model_or_the_labels(label, head, problem_type):
    model = tiny.classifier("bert", **head)
    options = TrainOptions(
        epochs=8, batch_size=8, lr=3e-3, warmup=0.06
    )  # 120 steps from random weights have none to spare
    columns = rankwise.Columns(label=label)
    fitted = rankwise.fit(model, tiny.tokenizer(), rows(120), rows(40, 1), columns=columns, options=options)
    assert model.config.problem_type == problem_type
    assert fitted.scores["pearson" if label == "stars" else "micro_f1"] > 0.8


def test_labels_of_the_wrong_kind_are_refused_by_row():
    number = tiny.classifier("bert", num_labels=1)
    with pytest.raises(
        rankwise.RankwiseError, match="Row 0 has the label 'x' in 'label'; regression takes numbers"
    ):
        rankwise.evaluate(number, tiny.tokenizer(), [{"text": "a", "label": "x"}])
    several = tiny.classifier("bert", num_labels=3, problem_type="multi_label_classification")
    with pytest.raises(rankwise.RankwiseError, match=r"Row 1 has the label \[1, 2\]"):
        rankwise.evaluate(
            several, tiny.tokenizer(), [{"text": "a", "label": [1, 0, 1]}, {"text": "a", "label": [1, 2]}]
        )
