"""Write the tables of docs/appendix.md: everything that is stored in studies/*.parquet and studies/earlier.

python studies/figures/appendix.py

Most studies are lists of trainings. `Table` says which rows of which files are summarized, and by which columns. What needs more than
means over seeds (comparisons on the grid, `rankwise compress`, held-out checks) has a function of its own.
"""

import json
import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import spearmanr, ttest_1samp

from comparison_table import differences, numbers, signed
from stored import (
    ADAPTIVE,
    DOCS,
    GRID,
    RANKS,
    SIZE,
    TASKS,
    Row,
    by_task,
    grid,
    mean_over_tasks,
    of_rank,
    read,
    replace_between,
)

BEGIN = "<!-- python studies/figures/appendix.py -->"
PAGE = DOCS / "appendix.md"
QUERY_VALUE = tuple(of_rank(rank) for rank in RANKS)
LINEAR = tuple(of_rank(rank, everywhere=True) for rank in (1, 2, 4, 8, 16, 64))
LABELS = (
    (r"^as it is$", "current version"),
    (r"^as a long training, however short", "pruned at 40 and 80 % of the steps, however short"),
    (r"^that, cut at 80 % of the steps only", "pruned at 80 % of the steps only"),
    (r"never cut", "never pruned"),
    (r"\bcut at\b", "pruned at"),
    (r"statistics times (\S+)", r"expected loss increase × \1"),
    (r"^statistics at their word$", "statistics as a normal prior"),
    (r"^rows alone$", "held-out rows alone"),
    (r"a branch costs nothing", "no fixed price per layer"),
    (r"^((?:[\d.]+(?:, [\d.]+)* and )?[\d.]+ % of the gain)", r"tolerance \1"),
    (r"^(.*standard error)", r"noise tolerance \1"),
    (r"back to the full rate after it", "full learning rate after the last prune"),
    (r"updates not clipped", "without update clipping"),
    (r"^the map that was found$", "the rank pattern found"),
    (r"^that map, shuffled", "that pattern, shuffled"),
    (r"^post hoc$", "rank 16 in all linear layers, then `convert_to_lora`"),
    (r"^full$", "full fine-tuning"),
    (r"^head$", "the head alone"),
    (r"^lora$", "LoRA, the recipe's"),
    (r"^lora:rank=(\d+),alpha=5.66,rslora=true,targets=all-linear", r"rank \1 in all linear layers"),
    (r"^lora:rank=(\d+),alpha=5.66,rslora=true", r"rank \1 on query and value"),
    (r"^lora:rank=(\d+),alpha=([\d.]+),targets=all-linear", r"rank \1 in all linear layers, alpha \2"),
    (r"^lora:rank=(\d+),alpha=([\d.]+)", r"rank \1 on query and value, alpha \2"),
    (r"^peft:adalora,rank=(\d+),targets=all-linear", r"AdaLoRA in all linear layers, rank \1"),
    (r"^peft:eva,rank=(\d+),targets=all-linear", r"EVA in all linear layers, rank \1"),
    (r",lr=(\S+)$", r", lr \1"),
)
"""What stored names are called here: a pattern, and what takes its place."""


@dataclass(frozen=True)
class Table:
    """Trainings of one kind, summarized over seeds.

    Attributes:
        title: heading.
        text: what was run and how it was judged.
        files: in studies/.
        by: columns of which each combination is a line.
        keep: which rows; all where it is None.
        score: the column that is a score.
        extra: further columns of which the mean is shown, with their headings and formats.
    """

    title: str
    text: str
    files: tuple[str, ...]
    by: tuple[str, ...]
    keep: Callable[[Row], bool] | None = None
    score: str = "accuracy"
    extra: tuple[tuple[str, str, str], ...] = (
        ("calibrated_loss", "calibrated loss", "{:.4f}"),
        ("adapter_params", "parameters", "{:,.0f}"),
    )


HELD_OUT = "Trained and judged on rows of the training split (`studies/trials.py`): 8,000 and 8,000 of sst2 and qqp, 832 judged of mnli."
TABLES = (
    Table(
        "Ablations and start ranks",
        f"{HELD_OUT} CPU. `studies/ablations.py`.",
        ("ablations.parquet",),
        ("task", "variant"),
        lambda row: row["rows"] is None,
    ),
    Table(
        "Little data, held-out training rows",
        "The first rows of the same tasks, three times as many judged (8,000 at most). CPU. `studies/ablations.py`.",
        ("ablations.parquet",),
        ("task", "rows", "variant"),
        lambda row: row["rows"] is not None,
    ),
    Table(
        "Ablations on a GPU: scaling, learning rates, noise tolerance",
        f"{HELD_OUT} One H200, bfloat16. `studies/ablations.py --device cuda`.",
        ("ablations-cuda.parquet",),
        ("task", "variant"),
    ),
    Table(
        "Rank pattern, size or path",
        "Trainings from scratch with ranks that stay; sst2, 8,000 rows trained on and 8,000 judged. CPU. `studies/placebos.py`.",
        ("placebos.parquet",),
        ("task", "variant"),
    ),
    Table(
        "Data size",
        "A task's first rows, judged on the grid's rows. CPU. `studies/data_size.py`.",
        ("data_size.parquet",),
        ("task", "n_train", "method"),
        score="score",
        extra=(("adapter_params", "parameters", "{:,.0f}"),),
    ),
    Table(
        "Shuffled labels",
        "Training rows get each other's labels. `studies/shuffled_labels.py`; earlier versions below.",
        ("shuffled_labels.parquet",),
        ("task",),
        extra=(("components", "components", "{:.0f}"), ("calibrated_loss", "calibrated loss", "{:.4f}")),
    ),
    Table(
        "Which part of full fine-tuning matters",
        "movies: 1,280 rows, 120 steps, 877 rows judged. `studies/parts.py`.",
        ("parts.parquet",),
        ("task", "variant"),
    ),
    Table(
        "Pruning, by tolerance and schedule",
        f"{HELD_OUT} Tolerances are shares of the gain at 50 and 80 % of the steps. `studies/schedules.py`.",
        ("schedules.parquet",),
        ("task", "half_way", "late", "method", "schedule"),
    ),
    Table(
        "Learning rates",
        f"{HELD_OUT} movies: 877 rows judged. `studies/learning_rates.py`.",
        ("learning_rates.parquet",),
        ("task", "epochs", "beta2", "method", "pooler", "lr"),
    ),
    Table(
        "Learning rates of the baselines at rank 1",
        "mnli, 832 rows judged, two-phase schedule. One H200. `studies/learning_rates.py --device cuda`.",
        ("learning_rates-cuda.parquet",),
        ("task", "method", "lr"),
    ),
    Table(
        "Warm-up of short runs",
        "movies, 1,547 rows judged. `studies/short_runs.py`.",
        ("short_runs.parquet",),
        ("n_train", "steps", "method", "warmup"),
        score="score",
        extra=(("adapter_params", "parameters", "{:,.0f}"),),
    ),
    Table(
        "Packing and padding",
        "LoRA, two epochs, the validation split. `studies/padding.py`.",
        ("padding.parquet",),
        ("task", "padding"),
        score="score",
        extra=(),
    ),
    Table(
        "When to prune",
        "Adaptive cut to a share of its parameters at one check, whatever the evidence says; without a share it is never pruned. "
        f"{HELD_OUT} CPU. `studies/when_to_prune.py`.",
        ("when_to_prune.parquet",),
        ("task", "method", "at", "share"),
    ),
    Table(
        "What the prune costs",
        "Adaptive never pruned, or cut half-way to a quarter of its parameters, against rank 8 in all linear layers. Trained on few "
        "rows of the training split, judged on up to three times as many others, two-phase schedule. CPU. `studies/what_costs.py`.",
        ("what_costs.parquet",),
        ("rows", "task", "method"),
    ),
)
EARLIER = (
    Table(
        "The grid, CPU, linear schedule",
        "Before update clipping.",
        ("earlier/grid.parquet",),
        ("task", "method"),
        score="score",
        extra=(("adapter_params", "parameters", "{:,.0f}"),),
    ),
    Table(
        "The grid, CPU, adaptive with the linear schedule",
        "Before update clipping.",
        ("earlier/grid-linear.parquet",),
        ("task", "method"),
        score="score",
        extra=(("adapter_params", "parameters", "{:,.0f}"),),
    ),
    Table(
        "The grid, CPU, fixed ranks with the two-phase schedule",
        "Before update clipping.",
        ("earlier/grid-two-phase.parquet",),
        ("task", "method"),
        score="score",
        extra=(("adapter_params", "parameters", "{:,.0f}"),),
    ),
    Table(
        "The grid, GPU",
        "Before update clipping. Fixed ranks have the two-phase schedule.",
        ("earlier/grid-cuda.parquet", "earlier/grid-cuda-two-phase.parquet"),
        ("task", "method"),
        score="score",
        extra=(("adapter_params", "parameters", "{:,.0f}"),),
    ),
    Table(
        "Ablations, CPU",
        HELD_OUT,
        ("earlier/ablations.parquet",),
        ("task", "beta2", "pooler", "schedule", "clipped", "variant"),
    ),
    Table(
        "Ablations, GPU",
        HELD_OUT,
        ("earlier/ablations-cuda.parquet",),
        ("task", "clipped", "variant"),
    ),
    Table(
        "Baselines at equal size",
        "The grid's rows and seeds, linear schedule.",
        ("earlier/equal_size.parquet",),
        ("task", "method"),
        score="score",
        extra=(("adapter_params", "parameters", "{:,.0f}"),),
    ),
    Table(
        "Shuffled labels",
        "",
        ("earlier/shuffled_labels.parquet",),
        ("task",),
        extra=(("components", "components", "{:.0f}"), ("calibrated_loss", "calibrated loss", "{:.4f}")),
    ),
)
HEADINGS = {
    "variant": "",
    "method": "",
    "n_train": "training rows",
    "rows": "training rows",
    "beta2": "β₂",
    "half_way": "tolerance at 50 %",
    "late": "tolerance at 80 %",
    "pooler": "pooler adapted",
    "clipped": "update clipping",
    "warmup": "warm-up",
}


def main() -> None:
    PAGE.write_text(with_tables(PAGE.read_text()))


def with_tables(page: str) -> str:
    """Return the page with the tables of what is stored now."""
    sections = [
        grid_scores(),
        grid_comparisons(),
        grid_runs(),
        baselines(),
        *(summary(table) for table in TABLES[:2]),
        *(summary(table) for table in TABLES[2:6]),
        planted("Planted ranks", "planted.parquet"),
        compression(),
        checks(),
        loss_increases(),
        *(summary(table) for table in TABLES[6:10]),
        calibration(),
        *(summary(table) for table in TABLES[10:]),
        "## Earlier versions\n\nWhat studies/earlier holds. Today's code wouldn't give these results again.\n",
        *(summary(table, "###") for table in EARLIER),
        planted("Planted ranks", "earlier/planted.parquet", "###"),
    ]
    return replace_between(page, BEGIN, "\n" + "\n".join(sections))


def name_of(value: Any) -> str:
    """Return what a stored name or number is called here."""
    if value is None or value != value:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}" if value < 1000 else f"{value:,.0f}"
    if isinstance(value, int):
        return f"{value:,}"
    name = value
    for pattern, label in LABELS:
        name = re.sub(pattern, label, name)
    return name


def markdown(
    title: str, text: str, header: Sequence[str], lines: Iterable[Sequence[str]], names: int = 1
) -> str:
    """Return a section: its heading, a paragraph and a table.

    Args:
        title: with its number signs.
        text: may be empty.
        header: of the columns.
        lines: cells of each line.
        names: how many columns at the left are words.
    """
    rule = "|".join(["---"] * names + ["---:"] * (len(header) - names))
    body = "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
    paragraph = f"{text}\n\n" if text else ""
    return f"{title}\n\n{paragraph}| {' | '.join(header)} |\n|{rule}|\n{body}"


def summary(table: Table, level: str = "##") -> str:
    """Return the section of a `Table`: a line for each combination, the mean over its seeds, and each seed's score."""
    rows = [row for row in read(*table.files) if table.keep is None or table.keep(row)]
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in sorted(rows, key=lambda row: [_key(row.get(column)) for column in table.by]):
        groups.setdefault(tuple(name_of(row.get(column)) for column in table.by), []).append(row)
    shown = [
        i
        for i, column in enumerate(table.by)
        if column in ("variant", "method") or len({g[i] for g in groups}) > 1 or i == 0
    ]
    lines = []
    for group, of in groups.items():
        seeds = sorted(of, key=lambda row: row["seed"])
        scores = [100 * row[table.score] for row in seeds if row[table.score] is not None]
        means, each = [], [", ".join(f"{score:.2f}" for score in scores) if len(scores) > 1 else ""]
        for name, _, form in table.extra:
            values = _present(seeds, name)
            means.append(form.format(_mean(values)) if values else "")
            each.append("; ".join(form.format(value) for value in values) if len(set(values)) > 1 else "")
        mean = f"{_mean(scores):.2f}" if scores else "diverged"
        lines.append([*(group[i] for i in shown), str(len(seeds)), mean, *means, *each])
    names = [table.score, *(heading for _, heading, _ in table.extra)]
    header = [HEADINGS.get(table.by[i], table.by[i]) for i in shown]
    header += ["seeds", *names, *(f"{name} by seed" for name in names)]
    filled = [i for i in range(len(header)) if i < len(shown) or any(line[i] for line in lines)]
    lines = [[line[i] for i in filled] for line in lines]
    return markdown(f"{level} {table.title}", table.text, [header[i] for i in filled], lines, len(shown))


def _key(value: Any) -> tuple[bool, Any]:
    missing = value is None or value != value
    return (not missing, 0 if missing else value)


def _present(rows: Sequence[Row], name: str) -> list[float]:
    return [row[name] for row in rows if row.get(name) is not None and row[name] == row[name]]


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values)


# The grid


def grid_scores() -> str:
    """Return mean scores by method and task, of every method of the grid."""
    rows = read(*GRID)
    adaptive = sorted({row["method"] for row in rows if row["method"].startswith("adaptive,")})
    lines = []
    for method in ("full", "head", *QUERY_VALUE, *LINEAR, ADAPTIVE, SIZE, *adaptive):
        scores, sizes = by_task(rows, method), by_task(rows, method, "adapter_params")
        if not scores:
            continue
        seeds = sorted({len(of_task) for of_task in scores.values()})
        cells = [f"{100 * _mean(scores[task]):.2f}" if task in scores else "" for task in TASKS]
        whole = f"{100 * mean_over_tasks(scores):.2f}" if len(scores) == len(TASKS) else ""
        lines.append(
            [
                name_of(method),
                "–".join(map(str, dict.fromkeys((min(seeds), max(seeds))))),
                *cells,
                whole,
                f"{mean_over_tasks(sizes):,.0f}",
            ]
        )
    text = (
        "Mean scores. Adapters have the two-phase schedule, full fine-tuning the linear one. Full fine-tuning, ranks 8 and 64 on query and "
        "value and two earlier versions of adaptive ran on one H200 in bfloat16, everything else on a CPU. `studies/grid.py`."
    )
    return markdown("## The grid", text, ["", "seeds", *TASKS, "mean", "parameters"], lines)


def grid_comparisons() -> str:
    """Return adaptive against fixed ranks, and what it closes of the gap to full fine-tuning."""
    rows = [row for row in read(*GRID) if not row["method"].startswith("adaptive,")]
    by_seed = {task: grid.against_best_fixed(rows, task, SIZE, QUERY_VALUE) for task in TASKS}
    raw = np.array([ttest_1samp(found, 0.0)[1] for found in by_seed.values()]).tolist()
    lines = []
    for (task, found), p in zip(by_seed.items(), grid.holm(raw), strict=True):
        of_rank_8 = [row for row in rows if (row["task"], row["method"]) == (task, SIZE)]
        best, adaptive, full = grid.three(rows, task, SIZE, QUERY_VALUE)
        gap = full - best
        closed = f"{100 * (adaptive - best) / gap:.0f} %" if gap > 0.01 else "no gap of a point"
        shares = [
            100 * _mean([row[part] / row[of] for row in of_rank_8])
            for part, of in (
                ("adapter_params", "r8"),
                ("query_value_params", "r8"),
                ("rank_seconds", "train_seconds"),
            )
        ]
        lines.append(
            [
                task,
                signed(found),
                f"{p:.2f}",
                signed([gap]),
                closed,
                f"{shares[0]:.0f} %",
                f"{shares[1]:.0f} %",
                f"{shares[2]:.1f} %",
            ]
        )
    mean, seeds, tasks = numbers(list(by_seed.values()))
    text = (
        "Adaptive minus the fixed rank on query and value that is best on the other seeds, by seed: over the tasks "
        f"{mean} points, {tasks} for other tasks and {seeds} for other seeds (t, 95 %). "
        "Sizes are shares of rank 8's parameters on query and value; checks are a share of the training time."
    )
    first = markdown(
        "## Adaptive against fixed ranks",
        text,
        [
            "",
            "difference by seed",
            "p (Holm)",
            "full fine-tuning − best fixed",
            "adaptive closes",
            "size",
            "of that on query, value",
            "checks",
        ],
        lines,
    )
    with_linear = _linear_too(rows)
    second = markdown(
        "### Against each of them",
        f"On the seeds that both have. {with_linear}",
        ["", "seeds", "tasks", "adaptive − it", "other seeds", "other tasks", "its parameters", *TASKS],
        [_against(rows, method) for method in (*QUERY_VALUE, *LINEAR[2:4], "full")],
    )
    return f"{first}\n{second}"


def _against(rows: Sequence[Row], method: str) -> list[str]:
    others = [row for row in rows if row["method"] == method]
    found = differences([row for row in rows if row["method"] == SIZE], others)
    cells = [signed(found[task]) if task in found else "" for task in TASKS]
    seeds, size = max(map(len, found.values())), others[0]["adapter_params"]
    return [name_of(method), str(seeds), str(len(found)), *numbers(list(found.values())), f"{size:,}", *cells]


def _linear_too(rows: Sequence[Row]) -> str:
    found = []
    for task in TASKS:
        seeds = {row["seed"] for row in rows if row["task"] == task and row["method"] in LINEAR}
        some = [row for row in rows if row["seed"] in seeds]
        found.append(grid.against_best_fixed(some, task, SIZE, QUERY_VALUE + LINEAR))
    mean, seeds, tasks = numbers(found)
    return (
        "With fixed ranks in all linear layers among them, on the seeds that have one, adaptive minus the best on the other seeds is "
        f"{mean} points, {tasks} for other tasks and {seeds} for other seeds."
    )


def grid_runs() -> str:
    """Return each adaptive run of the grid: its score, its size, and the components after each decision to prune."""
    lines = []
    for task in TASKS:
        runs = [row for row in read("grid.parquet") if (row["task"], row["method"]) == (task, SIZE)]
        for run in sorted(runs, key=lambda row: row["seed"]):
            texts = json.loads(run["decisions"])
            made = [re.findall(r"^step (\d+): (?:cut|pruned), (\d+) → (\d+)", text) for text in texts]
            steps = ", ".join(f"{of[0][1]} → {of[0][2]} at step {of[0][0]}" for of in made if of)
            refused = sum(" not cut" in text or " not pruned" in text for text in texts)
            left = sum(json.loads(run["rank"]).values())
            share = 100 * run["rank_seconds"] / run["train_seconds"]
            lines.append(
                [
                    task,
                    str(run["seed"]),
                    f"{100 * run['score']:.2f}",
                    str(left),
                    f"{run['adapter_params']:,}",
                    steps,
                    str(refused),
                    f"{share:.1f} %",
                ]
            )
    text = "Older runs count the components of the layers that change only, not those of all layers."
    header = [
        "",
        "seed",
        "score",
        "components at the end",
        "parameters",
        "pruned",
        "refused proposals",
        "checks, of training time",
    ]
    return markdown("### Adaptive, run by run", text, header, lines)


# Other comparisons


def baselines() -> str:
    """Return AdaLoRA, EVA and compression at adaptive's size, on the grid's seeds."""
    rows = read("grid.parquet")
    adaptive = {(row["task"], row["seed"]): row for row in rows if row["method"] == SIZE}
    lines, over = [], {}
    for file, device in (("equal_size.parquet", "CPU"), ("equal_size-cuda.parquet", "GPU")):
        groups: dict[tuple[str, str], list[Row]] = {}
        for row in sorted(read(file), key=lambda row: (TASKS.index(row["task"]), row["method"], row["seed"])):
            groups.setdefault((row["task"], row["method"]), []).append(row)
        for (task, method), of in groups.items():
            ahead = [adaptive[task, row["seed"]]["score"] - row["score"] for row in of]
            scores = [100 * row["score"] for row in of]
            lines.append(
                [
                    task,
                    device,
                    name_of(method),
                    str(len(of)),
                    f"{_mean(scores):.2f}",
                    ", ".join(f"{s:.2f}" for s in scores),
                    signed(ahead),
                    f"{_mean([row['adapter_params'] for row in of]):,.0f}",
                ]
            )
            if len(of) == 3:
                over.setdefault(method, []).append(ahead)
    sums = [
        f"{name_of(method)} {mean}, {seeds} and {tasks}"
        for method, found in over.items()
        if len(found) == 3
        for mean, seeds, tasks in [numbers(found)]
    ]
    text = (
        "Two-phase schedule for all. Adaptive minus the baseline over movies, mnli and qqp, three seeds each, with half the interval for "
        "other seeds and for other tasks (t, 95 %): " + "; ".join(sums) + ". `studies/equal_size.py`."
    )
    header = ["", "", "", "seeds", "score", "by seed", "adaptive − it, by seed", "parameters"]
    return markdown("## Baselines at adaptive's size", text, header, lines, 3)


def planted(title: str, file: str, level: str = "##") -> str:
    """Return what is found of ranks that are known."""
    lines = []
    for row in sorted(
        read(file), key=lambda row: (row["rank"], row.get("steps") or 1200, row["seed"], row.get("late") or 0)
    ):
        late = row.get("late")
        steps = row.get("steps")
        line = [
            str(row["rank"]),
            str(row["planted"]),
            str(row["seed"]),
            f"{int(steps) if steps and steps == steps else 1200:,}",
        ]
        line += [f"{100 * late:g} %" if late and late == late else "2 %", str(row["found"])]
        line += [f"{row[name]:.2f}" if row["planted"] else "" for name in ("precision", "recall")]
        lines.append([*line, *(f"{row[name]:.4f}" for name in ("loss_before", "loss_after"))])
    text = "A teacher with an update of rank k in three value projections; precision and recall of the layers. `studies/planted.py`."
    header = [
        "k",
        "planted",
        "seed",
        "steps",
        "tolerance at the last check",
        "found",
        "precision",
        "recall",
        "loss without adapters",
        "loss",
    ]
    return markdown(f"{level} {title}", text, header, lines, 0)


def compression() -> str:
    """Return what `rankwise compress` keeps, and how often it is wrong."""
    groups: dict[tuple[str, str, int], list[Row]] = {}
    for row in read("compress.parquet"):
        groups.setdefault((row["adapter"], row["rule"], row["drawn"]), []).append(row)
    lines = []
    for (adapter, rule, drawn), of in groups.items():
        increases, errors = [row["loss_increase"] for row in of], [row["too_much"] for row in of]
        twice, params = [row["twice_too_much"] for row in of], _present(of, "params")
        line = [
            adapter,
            _rule(rule),
            str(drawn),
            str(len(of)),
            f"{_mean([row['left'] for row in of]):.0f} of {of[0]['of']}",
            f"{100 * _mean(increases):.2f} %",
            f"{100 * _mean(errors):.1f} %",
            f"{100 * _mean(twice):.1f} %",
            f"{100 * max(increases):.1f} %",
            f"{100 * max(errors):.0f} %",
        ]
        size = [f"{_mean(params):,.0f}", signed([-_mean(_present(of, "points"))])] if params else ["", ""]
        lines.append([*line, *size])
    text = (
        "Adapters of six tasks, two seeds each, 100 draws of held-out rows an adapter. Loss increases are shares of the gain, measured on "
        "rows that weren't drawn. `studies/compress.py`."
    )
    header = [
        "adapter",
        "rule",
        "held-out rows",
        "adapters",
        "components left",
        "loss increase",
        "draws above 2 %",
        "above 4 %",
    ]
    header += ["worst adapter: loss increase", "draws above 2 %", "parameters left", "points of accuracy"]
    return markdown("## Compressing finished adapters", text, header, lines, 2)


def _rule(stored: str) -> str:
    return "current rule" if stored == "as it is" else name_of(stored)


def checks() -> str:
    """Return how often a check on few held-out rows errs."""
    lines = []
    for row in sorted(
        read("decisions.parquet"), key=lambda row: (row["rule"], row["tolerance"], row["seed"], row["drawn"])
    ):
        line = [_rule(row["rule"]), f"{100 * row['tolerance']:g} %", str(row["seed"]), str(row["drawn"])]
        line += [
            f"{100 * row['made']:.0f} %",
            f"{row['left']:.0f} of {row['of']}",
            f"{100 * row['loss_increase']:.2f} %",
        ]
        lines.append([*line, *(f"{300 * row[name]:.0f} of 300" for name in ("too_much", "twice_too_much"))])
    text = (
        "Adapters of two trainings on sst2 that were never pruned; whole checks on a few of 8,000 rows, 300 draws each, without noise "
        "tolerance. An error is a prune whose true loss increase is above the tolerance. `studies/decisions.py`."
    )
    header = [
        "rule",
        "tolerance",
        "seed",
        "held-out rows",
        "prunes made",
        "components left, median",
        "loss increase, mean",
        "above the tolerance",
    ]
    return markdown("## How often a check errs", text, [*header, "above twice the tolerance"], lines)


def loss_increases() -> str:
    """Return the measured loss increase of prunes of many sizes beside their share of importance."""
    lines = [
        [
            str(row["seed"]),
            f"{row['left']} of {row['of']}",
            f"{100 * row['importance']:.2f} %",
            f"{signed([row['loss_increase']])} %",
            f"{row['loss_increase'] / row['importance']:.1f}".replace("-", "−"),
        ]
        for row in read("loss_increase.parquet")
    ]
    text = "The same adapters, all 8,000 rows. Both columns are shares: of all importance, and of the gain. `studies/decisions.py`."
    header = ["seed", "components left", "importance removed", "loss increase", "loss increase / importance"]
    return markdown("### Importance and loss increase", text, header, lines, 0)


def calibration() -> str:
    """Return how well either loss orders trainings as accuracy does."""
    lines = []
    for heads in (False, True):
        for task in ("sst2", "mnli"):
            rows = [
                row
                for row in read("learning_rates.parquet")
                if row["task"] == task
                and row["calibrated_loss"] is not None
                and row["calibrated_loss"] == row["calibrated_loss"]
                and (heads or row["method"] != "head")
            ]
            accuracy = [row["accuracy"] for row in rows]
            correlations = [
                np.array(spearmanr(accuracy, [row[name] for row in rows]))[0]
                for name in ("loss", "calibrated_loss")
            ]
            lines.append(
                [task, "yes" if heads else "no", str(len(rows)), *(f"{value:.2f}" for value in correlations)]
            )
    text = "Spearman's rank correlation with accuracy over the trials of the table above."
    header = ["task", "heads alone included", "trials", "cross-entropy", "calibrated loss"]
    return markdown("### Which loss follows accuracy", text, header, lines)


if __name__ == "__main__":
    main()
