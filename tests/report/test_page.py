"""The page in a real browser.

The grid has 3 tasks × 4 methods × 3 seeds. One run of each method is trained; its folder is copied for the other tasks and seeds, with
scores and predictions of their own.
"""

import itertools
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from playwright.sync_api import sync_playwright

from planted import decide, finished
from rankwise.config import DataOptions, ModelOptions, RunConfig, TrainOptions
from rankwise.config_json import to_json
from rankwise.report import html as page_of
from rankwise.report import write
from rankwise.run_folder import RunFolder, run_name, write_grid
from rankwise.runs.config import CompareConfig
from rankwise.runs.run import execute
from rankwise.tasks.registry import TASKS
from tiny import model_folder, reviews

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium isn't installed (Debian's package chromium)"),
]

QUIET = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"]
QUIET += ["--disable-background-networking", "--disable-component-update"]
TASK_NAMES, METHODS, SEEDS = ("sst2", "rte", "mrpc"), ("full", "lora", "lora:rank=2", "lora:rank=16"), 3
EVIDENCE = "step 4: value, layer 1: 8 → 3; held-out loss without the 5: +0.0004 ± 0.0011"


def data_folder(folder: Path) -> Path:
    """Three tasks whose label is a word in the text."""
    for task in map(TASKS.__getitem__, TASK_NAMES):
        (folder / task.name).mkdir()
        for split, n, seed in (("train", 48, 0), ("validation", 40, 1)):
            rows = reviews(n, seed)
            columns = {task.text: [row["text"] for row in rows], "idx": list(range(n))}
            columns["label"] = [int(row["label"] == "positive") for row in rows]
            if task.text_pair:
                columns[task.text_pair] = ["the film"] * n
            pq.write_table(pa.table(columns), folder / task.name / f"{split}.parquet")
    return folder


def copied(source: RunFolder, folder: RunFolder, run: RunConfig, number: int) -> None:
    """A run of another task or seed: the same logs and settings, some predictions turned round."""
    shutil.copytree(source.path, folder.path)
    resolved = source.read_run()["resolved"] | {"task": run.task, "seed": run.seed}
    folder.update_run_json(requested=to_json(run), resolved=resolved)
    table = source.read_predictions()
    label, prediction = (table[name].to_numpy().copy() for name in ("label", "prediction"))
    turned = np.random.default_rng(number).choice(len(label), number % 7, replace=False)
    prediction[turned] = 1 - prediction[turned]
    logits = np.array(table["logits"].to_pylist(), dtype=np.float32)
    folder.write_predictions(table["idx"].to_numpy(), label, prediction, logits)
    entries = {"task": run.task, "seed": run.seed, "score": float((label == prediction).mean())}
    folder.write_result(source.read_result() | entries)


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    """The grid's folder with its report; one run has rank decisions."""
    here = tmp_path_factory.mktemp("grid")
    config = CompareConfig(
        tasks=TASK_NAMES,
        methods=METHODS,
        seeds=SEEDS,
        out=here / "runs",
        data=DataOptions(data=data_folder(tmp_path_factory.mktemp("glue"))),
        model=ModelOptions(
            model=str(model_folder(tmp_path_factory.mktemp("model"))), dtype="float32", threads=1
        ),
        train=TrainOptions(epochs=2, batch_size=8, evaluate_every=6),
    )
    trained: dict[str, RunFolder] = {}
    for number, run in enumerate(config.runs()):
        folder = RunFolder(config.out / run_name(run.task, run.method, run.seed))
        if run.method in trained:
            copied(trained[run.method], folder, run, number)
            continue
        folder.write_request(to_json(run), {"keep_model": False})
        execute(folder, lambda event: None)
        trained[run.method] = folder
    write_grid(config.out, to_json(config) | {"command": "rankwise compare --out runs"})
    layers = [f"bert.encoder.layer.{i}.attention.self.{name}" for i in (0, 1) for name in ("query", "value")]
    ranks = dict.fromkeys(layers, 8)
    decide(
        RunFolder(config.out / "rte.lora.s0"),
        {"step": 0, "kind": "start", "accepted": True, "ranks": ranks},
        {"step": 4, "kind": "prune", "accepted": True, "changes": {layers[3]: [8, 3]}, "text": EVIDENCE},
        {"step": 8, "kind": "prune", "accepted": False, "changes": {layers[0]: [8, 1]}, "text": "step 8: no"},
    )
    write(config.out)
    return config.out


@pytest.fixture(scope="module")
def document(out) -> dict:
    return json.loads((out / "report.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield chromium
        chromium.close()


class Reader:
    """A page in the browser, with its messages and its requests."""

    def __init__(self, browser, file: Path, **settings):
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **settings})
        self.page = self.context.new_page()
        self.messages: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.messages.append(message.text))
        self.page.on("pageerror", lambda error: self.messages.append(str(error)))
        self.page.on("dialog", lambda dialog: self.messages.append("a dialog"))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.address = file.as_uri()
        self.page.goto(self.address)
        self.page.wait_for_selector("html[data-drawn=all]")

    def column(self, name: str) -> list[str]:
        place = self.page.locator("#results thead th").all_inner_texts().index(name) + 1
        return self.page.locator(f"#results tbody tr > :nth-child({place})").all_inner_texts()

    def rows(self) -> list[tuple[str, str]]:
        tasks = [text.split()[0] for text in self.column("Task")]
        return list(zip(tasks, self.column("Method"), strict=True))

    def run(self, script: str):
        return self.page.evaluate(script)


@pytest.fixture
def reader(browser, out, request):
    made = Reader(browser, out / "report.html", **getattr(request, "param", {}))
    yield made
    made.context.close()


@pytest.fixture(scope="module", params=["light", "dark"])
def shared(browser, out, request):
    """A page for tests that change nothing on it."""
    made = Reader(browser, out / "report.html", color_scheme=request.param)
    yield made
    made.context.close()


def luminance(colour: str) -> float:
    """WCAG's relative luminance of `rgb(r, g, b)`, or of Chromium's `color(srgb r g b)`."""
    numbers = [float(n) for n in re.findall(r"[\d.]+", colour)[:3]]
    values = numbers if colour.startswith("color(") else [n / 255 for n in numbers]
    red, green, blue = (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(first: str, second: str) -> float:
    low, high = sorted([luminance(first), luminance(second)])
    return (high + 0.05) / (low + 0.05)


BOTH = pytest.mark.parametrize("reader", [{"color_scheme": "light"}, {"color_scheme": "dark"}], indirect=True)


@BOTH
def test_the_page_makes_no_error_and_no_request(reader):
    reader.page.mouse.wheel(0, 20_000)
    reader.page.locator("#scheme").click()
    reader.page.locator("#results th button").first.click()
    reader.page.pdf()
    assert reader.messages == []
    assert reader.requests == [reader.address]


def test_the_content_security_policy_blocks_requests(reader):
    """Whatever a script might ask for."""
    left = reader.run("fetch('http://127.0.0.1:9/').then(() => 'left', () => 'refused')")
    assert left == "refused"
    assert any("Content Security Policy" in line for line in reader.messages)


def test_the_page_is_one_file_below_six_megabytes(out):
    page = (out / "report.html").read_text(encoding="utf-8")
    assert len(page.encode()) <= 6e6
    assert not re.search(
        r"<(script|img|link|iframe)[^>]*\s(src|href)=[\"']?(https?:|//)", page.partition("<script")[0]
    )


def test_the_first_screen_has_the_answer_and_the_table(shared, document):
    assert shared.page.locator("h1").inner_text() == document["answer"][0]
    assert shared.page.locator(".answer li").all_inner_texts() == document["answer"][1:]
    assert shared.page.locator("#results").bounding_box()["y"] < 400
    assert shared.rows() == [(row["task"], row["method"]) for row in document["rows"]]
    shown = [float(text.split()[0]) for text in shared.column("Score")]
    assert shown == [pytest.approx(100 * row["score"]["mean"], abs=0.006) for row in document["rows"]]


def test_every_plot_is_drawn_completely(shared, document):
    plots, svgs = (
        shared.page.locator(f".plot{inside}:visible").count() for inside in ("", " .main-svg:first-child")
    )
    assert plots == svgs
    points = "(key) => document.querySelectorAll(`#${key} .scatterlayer .point`).length"
    for place in range(len(TASK_NAMES)):
        assert shared.page.evaluate(points, f"score-{place}") == len(METHODS) * (1 + SEEDS)
        assert shared.page.evaluate(points, f"difference-{place}") == (len(METHODS) - 1) * (1 + SEEDS)
        assert shared.page.evaluate(points, f"parameters-{place}") == len(METHODS)
        assert shared.page.locator(f"#speed-{place} .barlayer .point").count() == len(METHODS)
        assert shared.page.locator(f"#memory-{place} .barlayer .point").count() >= len(METHODS)
        assert shared.page.locator(f"#loss-{place} .scatterlayer .js-line").count() >= len(METHODS)
        assert shared.page.locator(f"#validation-{place} .scatterlayer .js-line").count() == len(METHODS)
    assert shared.page.locator("#ranks-0 .heatmaplayer image").count() == 1


def test_the_table_sorts_both_ways(reader, document):
    heading = reader.page.locator("#results th", has_text="Score")
    scores = {(row["task"], row["method"]): row["score"]["mean"] for row in document["rows"]}
    for direction, sign in (("descending", -1), ("ascending", 1)):
        heading.locator("button").click()
        assert heading.get_attribute("aria-sort") == direction
        found = [scores[row] for row in reader.rows()]
        assert found == sorted(found, key=lambda score: sign * score)
    assert sorted(reader.rows()) == sorted(scores)


def test_empty_cells_sort_last_either_way(reader):
    """Full fine-tuning has no difference to itself."""
    for _ in range(2):
        reader.page.locator("#results th", has_text="Δ full").locator("button").click()
        assert [method for _, method in reader.rows()][-3:] == ["full"] * 3


def test_everything_works_by_keyboard(reader, document):
    seen = []
    for _ in range(60):
        reader.page.keyboard.press("Tab")
        seen.append(
            reader.run(
                "(() => { const e = document.activeElement; const s = getComputedStyle(e);"
                " return [e.tagName, e.id || e.className || '', e.textContent.trim().slice(0, 30), s.outlineStyle]; })()"
            )
        )
        if seen[-1][1] == "which":
            break
    reached = {(tag, name) for tag, name, *_ in seen}
    assert seen[0][:2] == ["A", "skip"]
    assert {("BUTTON", "scheme"), ("DIV", "scroll"), ("SELECT", "which")} <= reached
    headings = reader.page.locator("#results th button").all_inner_texts()
    assert [text for tag, name, text, _ in seen if tag == "BUTTON" and name == ""] == headings
    assert all(outline != "none" for *_, outline in seen)
    before = reader.rows()
    reader.page.locator("#results th button", has_text="Trained").focus()
    reader.page.keyboard.press("Enter")
    trained = {(row["task"], row["method"]): row["trainable"] for row in document["rows"]}
    assert reader.rows() != before
    assert [trained[row] for row in reader.rows()] == sorted(trained.values(), reverse=True)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_colour_scheme_is_followed_and_can_be_switched(browser, out, scheme):
    reader = Reader(browser, out / "report.html", color_scheme=scheme)
    colours = (
        "(() => { const c = (q, p) => getComputedStyle(document.querySelector(q))[p];"
        " return { page: c('body', 'backgroundColor'), text: c('body', 'color'), quiet: c('.caption', 'color'),"
        " panel: c('.panel', 'backgroundColor'), tick: c('#score-0 .xtick text', 'fill') }; })()"
    )
    first = reader.run(colours)
    assert (luminance(first["page"]) < 0.2) == (scheme == "dark")
    reader.page.locator("#scheme").click()
    reader.page.wait_for_selector(f"html[style*={'light' if scheme == 'dark' else 'dark'}]")
    second = reader.run(colours)
    assert (luminance(second["page"]) < 0.2) == (scheme == "light")
    for found in (first, second):  # WCAG AA for text
        assert contrast(found["text"], found["page"]) >= 4.5
        assert contrast(found["quiet"], found["page"]) >= 4.5
        assert contrast(found["tick"], found["panel"]) >= 4.5
    reader.context.close()


def test_method_colours_contrast_with_the_panel(shared):
    panel = shared.run("getComputedStyle(document.querySelector('.panel')).backgroundColor")
    for name in ("full", *(f"m{i}" for i in range(7))):  # WCAG's 3:1 for graphics
        assert contrast(shared.run(f"colour('var(--{name})')"), panel) >= 3, name


@pytest.mark.parametrize("width", [360, 768, 2560])
def test_the_page_fits_any_width(browser, out, width):
    reader = Reader(browser, out / "report.html", viewport={"width": width, "height": 800})
    assert reader.run("document.documentElement.scrollWidth") <= width
    boxes = reader.run(
        "[...document.querySelectorAll('.plot .main-svg')].map(e => e.getBoundingClientRect().right)"
    )
    assert max(boxes) <= width
    reader.context.close()


def test_pointing_at_a_decision_shows_its_evidence(shared):
    shared.page.locator("#ranks-0").scroll_into_view_if_needed()
    box = shared.page.locator("#ranks-0 .scatterlayer .trace:first-child .point").bounding_box()
    shared.page.mouse.move(box["x"] + box["width"] / 2 + 1, box["y"] + box["height"] / 2 + 1, steps=4)
    shown = shared.page.locator("#ranks-0 .hoverlayer .hovertext", has_text=EVIDENCE)
    shown.wait_for()
    assert shown.is_visible()


def test_decisions_can_be_read_without_a_mouse(shared):
    shared.page.locator("#ranks summary").focus()
    shared.page.keyboard.press("Enter")
    assert EVIDENCE in shared.page.locator("#ranks ol").inner_text()


def test_printing_is_light_and_restores_the_screen(browser, out):
    reader = Reader(browser, out / "report.html", color_scheme="dark")
    width = "document.querySelector('#score-0 .main-svg').getBoundingClientRect().width"
    panel = "getComputedStyle(document.querySelector('.panel')).backgroundColor"
    reader.run(f"addEventListener('beforeprint', () => {{ window.printed = [{panel}, {width}] }})")
    before = reader.run(width)
    assert reader.page.pdf().startswith(b"%PDF")
    printed_panel, printed_width = reader.run("window.printed")
    assert luminance(printed_panel) > 0.9
    assert printed_width < before
    assert reader.run(width) == before
    assert reader.run("document.body.className") == ""
    reader.context.close()


def test_text_from_data_is_shown_and_never_executed(browser, tmp_path):
    nasty = '<img src=x onerror="window.hit=1"></script><script>window.hit=1</script><b>{{7*7}}</b>'
    for method in ("full", nasty):
        name = "full" if method == "full" else "lora"
        folder = finished(tmp_path, method=name, wrong=(0,) if name == "lora" else (), metric=nasty)
        folder.append_steps([{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}])
        decide(
            folder, {"step": 0, "ranks": {nasty: 3}}, {"step": 1, "changes": {nasty: [3, 1]}, "text": nasty}
        )
        entries = {"task": nasty, "method": method, "model": nasty, "scores": {"validation": {nasty: 1.0}}}
        folder.write_result(folder.read_result() | entries)
        folder.update_run_json(task={"label_names": [nasty, nasty]}, versions={nasty: nasty})
    broken = finished(tmp_path, task="rte")
    (broken.path / "result.json").write_text(nasty, encoding="utf-8")
    write(tmp_path)
    reader = Reader(browser, tmp_path / "report.html")
    assert reader.run("window.hit") is None
    assert reader.messages == []
    assert reader.requests == [reader.address]
    assert (
        reader.run("document.querySelectorAll('img, b, main script').length")
        == reader.page.locator(".about b").count()
    )
    assert nasty in reader.page.locator("#results tbody").inner_text()
    assert nasty.partition("</script>")[0] in reader.page.locator("#score-0").text_content()
    reader.context.close()


def test_a_live_page_reloads_and_keeps_the_sorting(browser, tmp_path, monkeypatch):
    monkeypatch.setattr(page_of, "RELOAD_SECONDS", 4)  # at 1 it may leave while the browser is asked about it
    write_grid(tmp_path, {"tasks": ["sst2"], "methods": ["full", "lora"], "seeds": 1})
    finished(tmp_path, method="full", wrong=(0, 1))
    write(tmp_path, live=True)
    reader = Reader(browser, tmp_path / "report.html")
    assert "1 of 2 runs are finished" in reader.page.locator(".notice").first.inner_text()
    reader.page.locator("#results th button", has_text="Score").click()
    finished(tmp_path, method="lora", wrong=(0,))
    write(tmp_path)
    reader.page.wait_for_selector("#results tbody tr:nth-child(2)")
    reader.page.wait_for_selector("html[data-drawn=all]")
    assert reader.rows() == [("sst2", "lora"), ("sst2", "full")]  # still by score, the highest first
    assert reader.run("document.documentElement.dataset.live") is None
    assert reader.messages == []
    assert set(reader.requests) == {reader.address}
    reader.context.close()


def test_damaged_runs_are_named_on_the_page(browser, out, tmp_path):
    copy = tmp_path / "runs"
    shutil.copytree(out, copy)
    (copy / "rte.lora.s1" / "predictions.parquet").write_bytes(b"PAR1")
    (copy / "sst2.full.s0" / "result.json").write_text('{"task": "sst2"', encoding="utf-8")
    write(copy)
    reader = Reader(browser, copy / "report.html")
    notice = reader.page.locator(".notice").inner_text()
    assert "2 runs not in these figures" in notice
    assert "rte.lora.s1/predictions.parquet is damaged" in notice
    assert "sst2.full.s0/result.json is damaged" in notice
    seeds = dict(zip(reader.rows(), reader.column("n"), strict=True))
    assert (seeds["rte", "lora"], seeds["sst2", "full"], seeds["mrpc", "lora"]) == ("2", "2", "3")
    reader.context.close()


def test_texts_of_language_models_stand_below_their_prompt(browser, tmp_path):
    hostile = "<script>alert(1)</script> costs\nless"
    for method, text in (("full", "It is cheap ."), ("lora", hostile)):
        folder = finished(tmp_path, "e2e", method, 0)
        folder.write_texts(
            [
                {
                    "idx": i,
                    "prompt": f"name : Zizzi {i}",
                    "references": ["Zizzi is cheap ."],
                    "text": f"{i} {text}",
                }
                for i in range(2)
            ]
        )
    write(tmp_path)
    reader = Reader(browser, tmp_path / "report.html")
    section = reader.page.locator("#written")
    assert section.locator(".prompt").all_inner_texts() == ["name : Zizzi 0", "name : Zizzi 1"]
    first = section.locator("article").first
    assert first.locator("dt").all_inner_texts() == ["reference", "full", "lora"]
    assert first.locator("dd").all_inner_texts() == ["Zizzi is cheap .", "0 It is cheap .", f"0 {hostile}"]
    heights = [box.bounding_box() for box in first.locator("dd").all()]
    assert all(a["y"] + a["height"] <= b["y"] for a, b in itertools.pairwise(heights)), "no overlap"
    assert reader.page.locator("nav a", has_text="Texts").count() == 1
    assert (reader.messages, reader.requests) == ([], [reader.address])
