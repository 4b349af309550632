"""Cross-validation: the folds of a table, and `compare` on a table of your own, to its report."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats as scipy_stats

import tiny
from own_tables import load_table, write
from planted import finished
from rankwise.cli import main
from rankwise.config import RunConfig, TableOptions
from rankwise.config_json import to_json
from rankwise.errors import RankwiseError
from rankwise.report import collect, stats
from rankwise.runs.config import CompareConfig


def fold(path: Path, folds: int, one: int, **options):
    return load_table(path, folds=folds, fold=one, **options)


def test_every_row_is_validated_on_once_and_alike_texts_stay_together(tmp_path):
    lines = [f"text {i % 190},{'rare' if i % 190 < 9 else 'ab'[i % 2]}\n" for i in range(200)]
    path = write(tmp_path / "t.csv", "text,label\n" + "".join(lines))
    parts = [fold(path, 5, i) for i in range(5)]
    held_out = [part.validation["validation"] for part in parts]
    assert sorted(np.concatenate([rows.idx for rows in held_out]).tolist()) == list(range(200))
    for part, rows in zip(parts, held_out, strict=True):
        assert len(part.train) + len(rows) == 200
        assert not set(part.train.text) & set(rows.text)
        assert 36 <= len(rows) <= 44
        assert np.bincount(rows.labels, minlength=3)[2] in range(1, 5)  # the rare class is in each
    assert f"Fold 2 of 5: {len(held_out[1]):,} rows of t.csv are validated on" in parts[1].notes[-1]


def test_folds_of_a_table_that_is_too_small_or_has_validation_rows_are_refused(tmp_path):
    path = write(tmp_path / "t.csv", "text,label\n" + "".join(f"text {i},{'ab'[i % 2]}\n" for i in range(6)))
    with pytest.raises(RankwiseError, match="too small for 9 folds. Give fewer `folds=`"):
        fold(path, 9, 8)
    with pytest.raises(RankwiseError, match="`folds=` validates on every row of t.csv in turn"):
        fold(path, 2, 0, validation=path)


def test_folds_need_a_table_and_no_seeds():
    with pytest.raises(RankwiseError, match="`folds=` is for a table of your own"):
        CompareConfig(folds=5).runs()
    with pytest.raises(RankwiseError, match="`folds=` gives each fold a seed of its own"):
        CompareConfig(folds=5, seeds=3)


def test_the_interval_of_folds_is_the_corrected_one():
    scores = [0.80, 0.84, 0.79, 0.86, 0.81]
    found = stats.estimate(scores, 1 / 4)
    half = scipy_stats.t.ppf(0.975, 4) * np.sqrt((1 / 5 + 1 / 4) * np.var(scores, ddof=1))
    assert found.half == pytest.approx(half)
    differences = dict(enumerate([0.02, 0.01, 0.03, 0.02, 0.00]))
    zero = dict.fromkeys(range(5), 0.0)
    p = stats.paired_t(differences, zero, 1 / 4)
    one = stats.paired_difference(differences, zero, 1 / 4)
    assert (p < 0.05) == (one.low > 0)
    assert p > stats.paired_t(differences, zero)


def planted(out: Path, folds: int = 3) -> None:
    """Folds of 20 rows each, on which `lora` is wrong on a row more than full in every fold."""
    for i in range(folds):
        for method, wrong in (("full", range(i)), ("lora", range(i + 1))):
            folder = finished(out, "t", method, i, wrong=tuple(wrong), idx=np.arange(20) + 20 * i)
            table = TableOptions(train_file=(Path("t.csv"),), folds=folds, fold=i)
            folder.update_run_json(requested=to_json(RunConfig(method=method, seed=i, table=table)))


def test_a_report_of_folds_pools_their_rows_and_says_so(tmp_path):
    planted(tmp_path)
    document = collect(tmp_path)
    full, lora = document.rows
    assert (full.folds, full.score.n, full.n_validation) == (3, 3, 60)
    half = scipy_stats.t.ppf(0.975, 2) * np.sqrt((1 / 3 + 1 / 2) * np.var([1, 0.95, 0.9], ddof=1))
    assert full.score.half == pytest.approx(half)
    assert (lora.only_this, lora.only_full) == (0, 3)
    assert document.qualities["t", "lora"].n == 60
    assert np.sum(document.qualities["t", "lora"].confusion) == 60
    assert any("corrected t test of Nadeau & Bengio (2003)" in note for note in document.notes)
    assert len(document.examples) == 3
    assert document.left_out == []


def test_a_run_of_no_fold_is_left_out_of_a_report_of_folds(tmp_path):
    planted(tmp_path)
    finished(tmp_path, "t", "head", 0)
    document = collect(tmp_path)
    assert {row.method for row in document.rows} in ({"full", "lora"}, {"head"})
    assert any("another cross-validation" in line for line in document.left_out)


@pytest.mark.slow
def test_compare_on_a_table_of_your_own_with_folds(tmp_path, capfd):
    model = tiny.model_folder(tmp_path / "model")
    path = tmp_path / "mine.jsonl"
    rows = [{"review": row["text"], "stars": row["label"]} for row in tiny.reviews(90)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    fast = ["--dtype", "float32", "--epochs", "1", "--lr", "1e-3", "--threads", "1"]
    columns = ["--text", "review", "--label", "stars"]
    out = tmp_path / "grid"
    command = [
        "compare",
        str(path),
        *columns,
        "--model",
        str(model),
        "--methods",
        "lora",
        "head",
        *fast,
        "--out",
        str(out),
    ]
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--folds", "3"])
    assert stopped.value.code == 0
    document = json.loads((out / "report.json").read_text())
    assert [(row["task"], row["method"], row["score"]["n"]) for row in document["rows"]] == [
        ("mine", "lora", 3),
        ("mine", "head", 3),
    ]
    assert sum(run["n_validation"] for run in document["runs"]) == 180
    assert document["planned"] == 6
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--folds", "4"])
    assert stopped.value.code == 2
    assert "table.folds: 3 there, 4 now" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--text", "review"],
            "--text is for a table of your own, and no file is given: rankwise compare reviews.csv --text",
        ),
        (["{file}", "--tasks", "sst2"], "--tasks names tasks by name, and a table of your own is given"),
        (["{file}", "--folds", "1"], "--folds must be a number, 2 or more"),
        (["{file}", "--label", "stars"], "t.csv has no column 'stars'"),
        (["--folds", "5"], "--folds is for a table of your own"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_runs(tmp_path, capfd, arguments, said):
    path = write(tmp_path / "t.csv", "text,label\n" + "".join(f"text {i},{'ab'[i % 2]}\n" for i in range(60)))
    filled = [argument.format(file=path) for argument in arguments]
    with pytest.raises(SystemExit) as stopped:
        main(
            [
                "compare",
                *filled,
                "--model",
                str(tiny.model_folder(tmp_path / "model")),
                "--out",
                str(tmp_path / "out"),
            ]
        )
    assert stopped.value.code == 2
    assert said in capfd.readouterr().err
    assert not (tmp_path / "out").exists()
