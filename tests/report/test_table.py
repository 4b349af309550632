"""The table for the terminal."""

import pytest

from planted import decide, finished
from planted_report import PRUNED, QUERY, START, VALUE, row_of, shown
from rankwise.report import collect
from rankwise.report.table import FILES, HEADERS, cells


def test_one_run_that_shared_the_machine_leaves_the_speed_blank(tmp_path):
    finished(tmp_path, seed=0)
    finished(tmp_path, seed=1, samples_per_second=None)
    document = collect(tmp_path)
    row = row_of(document, "lora")
    assert row.rows_per_second is None
    assert cells(row)[HEADERS.index("rows/s")] == ""
    assert any("--jobs" in note for note in document.notes)


def test_trained_parameters_are_a_share_of_the_plain_models(tmp_path):
    for method in ("full", "lora"):
        finished(tmp_path, method=method)
    document = collect(tmp_path)
    assert (row_of(document, "lora").trainable, row_of(document, "lora").trainable_share) == (30_000, 0.03)
    assert row_of(document, "full").trainable_share == 1.0
    assert cells(row_of(document, "lora"))[HEADERS.index("trained")] == "30k (3 %)"
    assert cells(row_of(document, "full"))[HEADERS.index("trained")] == "1M (100 %)"


def test_other_metrics_stand_beside_the_score(tmp_path):
    for seed, f1 in enumerate([0.8, 0.9]):
        scores = {"accuracy": 0.95, "f1": f1, "loss": 0.1}
        finished(tmp_path, "mrpc", seed=seed, scores={"validation": scores})
    row = row_of(collect(tmp_path), "lora", "mrpc")
    assert row.other_metrics == {"f1": pytest.approx(0.85)}
    assert cells(row)[HEADERS.index("score")] == "95.00 ± 0.00 accuracy, f1 0.850"


def test_cells_read_as_a_person_would_write_them(tmp_path):
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


def test_a_pipe_gets_plain_lines(tmp_path):
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


def test_the_mean_of_the_seeds_final_ranks_is_drawn(tmp_path):
    for seed in range(2):
        folder = finished(tmp_path, seed=seed, steps=1000, rank={QUERY: 16, VALUE: seed})
        decide(folder, START, PRUNED)
    lines = shown(collect(tmp_path)).splitlines()
    titles = [line for line in lines if line.startswith("Rank pattern of ")]
    assert [title.partition(":")[0] for title in titles] == ["Rank pattern of sst2, lora, mean of 2 seeds"]
    drawn = lines[lines.index(titles[0]) + 1 :][:3]
    assert [line.split() for line in drawn] == [["layer", "4"], ["query", "16"], ["value", "·"]]
