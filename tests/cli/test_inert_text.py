"""Text that isn't inert in names of labels, files and columns: through training, the card, predictions and the report."""

import csv
import json
import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

import tiny
from rankwise.cli import main
from rankwise.run_folder import RunFolder

BAD = "=cmd|' /C calc'!A0\x1b[31m\n\n# Heading\n\n```\ncode\n```\n---\nlicense: other\n---"
FINE = "<script>alert(1)</script>\x9b2J[link](https://x.y)|*"
NAME = "\x1b]0;title\x07# reviews\n---\nname"
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("inert")
    tiny.model_folder(folder / "tiny-bert")
    names = {"positive": FINE, "negative": BAD}
    rows = [{**row, "label": names[row["label"]]} for row in tiny.reviews(60)]
    (folder / f"{NAME}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def ran(here, monkeypatch, capfd):
    """Runs a command and returns what it printed."""
    monkeypatch.chdir(here)

    def call(*arguments: object, code: int = 0) -> str:
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main([*map(str, arguments)])
        said = "".join(capfd.readouterr())
        assert stopped.value.code == code, said
        assert not CONTROLS.search(said), said
        return said

    return call


@pytest.fixture
def adapter(here, ran) -> Path:
    """An adapter whose labels and file have such names; trained once."""
    if not RunFolder(here / "adapter").finished:
        said = ran(
            "train",
            f"{NAME}.jsonl",
            "--model",
            "tiny-bert",
            "--out",
            "adapter",
            "--epochs",
            1,
            "--lr",
            "1e-3",
        )
        assert "\\x1b" in said
    return here / "adapter"


def test_the_card_has_its_own_structure_only(adapter):
    text = (adapter / "README.md").read_text(encoding="utf-8")
    assert not CONTROLS.search(text)
    card = ModelCard(text)
    assert set(card.data.to_dict()) >= {"library_name", "pipeline_tag", "tags", "metrics", "model-index"}
    assert "license" not in card.data.to_dict()
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(card.text)
    headings = [tokens[i + 1].content for i, token in enumerate(tokens) if token.type == "heading_open"]
    assert len(headings) == 3
    assert headings[1:] == ["Use", "Training"]
    assert [token.info for token in tokens if token.type == "fence"] == ["python"]
    assert not [token for token in tokens if token.type in ("html_block", "hr")]
    inline = [part.type for token in tokens for part in token.children or []]
    assert not {"html_inline", "link_open", "em_open"} & {*inline}


@pytest.mark.parametrize("ending", [".csv", ".tsv"])
def test_predictions_hold_no_formula(adapter, ran, ending):
    ran("predict", adapter, f"{NAME}.jsonl", "--out", f"scored{ending}")
    with Path(f"scored{ending}").open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file, delimiter="," if ending == ".csv" else "\t")
    assert not [cell for row in [header, *rows] for cell in row if cell.lstrip()[:1] in ("=", "@", "+")]
    names = {row[header.index("label")] for row in rows}
    assert names <= {FINE, f"'{BAD}"}


def test_predictions_as_json_and_parquet_are_as_they_are(adapter, ran):
    ran("predict", adapter, f"{NAME}.jsonl", "--out", "scored.jsonl")
    rows = [json.loads(line) for line in Path("scored.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {row["label"] for row in rows} <= {FINE, BAD}


@pytest.mark.parametrize("command", ["evaluate", "inspect"])
def test_commands_print_no_control_characters(adapter, ran, command):
    ran(command, adapter)


def test_json_output_has_the_names_as_they_are(adapter, ran):
    said = ran("predict", adapter, f"{NAME}.jsonl", "--out", "scored.jsonl", "--json")
    document = next(json.loads(line) for line in said.splitlines() if line.startswith("{"))
    assert set(document["predicted"]) == {FINE, BAD}


def test_a_report_of_such_a_run_is_inert(adapter, ran, here):
    said = ran("report", here)
    assert "1 of" not in said
    for name in ("report.html", "report.md", "report.json"):
        text = (here / name).read_text(encoding="utf-8")
        assert not re.search(
            "[\x00-\x08\x0b-\x1f\x7f-\x9f]", text.partition('<script type="text/plain"')[0]
        ), name
    lines = (here / "report.md").read_text(encoding="utf-8").splitlines()
    assert next(line for line in lines if line.startswith("#")) == "# Comparison"
    assert "<script>alert" not in (here / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "arguments",
    [
        ("evaluate", "no\x1b[31m\nsuch"),
        ("report", "no\x1b[31m\nsuch"),
        ("train", "no\x1b[31m.csv", "--out", "x"),
        ("train", "no.csv", "--out", "x", "--no\x1b[31m"),
        ("plan", "--model", "\x1b[31m"),
        ("compare", "--tasks", "\x1b[31m"),
        ("predict", "adapter", "no", "--out", "\x1b[31m"),
        ("\x1b[31m",),
        ("train", "\x1b[31m\udcff.jsonl", "--out", "x"),
        ("--debug", "evaluate", "no\x1b[31m\nsuch"),
    ],
)
def test_errors_print_no_control_characters(ran, arguments):
    assert "\\x1b" in ran(*arguments, code=2)
