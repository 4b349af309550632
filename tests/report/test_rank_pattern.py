"""Rank patterns from the decisions of a run."""

import pytest

from planted import decide, finished
from planted_report import PRUNED, QUERY, REJECTED, START, VALUE
from rankwise.report import collect
from rankwise.report.rank_pattern import short_names


def test_a_pattern_has_each_layers_rank_between_decisions(tmp_path):
    decide(finished(tmp_path, steps=1000), START, PRUNED, REJECTED)
    (found,) = collect(tmp_path).rank_patterns
    assert found.layers == ["4 query", "4 value"]
    assert found.edges == [0, 820, 1000]
    assert found.ranks == [[16, 16], [16, 3]]
    assert [(d.step, d.accepted, d.changes) for d in found.decisions] == [
        (0, True, {}),
        (820, True, {"4 value": (16, 3)}),
        (900, False, {"4 query": (16, 8)}),
    ]
    assert found.decisions[1].text == PRUNED["text"]
    assert "+0.0100 ± 0.0020" in found.decisions[2].text


def test_changes_alone_make_the_same_pattern(tmp_path):
    """A line without `ranks` says by its changes what the ranks are, unless it was refused."""
    bare = [{key: value for key, value in line.items() if key != "ranks"} for line in (PRUNED, REJECTED)]
    decide(finished(tmp_path, steps=1000), START, *bare)
    (found,) = collect(tmp_path).rank_patterns
    assert (found.edges, found.ranks) == ([0, 820, 1000], [[16, 16], [16, 3]])


def test_unreadable_lines_are_counted_in_a_note(tmp_path):
    folder = finished(tmp_path)
    decide(folder, START)
    with (folder.path / "ranks.jsonl").open("a", encoding="utf-8") as file:
        file.write("{}\n")
    document = collect(tmp_path)
    assert len(document.rank_patterns) == 1
    assert any("1 line of" in note and "ranks.jsonl" in note for note in document.notes)


def test_every_method_has_a_pattern_before_any_has_two(tmp_path):
    for seed in range(20):
        for method in ("lora", "lora:rank=2"):
            decide(finished(tmp_path, method=method, seed=seed), START)
    document = collect(tmp_path)
    assert [(m.method, m.seed) for m in document.rank_patterns] == [
        (m, s) for m in ("lora", "lora:rank=2") for s in range(12)
    ]
    assert "16 more runs have a rank pattern; the page draws 24." in document.notes


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        ([QUERY, VALUE], ["4 query", "4 value"]),
        (["h.0.attn.c_proj", "h.0.mlp.c_proj"], ["0 attn.c_proj", "0 mlp.c_proj"]),
        (
            ["layer.0.attention.output.dense", "layer.0.output.dense", "layer.0.intermediate.dense"],
            ["0 attention.output.dense", "0 output.dense", "0 intermediate.dense"],
        ),
        (["dense"], ["dense"]),
        (["e.0.f.1.q", "e.0.f.2.q"], ["0 1.q", "0 2.q"]),
    ],
)
def test_layers_have_the_shortest_distinct_names(paths, names):
    assert short_names(paths) == names
