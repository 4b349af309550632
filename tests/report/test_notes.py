"""The sentences beside the table: notes, published scores, settings."""

import pytest

from planted import N, finished, request
from planted_report import row_of
from rankwise.report import collect, published
from rankwise.report.table import HEADERS, cells
from rankwise.run_folder import write_grid


def test_shared_machines_are_not_mentioned_without_cause(tmp_path):
    finished(tmp_path)
    assert not any("--jobs" in note for note in collect(tmp_path).notes)


def test_one_seed_shows_no_interval_and_says_so(tmp_path):
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


def test_a_published_score_by_another_metric_is_a_sentence_and_in_no_figure():
    pairs = [("e2e", "gpt2-medium")]
    assert published.scores(pairs) == []
    assert (
        "e2e: lora (0.35M parameters) BLEU 70.4 (published, full task; Hu et al. 2021 (arXiv 2106.09685))"
        in (published.sentences(pairs))
    )


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
def test_published_scores_are_those_of_task_and_model(tmp_path, task, model, found):
    finished(tmp_path, task, model=model)
    lines = collect(tmp_path).published
    assert bool(lines) == found
    assert all(line.startswith("sst2: ") and "(published, full task; " in line for line in lines)
    assert (
        "sst2: lora (query and value, r=8) 0.951 (published, full task; Hu et al. 2021 (arXiv 2106.09685), median of 5)"
        in lines
    ) == found


def test_shared_settings_stand_once(tmp_path):
    for method in ("full", "lora"):
        finished(tmp_path, method=method)
    write_grid(tmp_path, {"command": "rankwise compare --tasks sst2"})
    settings = collect(tmp_path).settings
    assert settings["model"] == "minilm"
    assert settings["recipe"] == "poster"
    assert settings["training"].startswith("3 epochs, batches of 16, adam, linear schedule")
    assert settings["computed in"] == "bfloat16, packed batches, 2 threads"
    assert settings["command"] == "rankwise compare --tasks sst2"


def test_differing_settings_name_their_cells(tmp_path):
    finished(tmp_path, "rte", "full", config=request("rte", "full", 0, epochs=10.0))
    for seed in range(2):
        finished(tmp_path, "rte", "lora", seed, config=request("rte", "lora", seed, epochs=80.0))
    training = collect(tmp_path).settings["training"]
    assert training.startswith("rte full: 10 epochs, ")
    assert "; rte lora: 80 epochs, " in training


def test_runs_that_predict_one_class_are_named(tmp_path):
    finished(tmp_path, "sst2", "full", wrong=range(0, N, 2))  # all are called positive
    finished(tmp_path, "sst2", "lora", wrong=range(0, N - 2, 2))
    said = [note for note in collect(tmp_path).notes if "same class" in note]
    assert len(said) == 1
    assert ": sst2.full.s0. " in said[0]


def test_seeds_trained_on_different_numbers_of_rows_are_named(tmp_path):
    for seed, rows in enumerate([1000, 2000]):
        finished(tmp_path, method="lora", seed=seed, n_train=rows)
        finished(tmp_path, method="full", seed=seed, n_train=1000)
    said = [note for note in collect(tmp_path).notes if "different numbers of rows" in note]
    assert said == ["Seeds of sst2 lora were trained on different numbers of rows: 1,000 to 2,000."]
