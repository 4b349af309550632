"""Which runs a report is made of, and which are left out."""

import shutil

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


def test_one_runs_own_folder_makes_a_report_of_that_run(tmp_path):
    folder = finished(tmp_path, wrong=(0, 1))
    finished(tmp_path, method="full")
    document = collect(folder.path)
    assert [(row.task, row.method, row.score.mean) for row in document.rows] == [("sst2", "lora", 0.9)]
    assert document.answer[0] == "lora reaches 90.00 accuracy on sst2."
    assert document.answer[1].startswith(
        "95 % over the 20 validation rows: 69.90 to 97.21. Always 'negative' would reach 50.00."
    )


def test_an_unfinished_runs_own_folder_is_called_that(tmp_path):
    folder = finished(tmp_path)
    (folder.path / "result.json").unlink()
    with pytest.raises(RankwiseError, match=r"sst2\.lora\.s0 is the folder of a run that isn't finished"):
        collect(folder.path)


def test_a_copy_of_a_run_is_no_second_seed(tmp_path):
    folder = finished(tmp_path)
    shutil.copytree(folder.path, tmp_path / "sst2.lora.s0 copy")
    document = collect(tmp_path)
    assert row_of(document, "lora").score.n == 1
    assert document.left_out == [
        "Left out: sst2.lora.s0 copy is the same run as sst2.lora.s0: sst2, lora, seed 0."
    ]


def test_scores_by_two_metrics_are_not_averaged(tmp_path):
    finished(tmp_path)
    finished(tmp_path, seed=1, metric="mcc", score=0.1)
    document = collect(tmp_path)
    assert row_of(document, "lora").scores == {0: 0.95}
    assert document.left_out == ["Left out: sst2.lora.s1 is scored by mcc, and sst2.lora.s0 by accuracy."]


def test_a_run_whose_adapter_is_all_of_its_model_is_inconsistent(tmp_path):
    finished(tmp_path)
    finished(tmp_path, seed=1, total_params=20_000)
    assert "20,000 of 20,000 parameters are the adapter's" in collect(tmp_path).left_out[0]


DAMAGE = {
    "result.json": ["null", "[]", "[" * 60_000, '{"task": 1, "task": 2}', "1e999", '{"a": ' * 60_000],
    "run.json": ["null", '{"requested": null}', '{"requested": {}, "versions": {"a": {}}}', "[" * 60_000],
    "steps.jsonl": [
        *("null\n", "7\n", "[]\n", '{"step": 1, "loss": 1}{"step": 2, "loss": 1}\n', "[" * 60_000 + "\n"),
        *(
            '{"step": 1}\n',
            '{"step": 0, "loss": 1}\n',
            '{"step": 1, "loss": NaN}\n',
            '{"step": 1, "loss": 1e999}\n',
        ),
        *('{"step": 1, "loss": "x"}\n', '{"step": 1, "loss": 1, "validation": []}\n', "\n\n", "\0\0\n"),
        '{"step": 1, "loss": 1, "validation": {"accuracy": {}}}\n',
    ],
}


@pytest.mark.parametrize(
    ("file", "content"), [(file, content) for file in DAMAGE for content in DAMAGE[file]]
)
def test_a_damaged_file_is_named_and_the_other_runs_are_reported(tmp_path, file, content):
    for seed in range(2):
        for method in ("full", "lora"):
            folder = finished(tmp_path, method=method, seed=seed)
            folder.append_steps([{"step": 1, "loss": 1.0}])
    (tmp_path / "sst2.lora.s0" / file).write_text(content, encoding="utf-8")
    document = write(tmp_path)
    log = file == "steps.jsonl"  # the run's scores are whole
    assert row_of(document, "lora").score.n == (2 if log else 1)
    assert [curve.n for curve in document.curves] == [2, 1]
    (line,) = [line for line in [*document.left_out, *document.notes] if "is damaged" in line]
    assert f"sst2.lora.s0/{file} is damaged" in line


def test_a_damaged_grid_file_costs_only_the_order(tmp_path):
    finished(tmp_path)
    (tmp_path / "grid.json").write_text("null", encoding="utf-8")
    document = write(tmp_path)
    assert len(document.rows) == 1
    assert any("grid.json is damaged" in note for note in document.notes)
