"""The report as one page: everything inlined, nothing fetched, text from data escaped by the template.

`page/` holds its template, style and script; plotly's script comes with its package. A content security policy in the page itself keeps
any request from leaving it.
"""

from collections.abc import Callable
from importlib.metadata import version
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from rankwise.cli.progress import clock
from rankwise.report import figures
from rankwise.report.document import Document
from rankwise.report.figures import Figure, Look
from rankwise.report.row import Row
from rankwise.report.stats import Estimate
from rankwise.report.words import count, minus, percent, probability, share

RELOAD_SECONDS = 10
"""Between two looks of a page at itself, while a grid runs."""

SECTIONS: tuple[tuple[str, str, str, Callable[[Document], list[Figure]]], ...] = (
    (
        "accuracy",
        "Scores",
        "Mean over seeds with its 95 % t interval; faint dots are single seeds. Hollow diamonds are published figures of the full task.",
        figures.scores,
    ),
    (
        "differences",
        "Paired differences to full fine-tuning",
        "Method minus full, seed by seed: same rows, same order, same new head. An interval that leaves 0 out is a difference over seeds.",
        figures.differences,
    ),
    (
        "memory",
        "Memory",
        "Peak while training. Blue grows with the model, amber with the batch.",
        figures.memory,
    ),
    (
        "speed",
        "Speed",
        "Training rows a second, the first steps left out: the median seed, and the slowest and fastest.",
        figures.speed,
    ),
    (
        "parameters",
        "Score against parameters",
        "Up and to the left is better: more score from fewer trained parameters.",
        figures.parameters,
    ),
    (
        "curves",
        "Training curves",
        "Training loss by step: the mean over seeds, in a band from the lowest to the highest.",
        figures.losses,
    ),
    ("validation", "Validation score while training", "Mean over seeds.", figures.validation),
    (
        "ranks",
        "Rank map",
        "Each adapted layer's rank from the first step to the last, and the memory that training took. Dots are decisions, crosses those "
        "that were tried and not kept; point at one for its evidence.",
        figures.ranks,
    ),
)
PUBLISHED = " Hollow diamonds are published figures of the full task."


def html(document: Document, *, live: bool = False) -> str:
    """The page.

    Args:
        document: what it says.
        live: it loads itself again every `RELOAD_SECONDS`, for a grid that still runs.
    """
    environment = Environment(
        loader=PackageLoader("rankwise.report", "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "ensure_ascii": False}
    sections = [_section(document, *section) for section in SECTIONS]
    sections = [section for section in sections if section["figures"]]
    own = files("rankwise.report").joinpath("page")
    looks, memory = figures.look(document), figures.rank_memory(document)
    drawn = [*(figure for section in sections for figure in section["figures"]), *memory.values()]
    return environment.get_template("page.html").render(
        document=document,
        columns=_columns(document),
        rows=[_cells(row, document, looks) for row in document.rows],
        key=[_key(method, looks) for method in dict.fromkeys(row.method for row in document.rows)],
        kinds=_kinds(document.rows),
        sections=sections,
        examples=[
            (task, [example for example in document.examples if example.task == task])
            for task in dict.fromkeys(example.task for example in document.examples)
        ],
        rank_memory=memory,
        specs={figure.key: figure.spec for figure in drawn},
        tasks=list(dict.fromkeys((row.task, row.n_train, row.n_validation) for row in document.rows)),
        live=RELOAD_SECONDS if live else None,
        version=version("rankwise"),
        style=own.joinpath("page.css").read_text(encoding="utf-8"),
        script=own.joinpath("page.js").read_text(encoding="utf-8"),
        plotly=files("plotly").joinpath("package_data", "plotly.min.js").read_text(encoding="utf-8"),
    )


def _section(
    document: Document, key: str, title: str, caption: str, draw: Callable[[Document], list[Figure]]
) -> dict[str, Any]:
    if key == "accuracy" and not document.published_scores:
        caption = caption.removesuffix(PUBLISHED)
    if key == "memory" and not any(row.memory for row in document.rows):
        caption = "Peak while training."
    return {"key": key, "title": title, "caption": caption, "figures": draw(document)}


def _kinds(rows: list[Row]) -> list[str]:
    """Kinds of memory that are drawn."""
    if not rows or not all(row.memory for row in rows if row.peak_mb is not None):
        return []
    return [kind for kind in figures.KINDS if any((row.memory or {}).get(kind) for row in rows)]


def _key(method: str, looks: Look) -> dict[str, str]:
    dashes = {"solid": "", "dash": "5 3", "dot": "1.5 2.5", "dashdot": "6 2 1.5 2"}
    return {"method": method, "colour": looks.colour(method), "dash": dashes[looks.dash(method)]}


def _columns(document: Document) -> list[dict[str, str]]:
    """The table's columns: heading, its explanation, and whether it holds words or numbers."""
    columns = [
        ("Task", "", "text"),
        ("Method", "", "text"),
        ("n", "Seeds", "number"),
        ("Score", "Mean over seeds ± half its 95 % t interval, in %", "number"),
        *((name, "Mean over seeds, in %", "number") for name in _further(document)),
        ("Δ full", "Paired difference to full fine-tuning over the same seeds, in points", "number"),
        ("p rows", "Exact McNemar test over validation rows, Holm-corrected", "number"),
        *([("p seeds", "Paired t test over seeds, Holm-corrected", "number")] if _several(document) else []),
        ("Trained", "Parameters, and their share of the plain model's", "number"),
        ("Rows/s", "Median over seeds", "number"),
        ("MB", "Peak memory, median over seeds", "number"),
        ("Time", "Training, median over seeds", "number"),
    ]
    return [{"name": name, "about": about, "kind": kind} for name, about, kind in columns]


def _several(document: Document) -> bool:
    return any(row.p_seeds is not None for row in document.rows)


def _further(document: Document) -> list[str]:
    """Metrics beside the headline's."""
    return sorted({name for row in document.rows for name in row.more})


def _cells(row: Row, document: Document, looks: Look) -> dict[str, Any]:
    cells = [
        _cell(str(row.score.n), row.score.n),
        _interval(row.score),
        *(
            _cell(f"{100 * row.more[m]:.1f}", row.more[m]) if m in row.more else _cell()
            for m in _further(document)
        ),
        _cell() if row.difference is None else _interval(row.difference, sign=True, verdict=row.verdict),
        _cell() if row.p is None else _cell(probability(row.p), row.p),
        *(
            [_cell() if row.p_seeds is None else _cell(probability(row.p_seeds), row.p_seeds)]
            if _several(document)
            else []
        ),
        _cell(f"{count(row.trainable)} ({share(row.share)})", row.trainable),
        _cell() if row.rows_per_second is None else _cell(f"{row.rows_per_second:.0f}", row.rows_per_second),
        _cell() if row.peak_mb is None else _cell(f"{row.peak_mb:,.0f}", row.peak_mb),
        _cell(clock(row.train_seconds), row.train_seconds),
    ]
    return {
        "task": row.task,
        "method": row.method,
        "colour": looks.colour(row.method),
        "metric": row.metric,
        "cells": cells,
    }


def _cell(text: str = "", value: float | None = None) -> dict[str, Any]:
    return {"text": text, "value": value, "half": None, "arrow": ""}


def _interval(value: Estimate, *, sign: bool = False, verdict: str | None = None) -> dict[str, Any]:
    """A mean, with half its interval apart so that means stand under each other, and an arrow where a difference is shown."""
    mean, _, half = minus(percent(value, sign=sign)).partition(" ± ")
    arrow = ("▲" if value.mean > 0 else "▼") if verdict == "shown" else ""
    return {"text": mean, "value": value.mean, "half": f"± {half}" if half else None, "arrow": arrow}
