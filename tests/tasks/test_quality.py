"""How good predictions are, counted by hand, with pandas, and by simulation; and thresholds."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax

from rankwise.errors import RankwiseError
from rankwise.tasks import quality, threshold
from rankwise.tasks.objectives import OBJECTIVES

CLASSES, SEVERAL, NUMBERS = (OBJECTIVES[name] for name in ("classification", "multi-label", "regression"))
NAMES = ["ham", "spam", "other"]


def classified(n=600, seed=0, skill=1.5, classes=3):
    """Labels of uneven classes, and logits that know something of them."""
    draw = np.random.default_rng(seed)
    labels = draw.choice(classes, n, p=np.array([6, 3, 1][:classes]) / sum([6, 3, 1][:classes]))
    logits = draw.normal(size=(n, classes)) + skill * np.eye(classes)[labels]
    return labels.astype(np.int64), logits.astype(np.float32)


def test_classes_and_confusions_are_those_that_pandas_counts():
    labels, logits = classified()
    found = quality.measure(CLASSES, "accuracy", NAMES, labels, logits)
    table = pd.crosstab(pd.Series(labels), pd.Series(logits.argmax(1)))
    assert found.confusion == table.to_numpy().tolist()
    recalls = [table.loc[k, k] / table.loc[k].sum() for k in range(3)]
    precisions = [table.loc[k, k] / table[k].sum() for k in range(3)]
    assert [c.recall for c in found.classes] == pytest.approx(recalls)
    assert [c.precision for c in found.classes] == pytest.approx(precisions)
    assert [c.support for c in found.classes] == np.bincount(labels).tolist()
    assert found.scores["balanced_accuracy"] == pytest.approx(np.mean(recalls))
    f1 = [2 * p * r / (p + r) for p, r in zip(precisions, recalls, strict=True)]
    assert found.scores["macro_f1"] == pytest.approx(np.mean(f1))


def test_baseline_is_the_class_that_training_rows_have_most_often():
    labels, logits = classified()
    assert quality.measure(CLASSES, "accuracy", NAMES, labels, logits).baseline_answer == "ham"
    found = quality.measure(CLASSES, "accuracy", NAMES, labels, logits, most_frequent=["spam"])
    assert found.baseline["accuracy"] == pytest.approx((labels == 1).mean())
    assert found.baseline["balanced_accuracy"] == pytest.approx(1 / 3)


def test_calibration_error_is_the_weighted_gap():
    labels, logits = classified(2000)
    p = softmax(logits.astype(float), axis=1)
    confidence, right = p.max(1), p.argmax(1) == labels
    gap = 0.0
    for low in np.arange(10) / 10:
        inside = (confidence > low) & (confidence <= low + 0.1)
        gap += abs(right[inside].mean() - confidence[inside].mean()) * inside.mean() if inside.any() else 0
    found = quality.measure(CLASSES, "accuracy", NAMES, labels, logits).calibration
    assert found.error == pytest.approx(gap)
    assert sum(found.rows) == 2000


def test_probabilities_that_are_the_shares_are_calibrated():
    draw = np.random.default_rng(0)
    logits = draw.normal(size=(40_000, 3)) * 1.5
    labels = (draw.random(40_000)[:, None] > softmax(logits, axis=1).cumsum(axis=1)).sum(axis=1)
    found = quality.measure(CLASSES, "accuracy", NAMES, labels, logits.astype(np.float32)).calibration
    assert found.error < 0.01
    assert quality.measure(CLASSES, "accuracy", NAMES, labels, 3 * logits).calibration.error > 0.1


def interval(metric, labels, logits):
    found = quality.measure(CLASSES, metric, NAMES, labels, logits).interval
    assert found is not None
    return found


def test_the_interval_covers_the_true_score():
    labels, logits = classified(60_000)
    true, covered = (labels == logits.argmax(1)).mean(), 0
    for i in range(200):
        rows = slice(300 * i, 300 * (i + 1))
        low, high = interval("accuracy", labels[rows], logits[rows])
        covered += low <= true <= high
    assert 182 <= covered <= 198  # 190 are expected


def test_a_bootstrapped_interval_has_the_width_of_the_scores_spread():
    labels, logits = classified(200 * 300)
    parts = [slice(300 * i, 300 * (i + 1)) for i in range(200)]
    spread = np.std([quality.METRICS["mcc"](labels[rows], logits[rows].argmax(1)) for rows in parts])
    low, high = interval("mcc", labels[parts[0]], logits[parts[0]])
    assert (high - low) / 2 / 1.96 == pytest.approx(spread, rel=0.25)


def test_pooled_runs_are_no_more_rows():
    """Three copies of a run say as much as one."""
    labels, logits = classified(400)
    one = quality.measure(CLASSES, "accuracy", NAMES, labels, logits)
    rows = np.tile(np.arange(400), 3)
    copies = quality.measure(
        CLASSES, "accuracy", NAMES, np.tile(labels, 3), np.tile(logits, (3, 1)), groups=rows
    )
    assert copies.n == 400
    assert copies.scores == pytest.approx(one.scores)
    assert copies.interval == pytest.approx(one.interval, abs=0.005)
    wide = quality.measure(
        CLASSES, "mcc", NAMES, np.tile(labels, 3), np.tile(logits, (3, 1)), groups=rows
    ).interval
    assert wide == pytest.approx(quality.measure(CLASSES, "mcc", NAMES, labels, logits).interval, abs=0.02)


def test_runs_on_different_rows_have_no_interval():
    labels, logits = classified(30)
    groups = np.array([0] * 3 + list(range(1, 28)))
    assert quality.measure(CLASSES, "accuracy", NAMES, labels, logits, groups=groups).interval is None


def test_several_labels_have_classes_and_calibration_and_no_confusion():
    draw = np.random.default_rng(0)
    labels = (draw.random((300, 3)) < [0.7, 0.4, 0.1]).astype(np.float32)
    logits = (2 * labels - 1 + draw.normal(size=labels.shape)).astype(np.float32)
    found = quality.measure(SEVERAL, "micro_f1", NAMES, labels, logits)
    taken = logits > 0
    right = (taken & (labels > 0)).sum(0)
    assert [c.recall for c in found.classes] == pytest.approx((right / labels.sum(0)).tolist())
    assert found.confusion is None
    assert sum(found.calibration.rows) == 900
    assert found.baseline_answer == "ham"
    assert found.interval[0] < found.scores["micro_f1"] < found.interval[1]


def test_numbers_have_errors_beside_those_of_the_mean():
    draw = np.random.default_rng(0)
    labels = draw.normal(size=200).astype(np.float32)
    logits = (labels + 0.5 * draw.normal(size=200))[:, None].astype(np.float32)
    found = quality.measure(NUMBERS, "pearson", ["score"], labels, logits)
    assert found.scores["mean_absolute_error"] == pytest.approx(
        np.abs(labels - logits[:, 0]).mean(), rel=1e-5
    )
    assert found.baseline["root_mean_squared_error"] == pytest.approx(labels.std(), rel=1e-5)
    z = np.arctanh(found.scores["pearson"]) + np.array([-1.959964, 1.959964]) / np.sqrt(197)
    assert found.interval == pytest.approx(tuple(np.tanh(z)), abs=1e-6)
    assert (found.classes, found.confusion, found.calibration) == ([], None, None)


@pytest.mark.parametrize("objective", [CLASSES, SEVERAL, NUMBERS], ids=lambda o: o.name)
def test_a_quality_is_stored_and_read_back_and_shown(objective):
    labels, logits = classified(40)
    if objective is SEVERAL:
        labels = np.eye(3, dtype=np.float32)[labels]
    if objective is NUMBERS:
        labels, logits = labels.astype(np.float32), logits[:, :1]
    found = quality.measure(objective, objective.metrics[0], NAMES[: logits.shape[1]], labels, logits)
    assert quality.from_json(json.loads(json.dumps(found.to_json()))) == found
    lines = quality.lines(found)
    assert lines[0].startswith(f"{objective.metrics[0]} {found.scores[objective.metrics[0]]:.4f}")
    assert len(lines) == (2 if objective is NUMBERS else 6)


# ── Thresholds ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("wanted", ["precision=0.9", "recall=0.8"])
def test_a_threshold_is_the_best_that_holds_what_is_wanted(wanted):
    labels, logits = classified(1000)
    found = threshold.find(wanted, "spam", CLASSES, labels, logits, NAMES)
    p, is_it = softmax(logits.astype(float), axis=1)[:, 1], labels == 1
    kind, least = threshold.parse(wanted)
    best = 0.0
    for t in np.unique(p):
        taken = p >= t
        pair = {"precision": is_it[taken].mean(), "recall": (is_it & taken).sum() / is_it.sum()}
        if pair.pop(kind) >= least:
            best = max(best, *pair.values())
    said = found.decide(CLASSES, logits, NAMES)
    assert {"precision": found.precision, "recall": found.recall}[kind] >= least
    assert {"precision": found.recall, "recall": found.precision}[kind] == pytest.approx(best)
    assert is_it[said == 1].mean() == pytest.approx(found.precision)
    assert (is_it & (said == 1)).sum() / is_it.sum() == pytest.approx(found.recall)
    assert found.on(CLASSES, labels, logits, NAMES)["accuracy"] == pytest.approx((said == labels).mean())


def test_rows_below_a_threshold_get_the_best_other_class():
    logits = classified()[1]
    found = threshold.Threshold("ham", 1.1, "precision=1", 1.0, 0.0, 1)
    assert found.decide(CLASSES, logits, NAMES).tolist() == (1 + logits[:, 1:].argmax(1)).tolist()
    assert (
        threshold.Threshold("ham", 0.0, "recall=1", 1.0, 1.0, 1).decide(CLASSES, logits, NAMES) == 0
    ).all()


def test_a_threshold_of_one_label_leaves_the_others():
    logits = np.array([[1.0, -1.0], [-1.0, 1.0], [2.0, 2.0]], dtype=np.float32)
    found = threshold.Threshold("a", 0.8, "precision=0.9", 1.0, 1.0, 3)
    assert found.decide(SEVERAL, logits, ["a", "b"]).tolist() == [[0, 0], [0, 1], [1, 1]]


@pytest.mark.parametrize(
    ("wanted", "name", "said"),
    [
        ("precision=2", "spam", "takes precision or recall with a share"),
        ("f1=0.5", "spam", "takes precision or recall with a share"),
        ("precision=0.9", "spma", "no class 'spma'. Did you mean 'spam'"),
        ("precision=0.9", None, "needs a class"),
        (None, "spam", "goes with `threshold_for=`"),
    ],
)
def test_a_threshold_that_makes_no_sense_is_refused(wanted, name, said):
    with pytest.raises(RankwiseError, match=said):
        threshold.check(wanted, name, CLASSES, NAMES)


def test_a_threshold_that_no_row_allows_is_refused():
    labels, logits = np.array([0, 0, 1, 0]), np.array([[0, 3], [0, 2], [0, 1], [3, 0]], dtype=np.float32)
    with pytest.raises(
        RankwiseError, match=r"No threshold reaches precision=0.9 for 'b' on these 4 rows: the highest"
    ):
        threshold.find("precision=0.9", "b", CLASSES, labels, logits, ["a", "b"])
    with pytest.raises(RankwiseError, match="None of these 4 rows is 'c'"):
        threshold.find("precision=0.9", "c", CLASSES, labels, logits, ["a", "b", "c"])


# ── Tags of words ─────────────────────────────────────────────────────────────────────────────

TAGS = ["O", "B-FILM", "I-FILM", "B-BOOK", "I-BOOK"]


def tagged(n=200, seed=0, skill=2.0):
    """Labels of 1 to 6 words a row, mostly `O`, and logits that know something of them; NaN behind a row's last word."""
    draw = np.random.default_rng(seed)
    lengths = draw.integers(1, 7, n)
    labels = draw.choice(5, (n, 8), p=[0.5, 0.2, 0.1, 0.15, 0.05])
    labels[np.arange(8) >= lengths[:, None]] = -100
    logits = draw.normal(size=(n, 6, 5)) + skill * np.eye(5)[np.maximum(labels[:, :6], 0)]
    logits[labels[:, :6] == -100] = np.nan
    return labels, logits.astype(np.float32)


def test_entities_are_counted_as_seqeval_counts_them():
    seqeval = pytest.importorskip("seqeval.metrics")
    labels, logits = tagged()
    found = quality.measure(OBJECTIVES["tokens"], "entity_f1", TAGS, labels, logits)
    said = OBJECTIVES["tokens"].predict(logits)
    words = [labels[i, :6] != -100 for i in range(len(labels))]
    true, predicted = (
        [[TAGS[t] for t in row[:6][kept]] for row, kept in zip(some, words, strict=True)]
        for some in (labels, said)
    )
    report = seqeval.classification_report(true, predicted, output_dict=True)
    assert [one.name for one in found.classes] == ["BOOK", "FILM"]
    for one in found.classes:
        theirs = report[one.name]
        assert (one.precision, one.recall, one.f1) == pytest.approx(
            (theirs["precision"], theirs["recall"], theirs["f1-score"])
        )
        assert one.support == theirs["support"]
    assert found.scores["entity_f1"] == pytest.approx(seqeval.f1_score(true, predicted))
    assert list(found.scores) == ["entity_f1", "entity_precision", "entity_recall", "accuracy"]
    assert found.interval[0] < found.scores["entity_f1"] < found.interval[1]
    assert (found.baseline_answer, found.baseline["entity_f1"]) == ("O", 0.0)
    assert found.baseline["accuracy"] == pytest.approx(np.mean(labels[labels != -100] == 0))
    assert sum(found.calibration.rows) == (labels != -100).sum()
    assert quality.from_json(found.to_json()) == found
    assert "entities" in quality.lines(found)[2]


def test_the_interval_of_entities_covers_the_score_of_many_more_rows():
    pytest.importorskip("seqeval")
    truth = quality.measure(OBJECTIVES["tokens"], "entity_f1", TAGS, *tagged(4000, 99)).scores["entity_f1"]
    found = [quality.measure(OBJECTIVES["tokens"], "entity_f1", TAGS, *tagged(100, s)) for s in range(20)]
    assert sum(one.interval[0] < truth < one.interval[1] for one in found) >= 16


def test_tags_that_are_no_entities_are_classes_of_words():
    names = ["noun", "verb", "other", "mark", "number"]
    labels, logits = tagged()
    found = quality.measure(OBJECTIVES["tokens"], "accuracy", names, labels, logits, most_frequent=["verb"])
    words = labels != -100
    each, said = labels[words], logits[words[:, :6]].argmax(1)
    assert found.confusion == pd.crosstab(each, said).to_numpy().tolist()
    assert found.scores["accuracy"] == pytest.approx(np.mean(each == said))
    assert [one.support for one in found.classes] == np.bincount(each).tolist()
    assert (found.baseline_answer, found.unit, found.n) == ("verb", "words", 200)
