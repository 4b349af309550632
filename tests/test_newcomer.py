"""A newcomer's walk with a messy table of 1,500 rows: look, train, evaluate, predict, export, pipeline, report."""

import csv
import json
import random
from pathlib import Path

import pytest

import tiny
from rankwise.cli import main

pytestmark = pytest.mark.slow


def messy(path: Path) -> list[dict[str, str]]:
    """Write 1,500 tickets: ids, missing cells, labels with stray spaces and capitals, a rare class, a text that stands twice."""
    draw = random.Random(0)
    rows = []
    for i, row in enumerate(tiny.reviews(1500)):
        kind = "legal" if i % 250 == 7 else row["label"]
        kind = f" {kind} " if i % 40 == 3 else kind.capitalize() if i % 500 == 11 else kind
        text = f"{row['text']} {draw.choice(tiny.WORDS)}"
        rows.append({"id": f"T-{i:05d}", "message": text, "kind": kind, "stars": str(i % 5)})
    for i in range(5, 1500, 200):
        rows[i]["message"] = ""
    for i in range(9, 1500, 300):
        rows[i]["kind"] = ""
    rows[700]["message"] = rows[10]["message"]
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows)
    return rows


def call(*arguments: object) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    assert stopped.value.code == 0, arguments


def test_a_newcomers_walk(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    rows = messy(tmp_path / "tickets.csv")
    tiny.model_folder(tmp_path / "model")
    columns = ["--text", "message", "--label", "kind"]

    call("look", "tickets.csv", *columns, "--model", "model", "--out", "look.html")
    said = capfd.readouterr().out
    assert "8 without text, 5 without label" in said
    assert "differ by case or spaces only" in said
    assert "fewer than 10 training rows" in said
    assert "repeats the text of another" in said or "repeat the text of another" in said

    fast = ["--method", "lora", "--epochs", "1", "--lr", "5e-3", "--dtype", "float32", "--threads", "1"]
    call("train", "tickets.csv", *columns, "--model", "model", "--out", "run", *fast)
    assert "balanced accuracy" in capfd.readouterr().out
    result = json.loads((tmp_path / "run" / "result.json").read_text())

    call("evaluate", "run")
    assert f"accuracy {result['score']:.4f}" in capfd.readouterr().out

    call("predict", "run", "tickets.csv", "--out", "scored.csv")
    with (tmp_path / "scored.csv").open(newline="", encoding="utf-8") as file:
        scored = list(csv.DictReader(file))
    assert [row["id"] for row in scored] == [row["id"] for row in rows]
    assert [row["message"] for row in scored] == [row["message"] for row in rows]
    unscored = {row["id"] for row in scored if row["reason"]}
    assert unscored == {row["id"] for row in rows if not row["message"]}

    call("export", "run", "--format", "transformers", "--out", "exported")
    from transformers import pipeline

    classify = pipeline("text-classification", model="exported", device="cpu")
    names = {row["kind"].strip() for row in rows} - {""}
    texts = [row for row in scored if not row["reason"]][:20]
    answers = classify([row["message"] for row in texts])
    assert {answer["label"] for answer in answers} <= names
    assert [answer["label"] for answer in answers] == [row["label"] for row in texts]

    call("report", "run")
    page = (tmp_path / "run" / "report.html").read_text()
    assert all(f'id="{section}"' in page for section in ("quality", "data", "settings"))
