"""The files of a report: Markdown, JSON and Parquet."""

import json

import pyarrow.parquet as pq
import pytest

from planted import finished
from planted_report import PRUNED, full_document, grid
from rankwise import report
from rankwise.errors import RankwiseError
from rankwise.report import collect, write
from rankwise.report import to_json as report_json
from rankwise.report.table import FILES, HEADERS, cells


def test_markdown_says_what_the_page_says(tmp_path):
    full_document(tmp_path)
    document = write(tmp_path)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    for heading in (
        "Paired differences from full fine-tuning",
        "Peak memory by kind, MB",
        "Rank pattern",
        "Where methods disagree",
    ):
        assert f"## {heading}\n" in text
    for line in [*document.answer, *document.notes, PRUNED["text"]]:
        assert "".join(c for c in line if c.isalnum()) in "".join(c for c in text if c.isalnum())


def test_report_json_is_the_document(tmp_path):
    grid(tmp_path)
    document = write(tmp_path)
    stored = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert stored == json.loads(json.dumps(report_json(document)))
    assert [row["verdict"] for row in stored["rows"]] == [None, "shown", "not shown"] * 2
    assert stored["answer"] == document.answer


def test_results_parquet_has_memory_by_kind(tmp_path):
    finished(tmp_path, peak_memory_mb={"total": 3.0, "weights": 1.0, "batch": 2.0})
    write(tmp_path)
    (row,) = pq.read_table(tmp_path / "results.parquet").to_pylist()
    assert (row["peak_mb_total"], row["peak_mb_weights"], row["peak_mb_batch"]) == (3.0, 1.0, 2.0)


def test_unwritable_files_are_named(tmp_path):
    finished(tmp_path)
    (tmp_path / "report.md").mkdir()
    with pytest.raises(RankwiseError, match="can't be written"):
        write(tmp_path)


def test_results_parquet_has_a_row_a_run_and_every_scalar(tmp_path):
    """The first run has no f1: its columns aren't everybody's."""
    finished(tmp_path, "cola", "full")
    scores = {
        "validation": {"accuracy": 0.9, "f1": 0.8, "loss": 0.1},
        "validation_mismatched": {"accuracy": 0.7, "loss": 0.2},
    }
    finished(tmp_path, "mrpc", "lora", seed=3, scores=scores)
    write(tmp_path)
    first, second = pq.read_table(tmp_path / "results.parquet").to_pylist()
    assert (first["task"], first["method"], first["seed"], first["head_params"]) == ("cola", "full", 0, None)
    assert (second["task"], second["method"], second["seed"], second["head_params"]) == (
        "mrpc",
        "lora",
        3,
        10_000,
    )
    assert (first["score"], second["peak_rss_mb"]) == (0.95, 500.0)
    assert (first["validation_f1"], second["validation_f1"]) == (None, 0.8)
    assert second["validation_mismatched_accuracy"] == 0.7
    assert not {"scores", "rank"} & first.keys()


def test_the_markdown_table_is_complete(tmp_path):
    for method in ("full", "lora"):
        finished(tmp_path, method=method)
    document = write(tmp_path)
    lines = (tmp_path / "report.md").read_text(encoding="utf-8").splitlines()
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")][
        :4
    ]
    assert [len(line) for line in table] == [len(HEADERS)] * 4
    assert table[0] == list(HEADERS)
    assert table[2] == list(cells(document.rows[0]))
    assert "- sst2: 1,234 training rows, 20 validation rows." in lines


def test_text_from_data_is_harmless_in_markdown(tmp_path):
    task = "# a|b <img src=x> [c](d) *e* `f`\n| g &amp; ~~h~~"
    folder = finished(tmp_path, "sst2", model="m|\n# n", metric="<b>")
    folder.write_result({**folder.read_result(), "task": task, "scores": {"validation": {"<b>": 1.0}}})
    write(tmp_path)
    lines = (tmp_path / "report.md").read_text(encoding="utf-8").splitlines()
    headings = [line for line in lines if line.startswith("#")]
    assert headings == ["# Comparison", "## Settings"]
    assert len([line for line in lines if line.startswith("|")]) == 3
    text = "\n".join(lines)
    for special in ("<", ">", "[", "]", "*", "`", "&", "~"):
        assert text.count(special) == text.count(f"\\{special}"), special
    assert text.count("# ") - text.count("\\# ") == len(headings)


def test_reports_replace_each_other_whole(tmp_path):
    finished(tmp_path)
    write(tmp_path)
    finished(tmp_path, method="full")
    write(tmp_path)
    assert pq.read_table(tmp_path / "results.parquet").num_rows == 2
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == sorted(FILES)
    assert len(json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["runs"]) == 2


def test_the_report_as_json_is_plain_values(tmp_path):
    for method in ("full", "lora"):
        finished(tmp_path, method=method)
    document = json.loads(json.dumps(report.to_json(collect(tmp_path)), allow_nan=False))
    assert document["out"] == str(tmp_path)
    assert [row["method"] for row in document["rows"]] == ["full", "lora"]
    assert document["rows"][1]["difference"] == {"mean": 0.0, "low": None, "high": None, "n": 1}
    assert [run["score"] for run in document["runs"]] == [0.95, 0.95]


def test_entries_that_are_no_numbers_or_have_no_common_type_are_written(tmp_path):
    finished(tmp_path, speed={"product_share": float("inf")}, dtype="bfloat16", code="\x1b[31m")
    finished(tmp_path, seed=1, dtype=16, code=10**30)
    write(tmp_path)
    runs = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["runs"]
    assert runs[0]["speed"] == {"product_share": None}
    table = pq.read_table(tmp_path / "results.parquet").to_pylist()
    assert [row["dtype"] for row in table] == ["bfloat16", "16"]
    assert [row["code"] for row in table] == ["\\x1b[31m", str(10**30)]
    assert "\x1b" not in (tmp_path / "report.json").read_text(encoding="utf-8")
