"""`rankwise look` on a real file: the lines, the page, and what `train` says of the same rows."""

import json
from pathlib import Path

import pandas as pd
import pytest

import rankwise
import tiny
from rankwise.cli import main


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> str:
    return str(tiny.model_folder(tmp_path_factory.mktemp("models") / "tiny-bert"))


@pytest.fixture
def table(tmp_path) -> Path:
    rows = tiny.reviews(60)
    rows[5]["text"] = ""
    rows[6]["label"] = ""
    rows[7]["text"] = rows[8]["text"]
    path = tmp_path / "reviews.jsonl"
    path.write_text("".join(json.dumps({"id": f"r{i}", **row}) + "\n" for i, row in enumerate(rows)))
    return path


def call(capfd, *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    out, err = capfd.readouterr()
    return int(stopped.value.code or 0), out, err


def test_look_prints_and_draws_what_train_says(table, model, tmp_path, capfd):
    page = tmp_path / "pages" / "look.html"
    code, out, _ = call(capfd, "look", table, "--model", model, "--out", page)
    assert code == 0
    assert "rows left out: 1 without text, 1 without label." in out
    columns = [line.split()[:2] for line in out.splitlines()[:4]]
    assert columns == [["column", "looks"], ["id", "id"], ["text", "text"], ["label", "label"]]
    lines = out.splitlines()
    seen = lines[lines.index(next(line for line in lines if "training rows, " in line)) : -1]
    assert len(seen) >= 5
    fast = ["--dtype", "float32", "--epochs", "1", "--threads", "1", "--method", "head"]
    code, trained, _ = call(capfd, "train", table, "--model", model, "--out", tmp_path / "run", *fast)
    assert code == 0
    assert "\n".join(seen) in trained
    html = page.read_text()
    assert "without text, 1 without label" in html
    assert all(f'id="data-{name}"' in html for name in ("classes", "lengths"))


def test_look_at_a_table_without_the_columns_shows_those_it_has(table, capfd, tmp_path):
    code, out, err = call(capfd, "look", table, "--label", "stars", "--out", tmp_path / "look.html")
    assert code == 2
    assert out.splitlines()[2].startswith("text    text")
    assert err.strip().endswith("Its columns: id, text, label. Say which with --label.")
    assert "has no column" in (tmp_path / "look.html").read_text()


def test_look_at_ids_says_that_they_are_no_labels(table, capfd):
    code, _, err = call(capfd, "look", table, "--label", "id")
    assert code == 2
    assert "column 'id' holds 59 different labels on 59 rows" in err


def test_look_for_a_script(table, model, told):
    found = told("look", table, "--model", model)
    assert [column["kind"] for column in found["columns"]] == ["id", "text", "label"]
    assert found["look"]["left_out"] == {"without text": 1, "without label": 1}
    assert found["look"]["unit"] == "tokens"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"limit_train": 20, "limit_eval": 5},
        {"text_pair": "id", "problem": "classification", "max_length": 4},
    ],
    ids=lambda options: ",".join(options),
)
def test_python_looks_as_the_command_does(table, model, told, options):
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    flags = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value)]
    of_command = told("look", table, "--model", model, *flags)["look"]
    found = rankwise.look(table, model=model, **options)
    assert json.loads(json.dumps(found.to_json())) == of_command
    assert rankwise.look([str(table)], model=model, **options) == found
    # rows in memory are those of the file, but for its name
    for given in (rows, pd.DataFrame(rows)):
        in_memory = rankwise.look(given, model=model, **options).to_json()
        assert in_memory.pop("task") == "table"
        assert in_memory.pop("source") == "The table"
        assert in_memory == {k: v for k, v in found.to_json().items() if k not in ("task", "source")}


def test_python_shows_and_draws_a_look_as_the_command_does(table, model, tmp_path, capfd):
    validation = tmp_path / "validation.jsonl"
    validation.write_text("".join(json.dumps(row) + "\n" for row in tiny.reviews(20)))
    code, out, _ = call(
        capfd, "look", table, "--model", model, "--validation", validation, "--out", tmp_path / "a.html"
    )
    assert code == 0
    found = rankwise.look(table, validation=validation, model=model, out=tmp_path / "b.html")
    assert str(found) in out
    assert (tmp_path / "a.html").read_text() == (tmp_path / "b.html").read_text()
    rows = [json.loads(line) for line in validation.read_text().splitlines()]
    assert rankwise.look(table, validation=rows, model=model) == found


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"table": []}, "The table has no rows"),
        ({"table": [{"text": "a"}]}, "The table has no column 'label'. Its columns: text."),
        ({"table": [{"text": "a"}], "dataset": "owner/name"}, "Both `dataset=owner/name` and rows are given"),
        ({"text": "review"}, "`text=` is for a table of your own, and no rows are given beside it"),
        ({"validation": [{"text": "a"}]}, "`validation=` is for a table of your own"),
        ({"out": "look.pdf"}, "Name a file that ends in .html with `out=`"),
    ],
)
def test_a_look_that_cannot_be_taken_is_refused(arguments, says):
    with pytest.raises(rankwise.RankwiseError, match=says):
        rankwise.look(**arguments)


def test_options_of_a_table_without_one_are_refused(capfd):
    code, _, err = call(capfd, "look", "--text", "review")
    assert code == 2
    assert "--text is for a table of your own, and no rows are given beside it." in err


def test_a_page_needs_a_name_of_a_page(table, capfd, tmp_path):
    code, _, err = call(capfd, "look", table, "--out", tmp_path / "look.pdf")
    assert code == 2
    assert "Name a file that ends in .html with --out." in err
