"""A plan for people: what fits, in sentences and a table."""

from typing import Any, Self, TextIO

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from rankwise import inert
from rankwise.console import console, text
from rankwise.engine.measure import KINDS
from rankwise.runs import methods


class PlanProgress:
    """An `on_progress` for `plan`: in a terminal, a bar with the time left and what is being planned.

    Args:
        stream: where the bar is shown.
    """

    def __init__(self, stream: TextIO) -> None:
        shown = console(stream)
        columns = (BarColumn(), TimeRemainingColumn(), TextColumn("{task.description}", markup=False))
        self._bar = Progress(*columns, console=shown, transient=True, disable=not shown.is_terminal)
        self._task = self._bar.add_task("reading the architecture", total=None)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def __call__(self, done: int, of: int, text: str) -> None:
        self._bar.update(self._task, completed=done, total=of, description=inert.terminal(text))


def show(result: dict[str, Any], stream: TextIO) -> None:
    """Print a plan: what was planned for, one answer per configuration, and peaks by kind of tensor."""
    shown = console(stream)
    tokens = result["tokens_per_row"]
    shown.print(
        text(
            f"{result['model']}, rows of {tokens['mean']:.0f} tokens on average ({tokens['max']:.0f} at most), {result['dtype']}, "
            f"{'packed' if result['padding'] == 'packed' else 'padded to the longest of a batch'}."
        )
    )
    if result["processes"] > 1:
        whole = "which share out the layers" if result["shard"] else "each with the whole model"
        shown.print(text(f"In {result['processes']} processes, {whole}; of the one that takes most."))
    for one in result["configurations"]:
        if one["verdict"] is not None:
            shown.print(text(answer(one, result)))
    shown.print()
    shown.print(_table(result))
    for one in result["configurations"]:
        if "at_largest_rank" in one:
            shown.print(text(_at_largest_rank(one)))
    shown.print()
    shown.print(text(_overhead(result)))


def answer(one: dict[str, Any], result: dict[str, Any]) -> str:
    """Return the sentence about one configuration under a limit."""
    verdict = {"fits": "fits in", "doesn't": "doesn't fit in"}.get(one["verdict"], "is too close to call in")
    largest = one["largest_batch_size"]
    if largest == result["rows"]:
        then = "any larger batch of this task fits too"
    else:
        then = f"the largest batch that fits has {largest} rows" if largest else "not even a single row fits"
    return (
        f"{name(one)} {verdict} {result['memory_mb'] / 1000:g} GB at batches of {one['batch_size']} "
        f"({one['peak_memory_mb']['total']:,.0f} MB of tensors); {then}."
    )


def name(one: dict[str, Any]) -> str:
    """Return the name of a configuration, such as `LoRA of rank 8, lean,`."""
    method = methods.named(one["method"])
    of = "from" if method.finds_ranks else "of"
    rank = f" {of} rank {one['rank']}" if one["rank"] else ""
    return f"{method.label}{rank}" + (", lean," if one["memory_mode"] == "lean" else "")


def _at_largest_rank(one: dict[str, Any]) -> str:
    most = one["at_largest_rank"]
    return (
        f"{name(one)} takes {most['peak_memory_mb']['total']:,.0f} MB at most: that is if every layer grew to rank {most['rank']}, "
        "the largest."
    )


def _table(result: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("MB at the peak")
    timed = "seconds_per_epoch" in result["configurations"][0]
    limited = result["memory_mb"] is not None
    several = result["processes"] > 1
    columns = [
        "total",
        *KINDS,
        *(["largest batch"] if limited else []),
        *(["s per epoch"] if timed else []),
        *(["sent a step"] if several else []),
    ]
    for column in columns:
        table.add_column(column, justify="right")
    for one in result["configurations"]:
        cells = [f"{size:,.0f}" for size in one["peak_memory_mb"].values()]
        cells += [f"{one['largest_batch_size']:,}"] if limited else []
        cells += [f"{one['seconds_per_epoch']:,.0f}"] if timed else []
        cells += [f"{one['bytes_sent_a_step'] / 1e6:,.3g}"] if several else []
        table.add_row(text(name(one).rstrip(",")), *cells)
    return table


def _overhead(result: dict[str, Any]) -> str:
    ranges = [one["overhead_mb"] for one in result["configurations"]]
    least, most = min(low for low, _ in ranges) / 1000, max(high for _, high in ranges) / 1000
    if result["device"] == "cuda":
        return (
            f"Besides tensors, the GPU holds {least:.1f} to {most:.1f} GB: its context, kernels, and what the allocator loses. "
            '"fits" assumes the most of it, "doesn\'t fit" the least.'
        )
    return f"Besides tensors, the process takes {least:.1f} to {most:.1f} GB: Python, PyTorch, and what the allocator loses."
