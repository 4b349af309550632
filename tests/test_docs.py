"""Generated parts of README.md and docs/ are what is stored."""

import importlib
import re
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def figure():
    """Import a module of studies/figures by its name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(ROOT / "studies" / "figures"), *sys.path])
        yield importlib.import_module


@pytest.fixture(scope="module")
def results_table(figure):
    return figure("results_table")


@pytest.mark.parametrize("page", ["README.md", "docs/results.md"])
def test_results_table_is_what_is_stored(results_table, page):
    text = (ROOT / page).read_text()
    assert results_table.with_table(text) == text


def test_results_table_has_the_mean_of_adaptives_seeds(results_table):
    stored = pq.read_table(ROOT / "studies" / "grid.parquet").to_pylist()
    adaptive = [row for row in stored if row["method"] == "adaptive:prefer=size"]
    tasks = {row["task"] for row in adaptive}
    means = [100 * _mean([row["score"] for row in adaptive if row["task"] == task]) for task in tasks]
    lines = (ROOT / "README.md").read_text().splitlines()
    line = next(line for line in lines if line.startswith("| **adaptive rank**, `prefer=size`"))
    assert line.split("|")[2].strip(" *") == f"{_mean(means):.1f}"


def test_results_table_takes_memory_and_speed_of_the_study(results_table):
    run = {"method": "adaptive:prefer=size", "peak_memory_mb": 1234.5, "rows_per_second": 56.7}
    where = {"n_train": 3000, "batch_size": 32, "dtype": "float32", "threads": 2}
    costs = results_table.of_study([run | where])
    lines = results_table.table(results_table.read(*results_table.GRID), costs).splitlines()
    cells = {line.split("|")[1].strip(): line.split("|")[-3:-1] for line in lines if line.startswith("| ")}
    assert [cell.strip() for cell in cells["**adaptive rank**, `prefer=size`"]] == ["1,234 MB", "57"]
    assert [cell.strip() for cell in cells["full fine-tuning"]] == ["–", "–"]


def test_page_without_the_marker_is_refused(results_table):
    with pytest.raises(ValueError, match="no <!-- python studies/figures/results_table.py -->"):
        results_table.with_table("# A page\n")


def test_comparison_table_is_what_is_stored(figure):
    text = (ROOT / "docs" / "results.md").read_text()
    assert figure("comparison_table").with_table(text) == text


def test_appendix_is_what_is_stored(figure):
    appendix = figure("appendix")
    text = (ROOT / "docs" / "appendix.md").read_text()
    assert appendix.with_tables(text) == text


def test_every_stored_file_is_in_the_appendix(figure):
    appendix = figure("appendix")
    text = (ROOT / "studies" / "figures" / "appendix.py").read_text()
    studies = ROOT / "studies"
    elsewhere = {*appendix.GRID, "cost.parquet"}  # the results table has the latter
    stored = [path.relative_to(studies).as_posix() for path in studies.rglob("*.parquet")]
    assert stored
    assert [name for name in stored if f'"{name}"' not in text and name not in elsewhere] == []


def test_tables_of_scaling_are_what_is_stored(figure):
    page = figure("scaling_page")
    text = page.PAGE.read_text()
    assert page.with_tables(text) == text


def test_a_slope_is_the_line_through_the_measurements(figure):
    figure("scaling_page")
    measured = [{"runs": n, "seconds": 3 + 0.02 * n} for n in (250, 500, 1000, 2000)]
    line = importlib.import_module("scaling").slope(measured, "seconds")
    assert (line["slope"], line["intercept"], line["power"]) == pytest.approx((0.02, 3, 1))
    assert line["low"] == pytest.approx(line["high"])


def test_figure_of_the_method_has_the_ranks_of_the_stored_run(figure):
    method = figure("method")
    assert (ROOT / "docs" / "images" / "method.svg").read_text() == method.drawing(method.stored_run())


def test_architectures_drawing_and_table_are_those_of_the_codes_imports(figure):
    architecture = figure("architecture")
    imports, page = architecture.read(), architecture.PAGE.read_text()
    remake = "Imports have changed. Run: python studies/figures/architecture.py"
    assert architecture.IMAGE.read_text() == architecture.drawing(imports), remake
    assert architecture.with_table(page, imports) == page, remake


def _mean(values):
    return sum(values) / len(values)


OF_OTHER_PROGRAMS = re.compile(
    r"torchrun|tensorboard --|#SBATCH|sbatch|vllm|vLLM|ray start|python (studies|bench)"
)


@pytest.mark.parametrize(
    "page",
    sorted(page.relative_to(ROOT).as_posix() for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"))),
)
def test_every_flag_that_a_page_names_is_a_flag_of_some_command(page):
    from rankwise.cli.commands import app

    commands = [app[name] for name in app if name not in ("--help", "-h", "--version")]
    flags = {name for one in commands for a in one.assemble_argument_collection() for name in a.names}
    flags |= {"--config", "--debug", *(name for name in app if name.startswith("-"))}
    lines = [line for line in (ROOT / page).read_text().splitlines() if not OF_OTHER_PROGRAMS.search(line)]
    named = {flag for line in lines for flag in re.findall(r"(?<![\w/-])--[a-z][a-z0-9-]*", line)}
    assert named - flags == set()
