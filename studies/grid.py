"""The grid behind adaptive rank: every fixed rank, head only, full fine-tuning and adaptive on seven tasks, paired by seed.

    python studies/grid.py --data ../shared/data/glue      # runs what is missing, stores as it goes, prints
    python studies/grid.py --show                          # prints what is stored

Runs are `rankwise compare` on the embedded model, two at a time with one thread each; stop it at any time, the same command continues.
What is stored is not run again, even where its folder is gone. studies/earlier holds what came before updates were clipped
(`optim.Update`) and before the last change of how layers are pruned; `--show --earlier` prints that.
Fixed ranks have the scale, 5.66/√r, and the learning rate that is best for them in studies/learning_rates.py: 2e-3 on query and value, 1e-3
in all linear layers. Adaptive and full fine-tuning have the recipe's. To see small differences more rows are
judged than GLUE's validation splits have: sst2 trains on 12,000 rows and is judged on 10,000 further ones besides, mrpc on its test
split too. rte starts from the mnli adapter of the same seed and method; the head alone, which has none, from the model as it is.
Stored as studies/grid.parquet, a row a run.
`--device cuda --jobs 14` runs it on a GPU, stored apart as studies/grid-cuda*.parquet (one process at a time hardly uses it);
what wasn't run there is taken from the CPU: adaptive, and with `--schedule` whatever has that schedule.
`--schedule linear` gives adaptive the schedule that the others have in the recipe, `--schedule two-phase` the others adaptive's; both are
stored apart, as studies/grid-<schedule>.parquet. With two-phase, a second table lets either schedule of a fixed rank be the best.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.stats import t, ttest_1samp

from rankwise.report.stats import estimate, holm
from rankwise.run_folder import RunFolder, run_folders
from trials import earlier

STORED = Path(__file__).with_suffix(".parquet")
ADAPTIVE, SIZE = "adaptive", "adaptive:prefer=size"
OF_RECIPE = {ADAPTIVE: "two-phase", SIZE: "two-phase"}
"""Methods whose schedule in the recipe isn't linear."""
TWO_PHASE = ", two-phase"
"""What is added to the names of methods that have adaptive's schedule."""
Row = dict[str, Any]
RANKS = (1, 2, 4, 8, 16, 32, 64)
FIXED = tuple(f"lora:rank={r},alpha=5.66,rslora=true,lr=2e-3" for r in RANKS)
LINEAR = tuple(
    f"lora:rank={r},alpha=5.66,rslora=true,targets=all-linear,lr=1e-3" for r in (1, 2, 4, 8, 16, 64)
)
TASKS = ("mnli", "movies", "mrpc", "sst2", "qnli", "qqp")
STAGES: tuple[tuple[int, tuple[str, ...], tuple[str, ...]], ...] = (
    (2, (ADAPTIVE, SIZE, FIXED[3], LINEAR[3], "full"), TASKS),
    (3, (ADAPTIVE, SIZE, *FIXED, *LINEAR, "head", "full"), TASKS),
    (5, (ADAPTIVE, SIZE, FIXED[3], *LINEAR[2:5], "full"), TASKS),
)
"""Seeds, methods and tasks, the most telling first; a later stage adds to an earlier one's runs."""
WIDTH, LAYERS = 384, 12
"""Of the embedded model's query and value projections, and how many there are."""
LINEAR_8 = 337_920
"""Parameters of rank 8 in all linear layers of the embedded model."""
SST2_TRAINED, SST2_JUDGED = 12_000, 10_000


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder with one sub-folder of GLUE's Parquet files a task")
    parser.add_argument("--work", type=Path, default=Path("runs/grid"), help="where runs are kept")
    parser.add_argument("--tasks", nargs="*", default=TASKS, help="some of the tasks")
    parser.add_argument("--stages", type=int, default=len(STAGES), help="how many stages")
    parser.add_argument("--methods", nargs="*", help="some of the methods")
    parser.add_argument("--schedule", choices=("linear", "two-phase"), help="for all methods, stored apart")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda is stored apart")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, with one thread each")
    parser.add_argument("--show", action="store_true", help="print what is stored, run nothing")
    parser.add_argument(
        "--earlier", action="store_true", help="print what earlier versions gave, run nothing"
    )
    asked = parser.parse_args()
    asked.show |= asked.earlier
    global STORED
    if asked.earlier:
        STORED = earlier(STORED)
    on_cpu = _stored()
    more = ["--device", asked.device, "--jobs", str(asked.jobs)]
    if asked.device == "cuda":
        STORED, asked.work = STORED.with_stem("grid-cuda"), asked.work / "cuda"
    of_recipe = _stored()
    if not any(row["method"] in OF_RECIPE for row in of_recipe):
        of_recipe += [row for row in on_cpu if row["method"] in OF_RECIPE]
    if asked.schedule:
        on_cpu = _stored(STORED.with_stem(f"grid-{asked.schedule}"))
        STORED, asked.work = STORED.with_stem(f"{STORED.stem}-{asked.schedule}"), asked.work / asked.schedule
        more += ["--schedule", asked.schedule]
    if not asked.show:
        if asked.data is None:
            parser.error("--data is needed to run anything")
        data = prepare(asked.data, asked.work / "data")
        for seeds, all_methods, of in STAGES[: asked.stages]:
            methods = [
                m
                for m in all_methods
                if m in (asked.methods or all_methods) and OF_RECIPE.get(m, "linear") != asked.schedule
            ]
            for task in (task for task in of if task in asked.tasks):
                from_mnli = (
                    [m for m in _missing("rte", methods, seeds) if m != "head"] if task == "mnli" else []
                )
                missing = [m for m in methods if m in {*_missing(task, methods, seeds), *from_mnli}]
                compare(asked.work / "runs", data, task, missing, seeds, *more)
                start = f"{asked.work / 'runs'}/mnli.{{method}}.s{{seed}}"
                compare(asked.work / "rte", data, "rte", from_mnli, seeds, "--from-adapter", start, *more)
                if task == "mnli" and "head" in methods:
                    compare(asked.work / "runs", data, "rte", _missing("rte", ["head"], seeds), seeds, *more)
                _store(asked.work)
    if asked.schedule is None:
        show(of_recipe if asked.show else _stored())
    else:
        show(_with_schedule(asked.schedule, of_recipe, own := _first([*_stored(), *on_cpu])))
        if asked.schedule == "two-phase":
            print("\nWhere fixed ranks have either schedule:\n")
            show([*of_recipe, *({**row, "method": f"{row['method']}{TWO_PHASE}"} for row in own)])


def _with_schedule(schedule: str, of_recipe: list[Row], own: list[Row]) -> list[Row]:
    """All methods with a schedule; full fine-tuning as the recipe has it where it wasn't run with this one."""
    same = (r for r in of_recipe if r["method"] == "full" or OF_RECIPE.get(r["method"], "linear") == schedule)
    return _first([*own, *same])


def _first(rows: Sequence[Row]) -> list[Row]:
    """Of each method's run of a task and seed, the first."""
    found: dict[tuple[str, str, int], Row] = {}
    for row in rows:
        found.setdefault((row["task"], row["method"], row["seed"]), row)
    return list(found.values())


def prepare(glue: Path, out: Path) -> Path:
    """The tasks' files, with more rows to judge where there are some."""
    for task in ("mnli", "qnli", "qqp", "rte"):
        (out / task).mkdir(parents=True, exist_ok=True)
        for file in (glue / task).glob("*.parquet"):
            pq.write_table(pq.read_table(file), out / task / file.name)
    sst2 = pq.read_table(glue / "sst2" / "train.parquet")
    order = np.random.default_rng(0).permutation(len(sst2))
    trained, judged = order[:SST2_TRAINED], order[SST2_TRAINED:][:SST2_JUDGED]
    mrpc = [pq.read_table(glue / "mrpc" / f"{split}.parquet") for split in ("train", "validation", "test")]
    for task, train, validation in (
        (
            "sst2",
            sst2.take(trained),
            [pq.read_table(glue / "sst2" / "validation.parquet"), sst2.take(judged)],
        ),
        ("mrpc", mrpc[0], mrpc[1:]),
    ):
        (out / task).mkdir(parents=True, exist_ok=True)
        pq.write_table(train, out / task / "train.parquet")
        pq.write_table(_one(validation), out / task / "validation.parquet")
    return out


def _one(parts: list[pa.Table]) -> pa.Table:
    """One table whose idx is the row's place in it."""
    table = pa.concat_tables(part.select([c for c in parts[0].column_names if c != "idx"]) for part in parts)
    return table.append_column("idx", pa.array(np.arange(len(table))))


def _missing(task: str, methods: Sequence[str], seeds: int) -> list[str]:
    """Methods of which not every seed is stored."""
    known = {(row["task"], row["method"], row["seed"]) for row in _stored()}
    return [m for m in methods if any((task, m, seed) not in known for seed in range(seeds))]


def compare(out: Path, data: Path, task: str, methods: Sequence[str], seeds: int, *more: str) -> None:
    if not methods:
        return
    command = [sys.executable, "-m", "rankwise", "compare", "--data", str(data), "--tasks", task]
    command += ["--methods", *methods, "--seeds", str(seeds), "--threads", "1"]
    if task == "mnli":
        command.append("--keep-models")  # rte's full fine-tuning starts from it
    subprocess.run([*command, *more, "--out", str(out)], check=True)


def _stored(path: Path | None = None) -> list[Row]:
    path = path or STORED
    return pq.read_table(path).to_pylist() if path.exists() else []


def _store(work: Path) -> None:
    """Adds the finished runs to those that are stored."""
    found = [summary(run) for folder in ("runs", "rte") for run in run_folders(work / folder) if run.finished]
    rows = _first([*found, *_stored()])
    partial = STORED.with_suffix(".partial")
    pq.write_table(pa.Table.from_pylist(rows), partial)
    partial.replace(STORED)


def summary(run: RunFolder) -> Row:
    """What is stored of a finished run."""
    result = run.read_result()
    scores = next(iter(result["scores"].values()))
    kept = (
        "task",
        "method",
        "seed",
        "score",
        "n_train",
        "n_validation",
        "adapter_params",
        "mean_rank",
        "train_seconds",
    )
    return {
        **{key: result[key] for key in kept},
        "loss": scores["loss"],
        "rank_seconds": result.get("rank_seconds"),
        "query_value_params": sum(
            r * 2 * WIDTH for path, r in result["rank"].items() if path.endswith(("query", "value"))
        ),
        "r8": 8 * 2 * WIDTH * LAYERS,
        "rank": json.dumps(result["rank"]),
        "decisions": json.dumps([d["text"] for d in run.read_ranks()]),
    }


def show(rows: list[Row]) -> None:
    """Markdown: mean scores by task and method; then each setting of adaptive against the fixed ranks, and its size."""
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    methods = sorted({row["method"] for row in rows}, key=lambda m: (m != "full", m != ADAPTIVE, m))
    print(f"| method | {' | '.join(tasks)} |\n|---|{'---:|' * len(tasks)}")
    for method in methods:
        print(f"| {method} | {' | '.join(_cell(rows, task, method) for task in tasks)} |")
    for setting in (ADAPTIVE, SIZE):
        if any(row["method"] == setting for row in rows):
            print(f"\n## {setting}\n")
            _show_setting(rows, tasks, setting)


def _show_setting(rows: list[Row], tasks: Sequence[str], setting: str) -> None:
    """Markdown: a setting of adaptive against the fixed rank that is best on the other seeds, against each of them, and its size."""
    differences = {task: found for task in tasks if (found := against_best_fixed(rows, task, setting))}
    if not differences:
        print("No fixed rank is stored here beside it; `--schedule two-phase` has them.")
        return
    several = {task: found for task, found in differences.items() if len(found) > 1}
    p = dict(
        zip(several, holm(np.array([ttest_1samp(d, 0.0)[1] for d in several.values()]).tolist()), strict=True)
    )
    print(
        "| task | it − best fixed rank, by seed | p (Holm) | full − best fixed rank | of that, it closes | parameters, of r = 8's in all "
        "linear layers | of r = 8's on query and value | checks, of training time |"
    )
    print(f"|---|{'---:|' * 7}")
    shares: dict[str, list[float]] = {}
    for task, found in differences.items():
        best, adaptive, full = three(rows, task, setting)
        gap = 100 * (full - best)
        closed = f"{100 * (adaptive - best) / (full - best):.0f} %" if gap > 1 else "no gap of a point"
        of_task = [row for row in rows if (row["task"], row["method"]) == (task, setting)]
        shares[task] = [
            statistics.fmean(row["adapter_params"] / LINEAR_8 for row in of_task),
            statistics.fmean(row["adapter_params"] / row["r8"] for row in of_task),
            statistics.fmean(row["rank_seconds"] / row["train_seconds"] for row in of_task),
        ]
        cells = [
            ", ".join(f"{100 * d:+.2f}" for d in found),
            f"{p[task]:.2f}" if task in p else "",
            f"{gap:+.2f}",
            closed,
            *(f"{100 * share:.0f} %" for share in shares[task][:2]),
            f"{100 * shares[task][2]:.1f} %",
        ]
        print(f"| {task} | {' | '.join(cells)} |")
    medians = [f"{100 * statistics.median(column):.0f} %" for column in zip(*shares.values(), strict=True)]
    print(f"| median | | | | | {' | '.join(medians)} |")
    if len(differences) > 1:
        mean = estimate([statistics.fmean(d) for d in differences.values()])
        print(f"\n{setting} − best fixed rank over {mean.n} tasks: {100 * mean.mean:+.2f} points")
        print(f"± {100 * (mean.half or 0.0):.2f} for other tasks (t, 95 %, over the tasks' means)")
        if several:
            print(
                f"± {100 * half_over_seeds(list(several.values())):.2f} for other seeds (t, 95 %, these tasks)"
            )
        _show_each_rank(rows, setting)


def _show_each_rank(rows: list[Row], setting: str) -> None:
    """Markdown: a setting of adaptive against each fixed rank and full fine-tuning, on the seeds that both have."""
    scores: dict[str, dict[tuple[str, int], float]] = {}
    for row in rows:
        scores.setdefault(row["method"], {})[row["task"], row["seed"]] = row["score"]
    print(
        "\n| compared with | it − that | for other seeds | for other tasks | tasks |\n|---|---:|---:|---:|---:|"
    )
    for method in sorted(
        scores, key=lambda m: (m.startswith(LINEAR), *map(int, re.findall(r"rank=(\d+)", m)))
    ):
        by_task: dict[str, list[float]] = {}
        for task, seed in sorted(scores[method].keys() & scores[setting].keys()):
            by_task.setdefault(task, []).append(scores[setting][task, seed] - scores[method][task, seed])
        if method.startswith((*FIXED, *LINEAR, "full")) and len(by_task) > 1:
            mean = estimate([statistics.fmean(d) for d in by_task.values()])
            several = list(by_task.values()) if min(map(len, by_task.values())) > 1 else []
            seeds = f"± {100 * half_over_seeds(several):.2f}" if several else ""
            print(
                f"| {method} | {100 * mean.mean:+.2f} | {seeds} | ± {100 * (mean.half or 0.0):.2f} | {mean.n} |"
            )


def half_over_seeds(differences: Sequence[Sequence[float]]) -> float:
    """Half the 95 % interval of the mean over tasks of the means over seeds; tasks given, seeds drawn (Welch-Satterthwaite).

    Args:
        differences: of each task, by seed; two of each at least.
    """
    parts = np.array([np.var(d, ddof=1) / len(d) for d in differences])
    freedom = parts.sum() ** 2 / sum(
        part**2 / (len(d) - 1) for part, d in zip(parts, differences, strict=True)
    )
    return float(t.ppf(0.975, freedom) * np.sqrt(parts.sum()) / len(parts))


def _cell(rows: list[Row], task: str, method: str) -> str:
    scores = [100 * row["score"] for row in rows if (row["task"], row["method"]) == (task, method)]
    return f"{statistics.fmean(scores):.2f} ({len(scores)})" if scores else ""


def three(
    rows: list[Row], task: str, setting: str = ADAPTIVE, fixed: tuple[str, ...] = ()
) -> tuple[float, float, float]:
    """Return mean scores of the fixed rank that is best over all its seeds, and on these of a setting of adaptive and of full
    fine-tuning at its best.

    Args:
        rows: of the grid.
        task: whose runs count.
        setting: of adaptive.
        fixed: beginnings of the names of the fixed ranks that count; all where none is given.
    """
    scores: dict[str, dict[int, float]] = {}
    for row in rows:
        if row["task"] == task:
            scores.setdefault(row["method"], {})[row["seed"]] = row["score"]
    candidates = (
        of for method, of in scores.items() if method.startswith(fixed or FIXED + LINEAR) and len(of) > 1
    )
    best = max(candidates, key=lambda of: statistics.fmean(of.values()))

    def mean(method: str) -> float:
        shared = best.keys() & scores[method].keys()
        return statistics.fmean(scores[method][seed] for seed in shared) if shared else float("nan")

    full = max((mean(method) for method in scores if method.startswith("full")), default=float("nan"))
    return statistics.fmean(best.values()), mean(setting), full


def against_best_fixed(
    rows: list[Row], task: str, setting: str = ADAPTIVE, fixed: tuple[str, ...] = ()
) -> list[float]:
    """Return a setting of adaptive minus, for each seed, the fixed rank that is best on the other seeds. The arguments are those of
    `three`."""
    scores = {(row["method"], row["seed"]): row["score"] for row in rows if row["task"] == task}
    seeds = sorted(seed for method, seed in scores if method == setting)
    found = []
    for seed in seeds:
        means = {
            method: statistics.fmean(others)
            for method in dict.fromkeys(
                method for method, _ in scores if method.startswith(fixed or FIXED + LINEAR)
            )
            if len(others := [score for (m, s), score in scores.items() if m == method and s != seed]) > 1
            and (method, seed) in scores
        }
        if means:
            found.append(scores[setting, seed] - scores[max(means, key=lambda m: means[m]), seed])
    return found


if __name__ == "__main__":
    main()
