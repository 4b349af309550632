"""What the report says beside its table: the answer in words, curves, rank maps, disagreements, figures, and keeping fresh."""

import json
import re
import threading
import time

import numpy as np
import plotly.graph_objects as go
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from planted import N, decide, finished, request
from rankwise.config import DataOptions, to_json
from rankwise.errors import RankwiseError
from rankwise.report import collect, figures, watch, write
from rankwise.report import to_json as report_json
from rankwise.report.html import SECTIONS
from rankwise.report.rank_pattern import short_names
from rankwise.run_folder import RunFolder, write_grid


def grid(out, *, seeds=3, tasks=("sst2", "rte"), n=200, better=0, worse=20, **entries):
    """full wrong on the first 40 of 200 rows or so, `lora` on `worse` more, `lora:rank=2` on `better` fewer; a seed moves all alike."""
    for task in tasks:
        for seed in range(seeds):
            for method, wrong in (("full", 40), ("lora", 40 + worse), ("lora:rank=2", 40 - better)):
                extra = (seed + 1) * (method == "lora")  # so that differences have a spread
                finished(out, task, method, seed, n=n, wrong=range(wrong + seed + extra), **entries)
    write_grid(out, {"tasks": list(tasks), "methods": ["full", "lora", "lora:rank=2"], "seeds": seeds})


# The answer


def test_the_headline_names_who_is_behind_and_for_whom_nothing_is_shown(tmp_path):
    grid(tmp_path)
    assert collect(tmp_path).answer[0] == (
        "lora is behind full fine-tuning on sst2 and rte; for lora:rank=2 no difference is shown."
    )


def test_the_headline_names_who_is_ahead(tmp_path):
    grid(tmp_path, worse=-25, tasks=("rte",))
    assert collect(tmp_path).answer[0].startswith("lora is ahead of full fine-tuning on rte; ")


def test_no_difference_shown_is_said_as_that(tmp_path):
    grid(tmp_path, worse=0, seeds=2)
    document = collect(tmp_path)
    assert (
        document.answer[0]
        == "No difference from full fine-tuning is shown for lora and lora:rank=2 on sst2 and rte."
    )
    assert any(note.startswith("Not shown is not equal") for note in document.notes)


def test_rows_alone_do_not_make_a_difference_that_seeds_do_not_bear_out(tmp_path):
    """20 rows are lost in one seed and won in the other: with all rows decided, the seeds still say nothing."""
    for seed, (full, lora) in enumerate([(10, 40), (10, 11)]):
        finished(tmp_path, method="full", seed=seed, n=200, wrong=range(full))
        finished(tmp_path, method="lora", seed=seed, n=200, wrong=range(lora))
    document = collect(tmp_path)
    (row,) = [row for row in document.rows if row.method == "lora"]
    assert row.p_rows < 0.05 < row.p_seeds
    assert row.verdict == "open"
    assert document.answer[0] == "lora may be behind full fine-tuning on sst2 (one of two tests says so)."


def test_one_seed_decides_by_rows_and_says_what_it_cannot_know(tmp_path):
    grid(tmp_path, seeds=1, tasks=("sst2",))
    (headline, *_), (row,) = (
        collect(tmp_path).answer,
        [r for r in collect(tmp_path).rows if r.method == "lora"],
    )
    assert (row.p_seeds, row.verdict) == (None, "shown")
    assert headline.endswith("with one seed, nothing is known about spread between runs.")


def test_the_cost_stands_beside_the_score(tmp_path):
    for seed in range(2):
        finished(tmp_path, method="full", seed=seed, samples_per_second=50.0, peak_rss_mb=1000.0)
        finished(tmp_path, seed=seed, samples_per_second=150.0, peak_rss_mb=250.0, wrong=(0, 1))
    assert collect(tmp_path).answer[1] == (
        "lora trains 3 % of the parameters, in 25 % of full's peak memory, at 3.0× its rows/s; −5.00 ± 0.00 points against full."
    )


def test_without_full_the_best_mean_is_named_and_nothing_claimed(tmp_path):
    finished(tmp_path)
    finished(tmp_path, method="lora:rank=2", wrong=range(4))
    assert collect(tmp_path).answer == [
        "Highest mean score: sst2 95.00 accuracy (lora).",
        "Full fine-tuning is not in this grid, so nothing is compared with it. Add it with --methods full.",
    ]


def test_tests_over_seeds_are_corrected_over_the_whole_table(tmp_path):
    grid(tmp_path)
    rows = [row for row in collect(tmp_path).rows if row.method == "lora"]
    differences = [-(21 + s) / 200 for s in range(3)]
    t = np.mean(differences) / (np.std(differences, ddof=1) / 3**0.5)
    alone = 1 - abs(t) / (2 + t**2) ** 0.5  # Student with 2 degrees, both tails
    assert [row.p_seeds for row in rows] == [
        pytest.approx(4 * alone, rel=1e-6)
    ] * 2  # first of four, and its equal


# What is inconsistent


def test_predictions_of_another_number_of_rows_are_named_and_left_out(tmp_path):
    finished(tmp_path)
    finished(tmp_path, seed=1, n_validation=N + 1)
    document = write(tmp_path)
    assert len(document.runs) == 1
    assert "sst2.lora.s1 is inconsistent" in document.left_out[0]
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "sst2.lora.s1 is inconsistent" in page
    assert "1 run not in these figures" in page


def test_a_record_whose_settings_cannot_be_read_is_named_and_left_out(tmp_path):
    finished(tmp_path)
    odd = finished(tmp_path, seed=1)
    odd.update_run_json(resolved={"train": {"lr": None}})
    document = collect(tmp_path)
    assert len(document.runs) == 1
    assert "sst2.lora.s1/run.json is damaged (its settings can't be read" in document.left_out[0]


def test_a_damaged_log_costs_the_curve_alone_and_is_named(tmp_path):
    folder = finished(tmp_path)
    folder.append_steps([{"step": 1, "loss": 0.5}])
    (folder.path / "steps.jsonl").write_text("{\n", encoding="utf-8")
    document = collect(tmp_path)
    assert (len(document.runs), document.curves) == (1, [])
    assert any("steps.jsonl is damaged" in note for note in document.notes)


# Curves


def test_a_curve_is_the_mean_over_seeds_between_the_least_and_the_greatest(tmp_path):
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


def test_scores_while_training_are_means_over_seeds(tmp_path):
    for seed, score in enumerate([0.5, 0.75]):
        folder = finished(tmp_path, seed=seed)
        folder.append_steps(
            [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 1.0, "validation": {"accuracy": score}}]
        )
    (curve,) = collect(tmp_path).curves
    assert (curve.scored, curve.scores) == ([2], [0.625])


# Rank maps

QUERY, VALUE = "roberta.encoder.layer.4.attention.self.query", "roberta.encoder.layer.4.attention.self.value"
START = {"step": 0, "kind": "start", "accepted": True, "ranks": {QUERY: 16, VALUE: 16}}
CUT = {
    "step": 820,
    "kind": "prune",
    "accepted": True,
    "ranks": {QUERY: 16, VALUE: 3},
    "changes": {VALUE: [16, 3]},
    "text": "step 820: value, layer 4: 16 → 3; held-out loss without the 13: +0.0004 ± 0.0011",
}
REFUSED = {
    "step": 900,
    "kind": "prune",
    "accepted": False,
    "ranks": {QUERY: 16, VALUE: 3},
    "changes": {QUERY: [16, 8]},
    "evidence": {"loss_increase": 0.01, "error": 0.002, "rows": 100},
}


def test_a_map_has_each_layers_rank_between_decisions(tmp_path):
    decide(finished(tmp_path, steps=1000), START, CUT, REFUSED)
    (found,) = collect(tmp_path).rank_patterns
    assert found.layers == ["4 query", "4 value"]
    assert found.edges == [0, 820, 1000]
    assert found.ranks == [[16, 16], [16, 3]]
    assert [(d.step, d.accepted, d.changes) for d in found.decisions] == [
        (0, True, {}),
        (820, True, {"4 value": (16, 3)}),
        (900, False, {"4 query": (16, 8)}),
    ]
    assert found.decisions[1].text == CUT["text"]
    assert "+0.0100 ± 0.0020" in found.decisions[2].text


def test_under_a_map_stands_what_memory_its_run_took_by_kind(tmp_path):
    folder = finished(tmp_path, steps=1000)
    decide(folder, START, CUT)
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


def test_a_layer_has_one_mark_a_step_with_all_that_was_tried(tmp_path):
    refused = REFUSED | {"step": 820, "changes": {VALUE: [16, 1], QUERY: [16, 8]}}
    decide(finished(tmp_path, steps=1000), START, refused, CUT)
    done, not_done = figures.ranks(collect(tmp_path))[0].spec["data"][1:]
    assert (done["y"], not_done["y"]) == (["4 value"], ["4 query"])
    (told,) = done["text"]
    assert told.index("16 → 1 (rejected)") < told.index(CUT["text"])


def test_changes_alone_make_the_same_map(tmp_path):
    """A line without `ranks` says by its changes what the ranks are, unless it was refused."""
    bare = [{key: value for key, value in line.items() if key != "ranks"} for line in (CUT, REFUSED)]
    decide(finished(tmp_path, steps=1000), START, *bare)
    (found,) = collect(tmp_path).rank_patterns
    assert (found.edges, found.ranks) == ([0, 820, 1000], [[16, 16], [16, 3]])


def test_lines_that_are_no_decision_are_counted_beside_the_map(tmp_path):
    folder = finished(tmp_path)
    decide(folder, START)
    with (folder.path / "ranks.jsonl").open("a", encoding="utf-8") as file:
        file.write("{}\n")
    document = collect(tmp_path)
    assert len(document.rank_patterns) == 1
    assert any("1 line of" in note and "ranks.jsonl" in note for note in document.notes)


def test_every_method_has_a_map_before_any_has_two_and_the_rest_is_counted(tmp_path):
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
def test_layers_have_the_shortest_names_that_tell_them_apart(paths, names):
    assert short_names(paths) == names


# Disagreements


def test_the_rows_methods_disagree_on_come_hardest_first(tmp_path):
    """Row 7: only full is right. Row 3: all but one are right. Row 0: nobody is, so nobody disagrees."""
    for seed in range(2):
        finished(tmp_path, method="full", seed=seed, wrong=(0, 3))
        finished(tmp_path, method="lora", seed=seed, wrong=(0, 7))
        finished(tmp_path, method="lora:rank=2", seed=seed, wrong=(0, 7))
    first, second = collect(tmp_path).examples
    assert (first.idx, first.label, first.text) == (7, "positive", None)
    assert first.right == {"full": (2, 2), "lora": (0, 2), "lora:rank=2": (0, 2)}
    assert first.predicted == {"full": "positive", "lora": "negative", "lora:rank=2": "negative"}
    assert second.idx == 3


def test_texts_come_from_the_tasks_own_rows(tmp_path):
    (tmp_path / "glue" / "sst2").mkdir(parents=True)
    columns = {
        "sentence": [f"row {i}" for i in range(N)],
        "label": [i % 2 for i in range(N)],
        "idx": list(range(N)),
    }
    pq.write_table(pa.table(columns), tmp_path / "glue" / "sst2" / "validation.parquet")
    out = tmp_path / "out"
    for method, wrong in (("full", (5,)), ("lora", (6,))):
        folder = finished(out, method=method, wrong=wrong)
        resolved = to_json(request("sst2", method, 0)) | {
            "data": to_json(DataOptions(data=tmp_path / "glue"))
        }
        folder.update_run_json(resolved=resolved)
    assert {example.idx: example.text for example in collect(out).examples} == {5: ("row 5",), 6: ("row 6",)}


def test_a_row_whose_label_has_changed_since_is_shown_without_text(tmp_path):
    """The data there now is not what the run was scored on."""
    (tmp_path / "glue" / "sst2").mkdir(parents=True)
    columns = {"sentence": ["x"] * N, "label": [1 - i % 2 for i in range(N)], "idx": list(range(N))}
    pq.write_table(pa.table(columns), tmp_path / "glue" / "sst2" / "validation.parquet")
    for method, wrong in (("full", (5,)), ("lora", ())):
        folder = finished(tmp_path / "out", method=method, wrong=wrong)
        resolved = to_json(request("sst2", method, 0)) | {
            "data": to_json(DataOptions(data=tmp_path / "glue"))
        }
        folder.update_run_json(resolved=resolved)
    (example,) = collect(tmp_path / "out").examples
    assert example.text is None


# Figures


def every_figure(document):
    return [figure for *_, draw in SECTIONS for figure in draw(document)]


def full_document(out):
    kinds = {
        "weights": 90.0,
        "gradients": 20.0,
        "optimizer": 40.0,
        "activations": 30.0,
        "batch": 1.0,
        "workspace": 2.0,
    }
    grid(out, model="roberta-base", peak_memory_mb={"total": 183.0, **kinds})
    for folder in sorted(out.glob("*.lora.s?")):
        run = RunFolder(folder)
        run.append_steps([{"step": s, "loss": 1 / s, "validation": {"accuracy": 0.5}} for s in range(1, 20)])
        decide(run, START, CUT, REFUSED)
    return collect(out)


def test_every_figure_is_one_by_plotlys_own_schema(tmp_path):
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


def test_memory_of_runs_that_lack_kinds_is_not_mixed_with_others(tmp_path):
    finished(tmp_path, seed=0, peak_memory_mb={"total": 10.0, "weights": 10.0})
    finished(tmp_path, seed=1)
    (row,) = collect(tmp_path).rows
    assert (row.memory, row.peak_mb) == (None, 500.0)


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


def test_published_figures_are_drawn_as_published(tmp_path):
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
    assert CUT["text"] in done["text"][0]
    assert (refused["x"], refused["y"]) == ([900], ["4 query"])
    assert refused["text"][0].endswith("16 → 8 (rejected)")


# Files


def test_markdown_says_what_the_page_says(tmp_path):
    full_document(tmp_path)
    document = write(tmp_path)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    for heading in (
        "Paired differences from full fine-tuning",
        "Peak memory by kind, MB",
        "Rank pattern",
        "Where methods disagree",
    ):
        assert f"## {heading}\n" in text
    for line in [*document.answer, *document.notes, CUT["text"]]:
        assert "".join(c for c in line if c.isalnum()) in "".join(c for c in text if c.isalnum())


def test_the_summary_for_machines_is_the_document(tmp_path):
    grid(tmp_path)
    document = write(tmp_path)
    stored = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert stored == json.loads(json.dumps(report_json(document)))
    assert [row["verdict"] for row in stored["rows"]] == [None, "shown", "not shown"] * 2
    assert stored["answer"] == document.answer


def test_results_parquet_has_memory_by_kind(tmp_path):
    finished(tmp_path, peak_memory_mb={"total": 3.0, "weights": 1.0, "batch": 2.0})
    write(tmp_path)
    (row,) = pq.read_table(tmp_path / "results.parquet").to_pylist()
    assert (row["peak_mb_total"], row["peak_mb_weights"], row["peak_mb_batch"]) == (3.0, 1.0, 2.0)


# Keeping fresh


def test_watching_writes_at_each_run_and_ends_with_the_last(tmp_path):
    write_grid(tmp_path, {"tasks": ["sst2"], "methods": ["full", "lora"], "seeds": 1})
    seen = []

    def heard(document):
        page = (tmp_path / "report.html").read_text(encoding="utf-8")
        seen.append((len(document.runs), "data-live=" in page))

    def grow():
        while not watching.is_set():
            time.sleep(0.01)
        finished(tmp_path, method="full")
        while not seen:
            time.sleep(0.01)
        finished(tmp_path, method="lora")

    watching = threading.Event()
    grower = threading.Thread(target=grow, daemon=True)
    grower.start()
    watching.set()
    document = watch(tmp_path, heard, seconds=0.02)
    grower.join()
    assert len(document.runs) == 2
    assert seen == [(1, True), (2, False)]


def test_watching_a_finished_grid_writes_once(tmp_path):
    finished(tmp_path)
    seen = []
    watch(tmp_path, seen.append, seconds=0.01)
    assert len(seen) == 1
    assert "data-live=" not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_failed_run_ends_the_wait_for_it(tmp_path):
    write_grid(tmp_path, {"tasks": ["sst2"], "methods": ["full", "lora"], "seeds": 1})
    finished(tmp_path, method="full")
    folder = RunFolder(tmp_path / "sst2.lora.s0")
    folder.write_request({})
    folder.update_run_json(failed="The loss is nan.")
    document = watch(tmp_path, lambda document: None, seconds=0.01)
    assert document.left_out == ["sst2.lora.s0 failed: The loss is nan."]


def test_interrupted_watching_leaves_a_page_that_waits_no_more(tmp_path):
    write_grid(tmp_path, {"tasks": ["sst2"], "methods": ["full", "lora"], "seeds": 1})
    finished(tmp_path)

    def stop(document):
        assert "data-live=" in (tmp_path / "report.html").read_text(encoding="utf-8")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        watch(tmp_path, stop, seconds=0.01)
    # stopped while it told of its first page: that page is the one that is taken back
    assert "data-live=" not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_watching_what_is_no_folder_is_refused(tmp_path):
    with pytest.raises(RankwiseError, match="nowhere is no folder"):
        watch(tmp_path / "nowhere", lambda document: None)
