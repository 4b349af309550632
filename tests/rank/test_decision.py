"""What is said of a training's decisions at its end."""

from rankwise.rank.decision import Decision, summary


def decision(kind: str, accepted: bool, increase: float) -> Decision:
    return Decision(50, kind, accepted, {}, {}, increase, 0.002, 200, 0.01, gain=0.2)


def test_the_closing_line_says_what_a_prune_cost_and_what_training_made_of_it():
    said = summary([decision("prune", True, 0.004), decision("undo", False, -0.02)], 1000, 250)
    assert said == (
        "Kept 25 % of 1,000 adapter parameters. Without what was pruned last, the held-out loss rose by 2.0 ± 1.0 % of what the adapter "
        "gains (200 rows); after further training it was 10.0 ± 1.0 % of what the adapter gains lower than before the prune."
    )
    assert "the held-out loss fell by 2.0 ± 1.0 %" in summary([decision("prune", True, -0.004)], 1000, 250)


def test_the_closing_line_says_that_a_prune_was_undone_or_refused():
    undone = summary([decision("prune", True, 0.004), decision("undo", True, 0.02)], 1000, 1000)
    assert undone.endswith(
        "the held-out loss was 10.0 ± 1.0 % of what the adapter gains higher than before it."
    )
    assert summary([decision("prune", False, 0.02)], 1000, 1000).startswith(
        "Kept all 1,000 adapter parameters"
    )
