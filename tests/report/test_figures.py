"""Figures, against plotly's own schema and planted numbers."""

import json
import re

import plotly.graph_objects as go
import pytest

from planted import decide, finished
from planted_report import PRUNED, QUERY, REJECTED, START, VALUE, full_document, grid
from rankwise.report import collect, figures
from rankwise.report.html import SECTIONS


def every_figure(document):
    return [figure for *_, draw in SECTIONS for figure in draw(document)]


def test_memory_by_kind_is_drawn_under_a_rank_pattern(tmp_path):
    folder = finished(tmp_path, steps=1000)
    decide(folder, START, PRUNED)
    before, after = (
        dict(zip(figures.KINDS, sizes, strict=True)) for sizes in ((9, 2, 4, 5, 1, 0), (8, 1, 2, 5, 1, 0))
    )
    line = {"loss": 0.5, "lr": 0.1}
    folder.append_steps([{"step": 2, **line, "memory": {"total": 21, **before}}, {"step": 500, **line}])
    folder.append_steps([{"step": 821, **line, "memory": {"total": 17, **after}}])
    figure = figures.rank_memory(collect(tmp_path))["ranks-0"]
    areas = figure.spec["data"]
    assert [area["name"] for area in areas] == list(figures.KINDS[:-1])  # no workspace
    assert all(area["x"] == [2, 821] for area in areas)
    assert [sum(area["y"][place] for area in areas) for place in (0, 1)] == [21, 17]
    assert "21 MB at step 2" in figure.description
    assert "17 MB at step 821" in figure.description


def test_a_layer_has_one_mark_a_step_with_every_proposal(tmp_path):
    refused = REJECTED | {"step": 820, "changes": {VALUE: [16, 1], QUERY: [16, 8]}}
    decide(finished(tmp_path, steps=1000), START, refused, PRUNED)
    done, not_done = figures.ranks(collect(tmp_path))[0].spec["data"][1:]
    assert (done["y"], not_done["y"]) == (["4 value"], ["4 query"])
    (told,) = done["text"]
    assert told.index("16 → 1 (rejected)") < told.index(PRUNED["text"])


def test_every_figure_fits_plotlys_schema(tmp_path):
    made = every_figure(full_document(tmp_path))
    assert {figure.key.partition("-")[0] for figure in made} == {
        *("score", "difference", "memory", "speed", "parameters", "loss", "validation", "ranks")
    }
    for figure in made:
        plain = json.loads(json.dumps(figure.spec, allow_nan=False).replace('"ranks"', '"Blues"'))
        text = json.dumps(plain)
        for name in sorted(set(re.findall(r"var\(--\w+\)", text))):
            text = text.replace(name, "#123456")
        go.Figure(json.loads(text))  # raises where a property or value isn't plotly's


def test_memory_is_stacked_by_kind_and_sums_to_the_total(tmp_path):
    document = full_document(tmp_path)
    bars = [trace for trace in figures.memory(document)[0].spec["data"] if trace["type"] == "bar"]
    assert [trace["name"] for trace in bars] == list(figures.KINDS)
    assert [sum(trace["x"][row] for trace in bars) for row in range(3)] == [183.0] * 3
    assert document.rows[0].peak_mb == 183.0


def test_memory_without_kinds_is_one_bar_a_method(tmp_path):
    grid(tmp_path)
    (trace,) = figures.memory(collect(tmp_path))[0].spec["data"]
    assert trace["x"] == [500.0] * 3


def test_a_method_has_one_colour_throughout(tmp_path):
    document = full_document(tmp_path)
    style = figures.style_of(document)
    assert style.colour("full") == "var(--full)"
    assert style.colour("lora") != style.colour("lora:rank=2")
    for figure in figures.scores(document):
        means = [trace for trace in figure.spec["data"] if "error_x" in trace]
        assert [trace["marker"]["color"] for trace in means] == [
            style.colour(r.method) for r in document.rows[:3]
        ]


def test_published_scores_are_drawn_as_published(tmp_path):
    document = full_document(tmp_path)
    first = figures.scores(document)[0]
    hollow = [trace for trace in first.spec["data"] if trace["marker"].get("symbol") == "diamond-open"]
    assert [trace["x"][0] for trace in hollow] == [
        pytest.approx(100 * entry["score"]) for entry in document.published_scores if entry["task"] == "sst2"
    ]
    assert all("published, full task" in trace["text"][0] for trace in hollow)
    assert len(hollow) > 0


def test_evidence_stands_at_its_decision(tmp_path):
    document = full_document(tmp_path)
    _, done, refused = figures.ranks(document)[0].spec["data"]
    assert (done["x"], done["y"]) == ([820], ["4 value"])
    assert PRUNED["text"] in done["text"][0]
    assert (refused["x"], refused["y"]) == ([900], ["4 query"])
    assert refused["text"][0].endswith("16 → 8 (rejected)")
