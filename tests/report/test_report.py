"""The report of a grid: planted run folders in, known rows, sentences and files out."""

import json
from tempfile import TemporaryFile

import numpy as np
import pyarrow.parquet as pq
import pytest

from planted import N, finished, request
from rankwise import report
from rankwise.errors import RankwiseError
from rankwise.report import collect, show, write
from rankwise.report.table import FILES, HEADERS, cells
from rankwise.run_folder import RunFolder, write_grid


def row_of(document, method, task="sst2"):
    (row,) = [row for row in document.rows if (row.task, row.method) == (task, method)]
    return row


def shown(document) -> str:
    """What a file or a pipe gets to see."""
    with TemporaryFile("w+", encoding="utf-8") as stream:
        show(document, stream)
        stream.seek(0)
        return stream.read()


# Rows


def test_a_row_a_task_and_method_in_the_order_asked_for(tmp_path):
    for task in ("rte", "mrpc"):
        for method in ("lora", "full", "lora:rank=4"):
            finished(tmp_path, task, method)
    write_grid(tmp_path, {"tasks": ["rte", "mrpc"], "methods": ["full", "lora:rank=4", "lora"]})
    assert [(row.task, row.method) for row in collect(tmp_path).rows] == [
        ("rte", "full"),
        ("rte", "lora:rank=4"),
        ("rte", "lora"),
        ("mrpc", "full"),
        ("mrpc", "lora:rank=4"),
        ("mrpc", "lora"),
    ]


def test_without_a_grid_file_rows_stand_by_name(tmp_path):
    for method in ("lora", "full"):
        finished(tmp_path, method=method)
    assert [row.method for row in collect(tmp_path).rows] == ["full", "lora"]


def test_scores_are_means_over_seeds_and_differences_are_paired_by_seed(tmp_path):
    """full: 0.90 0.80 0.70, lora: 0.95 0.85 0.75: the same step in each seed, so a difference without spread."""
    for seed, n in enumerate([2, 4, 6]):
        finished(tmp_path, method="full", seed=seed, wrong=range(n))
        finished(tmp_path, method="lora", seed=seed, wrong=range(n - 1))
    document = collect(tmp_path)
    full, lora = row_of(document, "full"), row_of(document, "lora")
    assert (full.score.mean, full.score.n) == (pytest.approx(0.8), 3)
    assert full.score.half == pytest.approx(4.302653 * 0.1 / 3**0.5, rel=1e-5)  # t(0.975, 2 degrees)
    assert lora.difference.mean == pytest.approx(0.05)
    assert lora.difference.half == pytest.approx(0.0, abs=1e-9)
    assert full.difference is None
    assert full.p_rows is None
    assert lora.p_rows == pytest.approx(2 / 2**3)  # three rows only lora gets right, none the other way


def test_only_seeds_that_both_methods_have_are_compared(tmp_path):
    finished(tmp_path, method="full", seed=0, wrong=range(4))
    finished(tmp_path, method="lora", seed=0, wrong=range(2))
    finished(tmp_path, method="lora", seed=1, wrong=range(10))
    lora = row_of(collect(tmp_path), "lora")
    assert (lora.score.n, lora.difference.n) == (2, 1)
    assert lora.difference.mean == pytest.approx(0.1)


def test_p_values_are_corrected_over_the_whole_table(tmp_path):
    for task in ("sst2", "rte"):
        finished(tmp_path, task, "full", wrong=range(6))
        finished(tmp_path, task, "lora", wrong=())
    document = collect(tmp_path)
    assert row_of(document, "lora").p_rows == pytest.approx(2 * 2 / 2**6)


def test_without_full_there_is_no_difference(tmp_path):
    finished(tmp_path)
    row = row_of(collect(tmp_path), "lora")
    assert (row.difference, row.p_rows) == (None, None)


def test_runs_on_different_rows_are_not_compared_but_shown(tmp_path):
    for task in ("sst2", "rte"):
        finished(tmp_path, task, "full", wrong=range(3))
        finished(tmp_path, task, "lora", idx=np.arange(N) + (7 if task == "sst2" else 0))
    document = collect(tmp_path)
    other = row_of(document, "lora")
    assert (other.difference, other.p_rows, other.score.mean) == (None, None, 0.95)
    assert any(note.startswith("sst2 lora can't be compared with full.") for note in document.notes)
    assert row_of(document, "lora", "rte").difference.mean == pytest.approx(0.1)


def test_speed_memory_and_time_are_medians(tmp_path):
    for seed, value in enumerate([100.0, 900.0, 300.0]):
        finished(
            tmp_path, seed=seed, samples_per_second=value, peak_rss_mb=value + 1, train_seconds=value + 2
        )
    row = row_of(collect(tmp_path), "lora")
    assert (row.rows_per_second, row.peak_mb, row.train_seconds) == (300.0, 301.0, 302.0)


def test_on_a_gpu_the_allocators_peak_is_the_memory_shown(tmp_path):
    finished(tmp_path, peak_rss_mb=9999.0, peak_cuda_mb=123.0)
    (row,) = collect(tmp_path).rows
    assert row.peak_mb == 123.0


def test_one_run_that_shared_the_machine_leaves_the_speed_blank(tmp_path):
    finished(tmp_path, seed=0)
    finished(tmp_path, seed=1, samples_per_second=None)
    document = collect(tmp_path)
    row = row_of(document, "lora")
    assert row.rows_per_second is None
    assert cells(row)[HEADERS.index("rows/s")] == ""
    assert any("--jobs" in note for note in document.notes)


def test_no_word_of_shared_machines_where_every_run_has_a_speed(tmp_path):
    finished(tmp_path)
    assert not any("--jobs" in note for note in collect(tmp_path).notes)


def test_trained_parameters_are_a_share_of_the_plain_models(tmp_path):
    for method in ("full", "lora"):
        finished(tmp_path, method=method)
    document = collect(tmp_path)
    assert (row_of(document, "lora").trainable, row_of(document, "lora").trainable_share) == (30_000, 0.03)
    assert row_of(document, "full").trainable_share == 1.0
    assert cells(row_of(document, "lora"))[HEADERS.index("trained")] == "30k (3 %)"
    assert cells(row_of(document, "full"))[HEADERS.index("trained")] == "1M (100 %)"


def test_further_metrics_stand_beside_the_score(tmp_path):
    for seed, f1 in enumerate([0.8, 0.9]):
        scores = {"accuracy": 0.95, "f1": f1, "loss": 0.1}
        finished(tmp_path, "mrpc", seed=seed, scores={"validation": scores})
    row = row_of(collect(tmp_path), "lora", "mrpc")
    assert row.other_metrics == {"f1": pytest.approx(0.85)}
    assert cells(row)[HEADERS.index("score")] == "95.00 ± 0.00 accuracy, f1 0.850"


def test_a_rows_cells_read_as_a_person_would_write_them(tmp_path):
    for seed in range(2):
        finished(tmp_path, method="full", seed=seed, wrong=range(4), train_seconds=3700.0)
        finished(tmp_path, method="lora", seed=seed, wrong=range(5 + seed), peak_rss_mb=1234.5)
    full, lora = (
        dict(zip(HEADERS, cells(row_of(collect(tmp_path), m)), strict=True)) for m in ("full", "lora")
    )
    assert (full["task"], full["method"], full["n"], full["time"]) == ("sst2", "full", "2", "1:01:40")
    assert (full["Δ full"], full["p rows"]) == ("", "")
    assert lora["Δ full"] == "-7.50 ± 31.77"  # t(0.975, 1 degree) = 12.706, times 2.5 points
    assert lora["MB"] == "1,234"
    assert lora["rows/s"] == "100"


# Notes


def test_one_seed_says_so_and_shows_no_interval(tmp_path):
    for method in ("full", "lora"):
        finished(tmp_path, method=method)
    document = collect(tmp_path)
    assert any(note.startswith("One seed shows nothing about spread") for note in document.notes)
    assert cells(row_of(document, "lora"))[HEADERS.index("score")] == "95.00 accuracy"
    assert cells(row_of(document, "lora"))[HEADERS.index("Δ full")] == "+0.00"


def test_several_seeds_are_not_called_one(tmp_path):
    for seed in range(2):
        finished(tmp_path, seed=seed)
    assert not any(note.startswith("One seed") for note in collect(tmp_path).notes)


@pytest.mark.parametrize(
    ("task", "model", "found"),
    [
        ("sst2", "roberta-base", True),
        ("sst2", "FacebookAI/roberta-base", True),
        ("sst2", "minilm", False),
        ("sst2", "roberta-large", False),
        ("movies", "roberta-base", False),
    ],
)
def test_published_figures_stand_beside_ours_only_where_task_and_model_match(tmp_path, task, model, found):
    finished(tmp_path, task, model=model)
    lines = collect(tmp_path).published
    assert bool(lines) == found
    assert all(line.startswith("sst2: ") and "(published, full task; " in line for line in lines)
    assert (
        "sst2: lora (query and value, r=8) 0.951 (published, full task; Hu et al. 2021 (arXiv 2106.09685), median of 5)"
        in lines
    ) == found


def test_settings_that_every_run_shares_are_said_once(tmp_path):
    for method in ("full", "lora"):
        finished(tmp_path, method=method)
    write_grid(tmp_path, {"command": "rankwise compare --tasks sst2"})
    settings = collect(tmp_path).settings
    assert settings["model"] == "minilm"
    assert settings["recipe"] == "poster"
    assert settings["training"].startswith("3 epochs, batches of 16, adam, linear schedule")
    assert settings["computed in"] == "bfloat16, packed batches, 2 threads"
    assert settings["command"] == "rankwise compare --tasks sst2"


def test_settings_that_differ_say_whose_they_are(tmp_path):
    finished(tmp_path, "rte", "full", config=request("rte", "full", 0, epochs=10.0))
    for seed in range(2):
        finished(tmp_path, "rte", "lora", seed, config=request("rte", "lora", seed, epochs=80.0))
    training = collect(tmp_path).settings["training"]
    assert training.startswith("rte full: 10 epochs, ")
    assert "; rte lora: 80 epochs, " in training


# What is missing or damaged


@pytest.mark.parametrize("file", ["result.json", "predictions.parquet", "run.json"])
def test_a_damaged_run_is_named_and_left_out(tmp_path, file):
    for seed in range(3):
        finished(tmp_path, method="full", seed=seed)
        finished(tmp_path, seed=seed)
    (tmp_path / "sst2.full.s0" / file).write_bytes(b"{")  # the first of all
    document = write(tmp_path)
    assert (row_of(document, "full").score.n, row_of(document, "lora").score.n) == (2, 3)
    assert row_of(document, "lora").difference.n == 2
    (left_out,) = document.left_out
    assert left_out.startswith("Left out: ")
    assert f"sst2.full.s0/{file} is damaged" in left_out
    assert left_out in shown(document)
    assert f"{file} is damaged" in (tmp_path / "report.md").read_text(encoding="utf-8")
    assert pq.read_table(tmp_path / "results.parquet").num_rows == 5


@pytest.mark.parametrize("file", ["predictions.parquet", "run.json"])
def test_a_run_that_lost_a_file_is_named_and_left_out(tmp_path, file):
    for seed in range(2):
        finished(tmp_path, seed=seed)
    (tmp_path / "sst2.lora.s1" / file).unlink()
    document = collect(tmp_path)
    assert row_of(document, "lora").score.n == 1
    assert f"sst2.lora.s1/{file} is missing" in document.left_out[0]


def test_a_run_that_gave_every_row_the_same_answer_is_named(tmp_path):
    finished(tmp_path, "sst2", "full", wrong=range(0, N, 2))  # all are called positive
    finished(tmp_path, "sst2", "lora", wrong=range(0, N - 2, 2))
    said = [note for note in collect(tmp_path).notes if "same class" in note]
    assert len(said) == 1
    assert ": sst2.full.s0. " in said[0]


def test_unfinished_and_failed_runs_are_named(tmp_path):
    finished(tmp_path)
    for seed, why in ((1, None), (2, "The loss is nan at step 3 of 9.")):
        folder = RunFolder(tmp_path / f"sst2.lora.s{seed}")
        folder.write_request({})
        folder.update_run_json(failed=why)
    assert collect(tmp_path).left_out == [
        "sst2.lora.s1 is not finished.",
        "sst2.lora.s2 failed: The loss is nan at step 3 of 9.",
    ]


def test_a_grid_without_a_finished_run_says_why(tmp_path):
    RunFolder(tmp_path / "sst2.lora.s0").write_request({})
    with pytest.raises(RankwiseError, match=r"holds no finished run\. sst2\.lora\.s0 is not finished\."):
        write(tmp_path)
    assert not (tmp_path / "report.md").exists()


@pytest.mark.parametrize("place", ["nowhere", "a file"])
def test_what_is_no_folder_is_named(tmp_path, place):
    (tmp_path / "a file").touch()
    with pytest.raises(RankwiseError, match=f"{place} is no folder"):
        collect(tmp_path / place)


def test_files_that_cannot_be_written_are_named(tmp_path):
    finished(tmp_path)
    (tmp_path / "report.md").mkdir()
    with pytest.raises(RankwiseError, match="can't be written"):
        write(tmp_path)


# Files


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


def test_the_markdown_table_has_a_cell_a_header_in_every_line(tmp_path):
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


def test_a_stream_that_is_no_terminal_gets_plain_lines(tmp_path):
    for method in ("full", "lora"):
        finished(tmp_path, method=method)
    text = shown(collect(tmp_path))
    assert "\x1b" not in text
    header, *rows = [line.split() for line in text.splitlines() if line][:3]
    assert header[:4] == ["task", "method", "n", "score"]
    assert [row[:5] for row in rows] == [
        ["sst2", "full", "1", "95.00", "accuracy"],
        ["sst2", "lora", "1", "95.00", "accuracy"],
    ]
    assert text.splitlines()[-1] == f"Written: {', '.join(str(tmp_path / name) for name in FILES)}"


def test_the_report_as_json_is_plain_values(tmp_path):
    for method in ("full", "lora"):
        finished(tmp_path, method=method)
    document = json.loads(json.dumps(report.to_json(collect(tmp_path)), allow_nan=False))
    assert document["out"] == str(tmp_path)
    assert [row["method"] for row in document["rows"]] == ["full", "lora"]
    assert document["rows"][1]["difference"] == {"mean": 0.0, "low": None, "high": None, "n": 1}
    assert [run["score"] for run in document["runs"]] == [0.95, 0.95]
