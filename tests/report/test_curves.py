"""Training curves."""

import pytest

from planted import finished
from rankwise.report import collect


def test_a_damaged_log_leaves_out_only_the_curve(tmp_path):
    folder = finished(tmp_path)
    folder.append_steps([{"step": 1, "loss": 0.5}])
    (folder.path / "steps.jsonl").write_text("{\n", encoding="utf-8")
    document = collect(tmp_path)
    assert (len(document.runs), document.curves) == (1, [])
    assert any("steps.jsonl is damaged" in note for note in document.notes)


def test_a_curve_is_the_mean_over_seeds_with_its_range(tmp_path):
    for seed, shift in enumerate([0.0, 0.5]):
        folder = finished(tmp_path, seed=seed)
        folder.append_steps([{"step": s, "loss": 1 / s + shift} for s in range(1, 5)])
    (curve,) = collect(tmp_path).curves
    assert curve.steps == [1, 2, 3, 4]
    assert curve.loss == pytest.approx([1.25, 0.75, 1 / 3 + 0.25, 0.5], rel=1e-3)
    assert (curve.low[0], curve.high[0], curve.n) == (1.0, 1.5, 2)


def test_a_long_curve_is_averaged_not_thinned(tmp_path):
    """A loss that jumps between 0 and 1 is 0.5 in every bin."""
    folder = finished(tmp_path)
    folder.append_steps([{"step": s, "loss": float(s % 2)} for s in range(1, 12_001)])
    (curve,) = collect(tmp_path).curves
    assert len(curve.steps) == 120
    assert curve.steps[-1] == 12_000
    assert curve.loss == pytest.approx([0.5] * 120)


def test_scores_during_training_are_means_over_seeds(tmp_path):
    for seed, score in enumerate([0.5, 0.75]):
        folder = finished(tmp_path, seed=seed)
        folder.append_steps(
            [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 1.0, "validation": {"accuracy": score}}]
        )
    (curve,) = collect(tmp_path).curves
    assert (curve.scored, curve.scores) == ([2], [0.625])
