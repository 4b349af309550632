"""How good predictions are, in the report: over seeds, of old runs, and of damaged ones."""

import numpy as np
import pytest

from planted import finished
from rankwise.report import collect
from rankwise.report.markdown import markdown
from rankwise.report.table import rank_tables
from rankwise.run_folder import RunFolder


def test_seeds_are_pooled_and_rows_counted_once(tmp_path):
    for seed, wrong in enumerate(((0, 1), (0, 2, 3), (0,))):
        finished(tmp_path, seed=seed, wrong=wrong)
    document = collect(tmp_path)
    quality = document.qualities["sst2", "lora"]
    assert quality.n == 20
    assert quality.scores["accuracy"] == pytest.approx(document.rows[0].score.mean)
    assert np.sum(quality.confusion) == 60
    assert quality.classes[0].recall == pytest.approx(
        1 - 4 / 30
    )  # rows 0 (three times) and 2 are of the first class
    low, high = quality.interval or (0.0, 0.0)
    shares = np.array([0, 2 / 3, 2 / 3, 2 / 3, *[1] * 16])
    assert (low + high) / 2 == pytest.approx(shares.mean(), abs=0.03)


def test_page_text_and_json_have_the_same_numbers(tmp_path):
    finished(tmp_path, wrong=(0, 1))
    document = collect(tmp_path)
    assert "| lora | 90.0 | 69.9 to 97.2 | 90.0 | 90.0 |" in markdown(document)
    assert "| always negative | 50.0 |" in markdown(document)
    assert "On sst2 always 'negative' gives 50.00 accuracy." in document.notes


def test_predictions_without_logits_of_use_are_a_note(tmp_path):
    folder = finished(tmp_path)
    table = folder.read_predictions()
    label = table["label"].to_numpy()
    folder.write_predictions(table["idx"].to_numpy(), label, label, np.full((len(label), 2), np.nan))
    document = collect(tmp_path)
    assert document.qualities == {}
    assert any(
        "how good its predictions are can't be measured (a logit isn't a number)" in n for n in document.notes
    )


def test_ranks_of_several_seeds_are_shown_as_their_mean(tmp_path):
    from planted import decide
    from planted_report import PRUNED, QUERY, START, VALUE

    for seed, rank in ((0, 2), (1, 4)):
        entries = {"rank": {QUERY: 16, VALUE: rank}, "adapter_params": 1000 * rank}
        folder = finished(tmp_path, seed=seed, **entries)
        decide(RunFolder(folder.path), START, PRUNED)
    lines = rank_tables(collect(tmp_path))
    assert lines[1] == "Rank pattern of sst2, lora, mean of 2 seeds: 3k, 2k to 4k parameters of the adapter."
    assert [line.split()[-1] for line in lines[3:5]] == ["16", "3"]


def test_tags_of_words_are_measured_and_seeds_with_fewer_words_stand_beside_others(tmp_path):
    pytest.importorskip("seqeval")
    names = ["O", "B-FILM"]
    task = {"label_names": names, "problem": "tokens"}
    for seed, words in enumerate((3, 2)):
        folder = finished(tmp_path, "films", "lora", seed, n=4, metric="entity_f1")
        folder.update_run_json(task=task)
        labels = np.array([[1, 0, -100], [0, -100, -100], [1, -100, -100], [0, 1, -100]])[:, :words]
        logits = np.full((4, words, 2), np.nan, dtype=np.float32)
        said = ((1, 0), (0,), (1,), (0, 0))  # the film in the last row is missed
        for row, tags in enumerate(said):
            logits[row, : len(tags)] = np.eye(2)[list(tags)]
        predictions = np.where(np.isnan(logits[..., 0]), -100, logits.argmax(2))
        folder.write_predictions(np.arange(4), labels, predictions, logits)
    document = collect(tmp_path)
    found = document.qualities["films", "lora"]
    assert (found.n, found.unit) == (4, "entities")
    (film,) = found.classes
    assert (film.name, film.precision, film.recall, film.support) == ("FILM", 1.0, pytest.approx(2 / 3), 6)
    assert found.scores["entity_f1"] == pytest.approx(0.8)
    assert "| FILM | 100.0 | 66.7 | 80.0 | 6 |" in markdown(document)
    assert "On films always 'O' gives 0.00 entity_f1." in document.notes
