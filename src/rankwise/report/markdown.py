"""The report as Markdown: what the page says, in the same order."""

from collections.abc import Iterable, Sequence

from rankwise import inert
from rankwise.report import units
from rankwise.report.document import Document
from rankwise.report.figures import KINDS, facts
from rankwise.report.page_table import baseline_cells, quality_cells, quality_headers
from rankwise.report.rank_pattern import summary
from rankwise.report.table import HEADERS, cells
from rankwise.report.words import flags, probability
from rankwise.tasks.look import Look, warning_lines


def markdown(document: Document) -> str:
    """Write the report as Markdown."""
    tasks = dict.fromkeys((row.task, row.n_train, row.n_validation) for row in document.rows)
    lines = ["# Comparison", "", inert.markdown(document.answer[0]), ""]
    lines += [f"- {inert.markdown(line)}" for line in document.answer[1:]] + [""]
    lines += _table(HEADERS, (cells(row) for row in document.rows))
    lines += ["", *(f"- {inert.markdown(note)}" for note in document.notes)]
    lines += [
        f"- {inert.markdown(task)}: {n:,} training rows, {m:,} validation rows." for task, n, m in tasks
    ]
    if document.left_out:
        lines += ["", "## Left out", "", *(f"- {inert.markdown(line)}" for line in document.left_out)]
    for part in (_differences, _memory, _ranks, _quality, _data, _examples, _written):
        lines += part(document)
    if document.published:
        lines += ["", "## Published", "", *(f"- {inert.markdown(line)}" for line in document.published)]
    lines += ["", "## Settings", ""]
    lines += [f"- {name}: {inert.markdown(value)}" for name, value in document.settings.items()]
    return "\n".join(lines) + "\n"


def _table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(headers)} |", f"|{'---|' * len(headers)}"]
    return lines + [f"| {' | '.join(inert.markdown(cell) for cell in row)} |" for row in rows]


def _differences(document: Document) -> list[str]:
    compared = [row for row in document.rows if row.difference is not None and row.p_rows is not None]
    if not compared:
        return []
    headers = (
        "task",
        "method",
        "Δ full",
        "seeds",
        "p seeds",
        "rows won",
        "rows lost",
        "rows",
        "p rows",
        "verdict",
    )
    rows = (
        (
            row.task,
            row.method,
            units.estimate(row.difference, row.metric, sign=True) if row.difference else "",
            str(row.difference.n if row.difference else 0),
            "" if row.p_seeds is None else probability(row.p_seeds),
            str(row.only_this),
            str(row.only_full),
            str(row.n_validation),
            probability(row.p_rows or 0.0),
            str(row.verdict),
        )
        for row in compared
    )
    return ["", "## Paired differences from full fine-tuning", "", *_table(headers, rows)]


def _memory(document: Document) -> list[str]:
    recorded = [row for row in document.rows if row.memory]
    if not recorded:
        return []
    kinds = [kind for kind in KINDS if any(kind in (row.memory or {}) for row in recorded)]
    rows = (
        (row.task, row.method, *(f"{(row.memory or {}).get(kind) or 0:,.1f}" for kind in ("total", *kinds)))
        for row in recorded
    )
    return ["", "## Peak memory by kind, MB", "", *_table(("task", "method", "total", *kinds), rows)]


def _ranks(document: Document) -> list[str]:
    if not document.rank_patterns:
        return []
    lines = ["", "## Rank pattern", ""]
    for one in document.rank_patterns:
        lines.append(f"- {inert.markdown(f'{one.task} {one.method} seed {one.seed}: {summary(one)}')}")
        lines += [f"  - {inert.markdown(d.text)}{'' if d.accepted else ' (rejected)'}" for d in one.decisions]
    return lines


def _quality(document: Document) -> list[str]:
    lines = []
    for task in dict.fromkeys(task for task, _ in document.qualities):
        methods = {method: quality for (of, method), quality in document.qualities.items() if of == task}
        first = next(iter(methods.values()))
        rows = [(method, *quality_cells(quality)) for method, quality in methods.items()]
        rows.append((f"always {first.baseline_answer}", *baseline_cells(first)))
        lines += ["", f"## How good the predictions of {inert.markdown(task)} are", ""]
        lines += _table(("method", *quality_headers(first)), rows)
        for method, quality in methods.items():
            each = [
                (
                    c.name,
                    f"{100 * c.precision:.1f}",
                    f"{100 * c.recall:.1f}",
                    f"{100 * c.f1:.1f}",
                    f"{c.support:,}",
                )
                for c in quality.classes
            ]
            headers = (
                f"{inert.markdown(method)}: class",
                "precision",
                "recall",
                "F1",
                "predictions" if first.unit == "rows" else first.unit,
            )
            lines += ["", *_table(headers, each)] if each else []
    return lines


def _data(document: Document) -> list[str]:
    lines = []
    for task, look in document.looks.items():
        lines += ["", f"## Data of {inert.markdown(task)}", "", *_table(("", *look.splits), _facts(look))]
        lines += (
            ["", *(f"- {inert.markdown(flags(line))}" for line in warning_lines(look))]
            if look.warnings
            else []
        )
    return lines


def _facts(look: Look) -> list[tuple[str, ...]]:
    classes = [
        (name, *(f"{part.classes.get(name, 0):,}" for part in look.splits.values()))
        for name in look.splits["train"].classes
    ]
    return [(name, *cells) for name, cells in facts(look)] + classes


def _examples(document: Document) -> list[str]:
    if not document.examples:
        return []
    lines = ["", "## Where methods disagree", ""]
    for one in document.examples:
        text = " / ".join(one.text) if one.text else ""
        votes = ", ".join(f"{m} {right}/{of} ({one.predicted[m]})" for m, (right, of) in one.right.items())
        shown = f": {text[:400]}" if text else ""
        lines.append(inert.markdown(f"{one.task} row {one.idx}, label {one.label}{shown}"))
        lines[-1] = f"- {lines[-1]}"
        lines.append(f"  - {inert.markdown(f'right in seeds: {votes}')}")
    return lines


def _written(document: Document) -> list[str]:
    if not document.written:
        return []
    lines = ["", "## What methods write", ""]
    for one in document.written:
        lines.append(f"- {inert.markdown(f'{one.task} row {one.idx}: {one.prompt[:400]}')}")
        lines += [f"  - reference: {inert.markdown(text[:400])}" for text in one.references]
        lines += [f"  - {inert.markdown(f'{method}: {text[:400]}')}" for method, text in one.texts.items()]
    return lines
