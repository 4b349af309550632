"""From the contenders' reports to a result: medians with their range, paired ratios, and the table.

A ratio is taken repeat by repeat, between neighbouring turns on the same rows. Its median and range are over the repeats.
"""

import statistics
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any, TextIO

from rich.table import Table

from rankwise.bench.contenders import MEMORY_RATIOS, RATIOS, alone, processes_of
from rankwise.bench.coordinator import Record
from rankwise.console import console, text
from rankwise.engine.measure import KINDS, Spread


def rows(records: Iterable[Record]) -> list[dict[str, Any]]:
    """Return one object per contender that finished: spreads over its repeats, and memory in MB."""
    return [
        {
            "name": record.name,
            "rows_per_second": _spread(record, "rows_per_second"),
            "tokens_per_second": _spread(record, "tokens_per_second"),
            "step_seconds": asdict(Spread.of([r["step_seconds"]["median"] for r in record.repeats])),
            "peak_memory_mb": record.memory["peak_memory_mb"],
            "memory_by_kind_mb": record.memory["memory_by_kind_mb"],
            "peak_rss_mb": record.memory["peak_rss_mb"],
            "operations": record.operations,
            **_several(record),
        }
        for record in records
        if record.failure is None
    ]


def ratios(records: Iterable[Record]) -> dict[str, Spread]:
    """Return every ratio of `RATIOS` whose two sides finished, over the paired repeats; and of several processes to one."""
    rates, chosen = _rates(records), best(records)
    found: dict[str, Spread] = {}
    for name, (first, seconds) in RATIOS.items():
        second = chosen.get(seconds)
        if first in rates and second is not None:
            found[name] = _paired(rates[first], rates[second])
    for name in rates:
        if alone(name) != name and alone(name) in rates:
            several = name.removeprefix("rankwise ").replace(" ", "_")
            found[f"{several}_vs_one"] = _paired(rates[name], rates[alone(name)])
    return found


def _paired(first: list[float], second: list[float]) -> Spread:
    return Spread.of([a / b for a, b in zip(first, second, strict=True)])


def _several(record: Record) -> dict[str, Any]:
    """Return what several processes sent, and what that took; nothing of a single one."""
    if (count := processes_of(record.name)) == 1:
        return {}
    sent = record.repeats[-1]["bytes_sent_a_step"]
    shares = _spread(record, "communication_share")
    return {"processes": count, "bytes_sent_a_step": sent, "communication_share": shares}


def memory_ratios(records: Iterable[Record]) -> dict[str, float]:
    """Return every ratio of `MEMORY_RATIOS` whose two sides finished."""
    peaks = {record.name: record.memory["peak_memory_mb"] for record in records if record.failure is None}
    chosen = best(records)
    pairs = {
        name: (chosen.get(a) if isinstance(a, tuple) else a, b) for name, (a, b) in MEMORY_RATIOS.items()
    }
    return {name: peaks[a] / peaks[b] for name, (a, b) in pairs.items() if a in peaks and b in peaks}


def best(records: Iterable[Record]) -> dict[tuple[str, ...], str]:
    """Return of each group of contenders that `RATIOS` chooses from the one with the highest median rate, if any finished."""
    rates, found = _rates(records), {}
    for group in (seconds for _, seconds in RATIOS.values()):
        present = [name for name in group if name in rates]
        if present:
            found[group] = max(present, key=lambda name: statistics.median(rates[name]))
    return found


def _rates(records: Iterable[Record]) -> dict[str, list[float]]:
    return {
        record.name: [repeat["rows_per_second"] for repeat in record.repeats]
        for record in records
        if record.failure is None
    }


def show(result: dict[str, Any], stream: TextIO) -> None:
    """Print a result for people: the contenders, those that failed, then the ratios."""
    shown = console(stream)
    shown.print(text(result["title"]))
    shown.print()
    shown.print(_contenders(result))
    shown.print()
    shown.print(_memory(result))
    shown.print()
    shown.print(_operations(result))
    if any("processes" in row for row in result["rows"]):
        shown.print()
        shown.print(_communication(result))
    for name, reason in result["failed"].items():
        shown.print(text(f"{name} failed: {reason}"), style="red")
    for sentence in result["notes"]:
        shown.print(text(sentence))
    if result["ratios"] or result["memory_ratios"]:
        shown.print()
        shown.print(_compared(result))


def _contenders(result: dict[str, Any]) -> Table:
    table = _table("", "rows/s", "min – max", "tokens/s", "ms/step", "peak MB", "RSS MB")
    for row in result["rows"]:
        speed = row["rows_per_second"]
        table.add_row(
            text(row["name"]),
            f"{speed['median']:.1f}",
            f"{speed['min']:.1f} – {speed['max']:.1f}",
            f"{row['tokens_per_second']['median']:,.0f}",
            f"{1000 * row['step_seconds']['median']:,.1f}",
            f"{row['peak_memory_mb']:,.0f}",
            "" if row["peak_rss_mb"] is None else f"{row['peak_rss_mb']:,.0f}",
        )
    return table


def _memory(result: dict[str, Any]) -> Table:
    table = _table("MB at the peak", "total", *KINDS)
    for row in result["rows"]:
        table.add_row(text(row["name"]), *(f"{size:,.0f}" for size in row["memory_by_kind_mb"].values()))
    return table


def _operations(result: dict[str, Any]) -> Table:
    table = _table("a step", "operations", "products", "GFLOP", "ms as products", "GB moved", "ms as copies")
    for row in result["rows"]:
        done = row["operations"]
        table.add_row(
            text(row["name"]),
            *(f"{done[count]:,.0f}" for count in ("started", "products")),
            f"{done['gflop']:,.3g}",
            f"{1000 * done['products_seconds']:,.1f}",
            f"{done['traffic_gb']:,.3g}",
            f"{1000 * done['traffic_seconds']:,.1f}",
        )
    return table


def _communication(result: dict[str, Any]) -> Table:
    table = _table("several processes", "MB sent by each a step", "share of the time", "min – max")
    for row in result["rows"]:
        if "processes" in row:
            share = row["communication_share"]
            table.add_row(
                text(row["name"]),
                f"{row['bytes_sent_a_step'] / 1e6:,.3g}",
                f"{share['median']:.0%}",
                f"{share['min']:.0%} – {share['max']:.0%}",
            )
    return table


def _compared(result: dict[str, Any]) -> Table:
    table = _table("ratio (above 1: the first is faster, or takes more memory)", "median", "min – max")
    for name, ratio in result["ratios"].items():
        spread = result["ratio_spreads"][name]
        table.add_row(text(name), f"{ratio:.2f}×", f"{spread['min']:.2f} – {spread['max']:.2f}")
    for name, ratio in result["memory_ratios"].items():
        table.add_row(text(f"memory: {name}"), f"{ratio:.2f}×", "")
    return table


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column(first)
    for column in others:
        table.add_column(column, justify="right")
    return table


def _spread(record: Record, key: str) -> dict[str, float]:
    return asdict(Spread.of([repeat[key] for repeat in record.repeats]))
