"""The report as one page: everything is inlined, nothing is fetched, and the template escapes text from data.

`page/` holds the template, the style sheet and the script; plotly's script comes with its Python package. A content security policy in
the page itself blocks every request.
"""

from collections.abc import Callable, Sequence
from importlib.metadata import version
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from rankwise import inert
from rankwise.report import figures, page_table, units
from rankwise.report.document import Document
from rankwise.report.figures import Figure, Style
from rankwise.report.row import Row
from rankwise.report.words import flags
from rankwise.tasks.columns import Column
from rankwise.tasks.look import Look

RELOAD_SECONDS = 10
"""Time between two reloads of the page while a grid runs."""
PUBLISHED = " Hollow diamonds are published scores on the full task."
BY_KIND = " Blue kinds grow with the model, amber ones with the batch."
SWATCH_DASHES = {"solid": "", "dash": "5 3", "dot": "1.5 2.5", "dashdot": "6 2 1.5 2"}
"""Plotly's line styles as SVG's `stroke-dasharray`."""

SECTIONS: tuple[tuple[str, str, str, Callable[[Document], list[Figure]]], ...] = (
    (
        "scores",
        "Scores",
        f"Mean over seeds with its 95 % t interval; faint dots are single seeds.{PUBLISHED}",
        figures.scores,
    ),
    (
        "differences",
        "Paired differences from full fine-tuning",
        "Method minus full, seed by seed: same rows, same order, same new head. An interval that excludes 0 is a difference over seeds.",
        figures.differences,
    ),
    ("memory", "Memory", f"Peak during training.{BY_KIND}", figures.memory),
    (
        "speed",
        "Speed",
        "Training rows per second without the first steps: the median seed, and the range from the slowest to the fastest.",
        figures.speed,
    ),
    (
        "parameters",
        "Score against parameters",
        "Up and to the left is better: a higher score from fewer trained parameters.",
        figures.parameters,
    ),
    (
        "curves",
        "Training curves",
        "Training loss by step: the mean over seeds, in a band from the lowest seed to the highest.",
        figures.losses,
    ),
    ("validation", "Validation score during training", "Mean over seeds.", figures.validation),
    (
        "ranks",
        "Rank pattern",
        "Each adapted layer's rank over the steps. Dots are decisions, crosses are proposals that were rejected. "
        "Point at one to read its evidence. Below: the memory of the same steps, where it was recorded.",
        figures.ranks,
    ),
    (
        "sizes",
        "Smaller sizes of the adapter",
        "What an adapter loses when only its most important components are kept, on validation rows, with the standard error. "
        "rankwise export ADAPTER --max-params N --out FOLDER takes one of these sizes, without training or data.",
        figures.sizes,
    ),
)


def html(document: Document, *, live: bool = False) -> str:
    """Write the page.

    Args:
        document: what it says.
        live: the page reloads itself every `RELOAD_SECONDS`, for a grid that is still running.
    """
    sections = [_section(document, *section) for section in SECTIONS]
    sections = [section for section in sections if section["figures"]]
    style, memory = figures.style_of(document), figures.rank_memory(document)
    looks = {
        task: (look, figures.data(look, f"data-{i}")) for i, (task, look) in enumerate(document.looks.items())
    }
    drawn = [*(figure for section in sections for figure in section["figures"]), *memory.values()]
    drawn += [figure for _, made in looks.values() for figure in made]
    measured = _qualities(document, style)
    drawn += [figure for task in measured for figure in (*task["calibration"], *task["confusions"])]
    columns = page_table.columns(document)
    return _render(
        "page.html",
        drawn,
        document=document,
        columns=columns,
        rows=[page_table.cells(row, columns, style) for row in document.rows],
        legend=[_legend(method, style) for method in dict.fromkeys(row.method for row in document.rows)],
        kinds=_kinds(document.rows),
        sections=sections,
        examples=[
            (task, [example for example in document.examples if example.task == task])
            for task in dict.fromkeys(example.task for example in document.examples)
        ],
        written=[
            (task, [one for one in document.written if one.task == task])
            for task in dict.fromkeys(one.task for one in document.written)
        ],
        rank_memory=memory,
        looks=looks,
        qualities=measured,
        tasks=list(dict.fromkeys((row.task, row.n_train, row.n_validation) for row in document.rows)),
        live=RELOAD_SECONDS if live else None,
    )


def look_html(name: str, look: Look | None, columns: Sequence[Column], notes: Sequence[str]) -> str:
    """Write the page of a look at a table.

    Args:
        name: of the table or task.
        look: at its rows; None where they can't be trained on as they are.
        columns: of the table.
        notes: on how it was read.
    """
    drawn = [] if look is None else figures.data(look, "data")
    return _render(
        "look.html", drawn, name=name, look=look, columns=columns, notes=notes, figures=drawn, live=None
    )


def _render(template: str, drawn: Sequence[Figure], **values: Any) -> str:
    """Fill a template in, with everything that its page needs in one file.

    Args:
        template: its name in `page/`.
        drawn: every figure of the page.
        values: of the template.
    """
    environment = Environment(
        loader=PackageLoader("rankwise.report", "page"),
        autoescape=True,
        finalize=_without_controls,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "ensure_ascii": False}
    environment.globals |= {"facts": figures.facts, "flags": flags}
    page = files("rankwise.report").joinpath("page")
    return environment.get_template(template).render(
        specs={figure.key: figure.spec for figure in drawn},
        version=version("rankwise"),
        style=page.joinpath("page.css").read_text(encoding="utf-8"),
        script=page.joinpath("page.js").read_text(encoding="utf-8"),
        plotly=files("plotly").joinpath("package_data", "plotly.min.js").read_text(encoding="utf-8"),
        **values,
    )


def _without_controls(value: Any) -> Any:
    """Make control characters of a text visible; what the template marks as safe stays."""
    return inert.terminal(value, lines=True) if type(value) is str else value


def _section(
    document: Document, key: str, title: str, caption: str, draw: Callable[[Document], list[Figure]]
) -> dict[str, Any]:
    if not document.published_scores:
        caption = caption.removesuffix(PUBLISHED)
    if not any(row.memory for row in document.rows):
        caption = caption.removesuffix(BY_KIND)
    if key == "parameters" and any(units.better(row.metric) < 0 for row in document.rows):
        caption = "To the left is better, from fewer trained parameters; so is up, or down where a metric is an error or a loss."
    if any(row.folds for row in document.rows):
        caption = caption.replace("seed", "fold")
    return {"key": key, "title": title, "caption": caption, "figures": draw(document)}


def _kinds(rows: list[Row]) -> list[str]:
    """The kinds of memory that are drawn."""
    if not rows or not all(row.memory for row in rows if row.peak_mb is not None):
        return []
    return [kind for kind in figures.KINDS if any((row.memory or {}).get(kind) for row in rows)]


def _qualities(document: Document, style: Style) -> list[dict[str, Any]]:
    """What the section on quality shows of each task: a table, the figures, and each method's classes."""
    made = []
    for task in dict.fromkeys(task for task, _ in document.qualities):
        methods = {method: q for (of, method), q in document.qualities.items() if of == task}
        first = next(iter(methods.values()))
        made.append(
            {
                "task": task,
                "headers": page_table.quality_headers(first),
                "rows": [
                    {"method": method, "colour": style.colour(method), "cells": page_table.quality_cells(q)}
                    for method, q in methods.items()
                ],
                "counted": "predictions" if first.unit == "rows" else first.unit,
                "constant": first.baseline_answer,
                "baseline": page_table.baseline_cells(first),
                "calibration": figures.calibration(document, task),
                "confusions": figures.confusions(document, task),
                "classes": [(method, q.classes) for method, q in methods.items() if q.classes],
            }
        )
    return made


def _legend(method: str, style: Style) -> dict[str, str]:
    return {"method": method, "colour": style.colour(method), "dash": SWATCH_DASHES[style.dash(method)]}
