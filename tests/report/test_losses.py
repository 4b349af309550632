"""Grids of language models: a lower cross-entropy is better, and rows are won by the lower loss."""

import re

import numpy as np
import pytest

from planted import finished
from planted_report import row_of
from rankwise import report
from rankwise.report import collect
from rankwise.report.page_table import columns
from rankwise.report.table import cells

N = 60


def trained(out, method, loss, seed):
    """A run whose rows all have about this loss."""
    losses = (loss + np.linspace(0, 0.1, N) + 0.001 * seed).astype(np.float32)
    mean = float(losses.mean())
    scores = {
        "validation": {
            "cross_entropy": mean,
            "perplexity": float(np.exp(mean)),
            "token_accuracy": 0.5,
            "loss": mean,
        }
    }
    folder = finished(
        out, "e2e", method, seed, wrong=(), n=N, metric="cross_entropy", score=mean, scores=scores
    )
    kept = np.stack([losses, np.full(N, 9), np.full(N, 5)], axis=1).astype(np.float32)
    folder.write_predictions(np.arange(N), np.zeros(N, np.float32), losses, kept)


@pytest.fixture
def grid(tmp_path):
    for seed in range(3):
        trained(tmp_path, "full", 1.5, seed)
        trained(tmp_path, "lora", 1.4 - 0.002 * seed, seed)
        trained(tmp_path, "lora:rank=1", 1.6 + 0.002 * seed, seed)
    return tmp_path


def test_the_method_with_the_lower_loss_is_ahead(grid):
    document = collect(grid)
    lora, small = row_of(document, "lora", "e2e"), row_of(document, "lora:rank=1", "e2e")
    assert (lora.only_this, lora.only_full, lora.verdict) == (N, 0, "shown")
    assert (small.only_this, small.only_full, small.verdict) == (0, N, "shown")
    assert document.answer[0] == (
        "lora is ahead of full fine-tuning on e2e; lora:rank=1 is behind full fine-tuning on e2e."
    )
    assert "−0.1020 ± 0.0050 cross_entropy against full." in document.answer[1]


def test_losses_are_written_as_they_are_and_shares_in_points(grid):
    row = row_of(collect(grid), "lora", "e2e")
    assert cells(row)[3].startswith("1.4490 ± 0.0025 cross_entropy, perplexity 4.2")
    assert cells(row)[4] == "-0.1020 ± 0.0050"
    report.write(grid)
    page = (grid / "report.html").read_text()
    assert "cross_entropy above or below full" in page
    assert "cross_entropy in %" not in page


def test_legends_name_the_unit_of_a_loss(grid):
    document = collect(grid)
    assert "Δ full: paired difference from full fine-tuning over the same seeds, in cross_entropy." in (
        document.notes
    )
    about = {column.name: column.about for column in columns(document)}
    assert about["Δ full"].endswith(", in cross_entropy")
    assert about["perplexity"] == "Mean over seeds"
    assert about["token_accuracy"] == "Mean over seeds, in %"
    report.write(grid)
    for name in ("report.html", "report.md"):
        written = (grid / name).read_text()
        assert "over the same seeds, in cross_entropy" in written.replace("\\_", "_")
        assert "points" not in re.sub(r"<script.*?</script>", "", written, flags=re.DOTALL)


def test_legends_name_both_units_where_tasks_have_both(grid):
    for method in ("full", "lora"):
        finished(grid, method=method)
    assert any(
        note.endswith("over the same seeds, in points or in cross_entropy.") for note in collect(grid).notes
    )


def test_without_full_the_lowest_loss_is_named(tmp_path):
    for method, loss in (("lora", 1.4), ("lora:rank=1", 1.6)):
        trained(tmp_path, method, loss, 0)
    assert collect(tmp_path).answer[0] == "Best mean score: e2e 1.4500 cross_entropy (lora)."
