"""Which runs a report is made of, and which are left out."""

import pyarrow.parquet as pq
import pytest

from planted import N, finished
from planted_report import row_of, shown
from rankwise.errors import RankwiseError
from rankwise.report import collect, write
from rankwise.run_folder import RunFolder


def test_predictions_of_another_length_are_left_out_and_named(tmp_path):
    finished(tmp_path)
    finished(tmp_path, seed=1, n_validation=N + 1)
    document = write(tmp_path)
    assert len(document.runs) == 1
    assert "sst2.lora.s1 is inconsistent" in document.left_out[0]
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "sst2.lora.s1 is inconsistent" in page
    assert "1 run not in these figures" in page


def test_a_run_with_unreadable_settings_is_left_out_and_named(tmp_path):
    finished(tmp_path)
    odd = finished(tmp_path, seed=1)
    odd.update_run_json(resolved={"train": {"lr": None}})
    document = collect(tmp_path)
    assert len(document.runs) == 1
    assert "sst2.lora.s1/run.json is damaged (its settings can't be read" in document.left_out[0]


@pytest.mark.parametrize("file", ["result.json", "predictions.parquet", "run.json"])
def test_a_damaged_run_is_left_out_and_named(tmp_path, file):
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
def test_a_run_without_a_file_is_left_out_and_named(tmp_path, file):
    for seed in range(2):
        finished(tmp_path, seed=seed)
    (tmp_path / "sst2.lora.s1" / file).unlink()
    document = collect(tmp_path)
    assert row_of(document, "lora").score.n == 1
    assert f"sst2.lora.s1/{file} is missing" in document.left_out[0]


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
def test_a_missing_folder_is_named(tmp_path, place):
    (tmp_path / "a file").touch()
    with pytest.raises(RankwiseError, match=f"{place} is no folder"):
        collect(tmp_path / place)
