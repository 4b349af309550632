"""Adaptive rank against other ways to an adapter of its size: AdaLoRA and EVA, and PEFT's compression of a finished rank-16 adapter.

    python studies/equal_size.py --data ../shared/data/glue     # runs what is missing, stores as it goes, prints
    python studies/equal_size.py --show                         # prints what is stored

Seeds, rows and runs are those of studies/grid.py, whose adaptive runs say the size: their mean rank on a task, to the nearest whole number,
in all linear layers, all with adaptive's schedule. AdaLoRA and EVA also run as they are by default (rank 8 on query and value).
`convert_to_lora` keeps in each layer the singular values with a share of its energy; the share is the largest that makes no larger
adapter than adaptive's, or the smallest, since it keeps a rank of 1 in every layer. Stored as studies/equal_size.parquet, a row a run;
`--device cuda --jobs 14` runs the baselines on a GPU, stored apart and beside the same adaptive runs. `--show --earlier` prints what
earlier versions gave, with the linear schedule.
"""

import argparse
import statistics
import warnings
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from peft import PeftModel, convert_to_lora

import grid
from rankwise.adapters import predict
from rankwise.lora.layer import lora_layers
from rankwise.models import loading
from rankwise.models.hub import DEFAULT
from rankwise.run_folder import RunFolder, run_folders
from trials import earlier

STORED = Path(__file__).with_suffix(".parquet")
TASKS, SEEDS = ("movies", "mnli", "qqp"), 3
WHOLE = "lora:rank=16,alpha=5.66,rslora=true,targets=all-linear,lr=1e-3"
RATES = {"peft:adalora": "8e-3", "peft:eva": "1e-3"}
"""Of four in all linear layers, at rank 1, those with the best accuracy on held-out rows of mnli, as of four `WHOLE`'s is
(studies/learning_rates.py --device cuda)."""
KEPT = ("task", "seed", "score", "adapter_params", "mean_rank", "train_seconds")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder with one sub-folder of GLUE's Parquet files a task")
    parser.add_argument("--work", type=Path, default=Path("runs/grid"), help="where grid.py keeps its runs")
    parser.add_argument("--tasks", nargs="*", default=TASKS, help="some of the tasks")
    parser.add_argument("--stages", type=int, default=2, help="1: without AdaLoRA and EVA at their defaults")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda is stored apart")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, with one thread each")
    parser.add_argument("--show", action="store_true", help="print what is stored, run nothing")
    parser.add_argument(
        "--earlier", action="store_true", help="print what earlier versions gave, run nothing"
    )
    asked = parser.parse_args()
    asked.show |= asked.earlier
    global STORED
    if asked.device == "cuda":
        STORED, asked.work = STORED.with_stem("equal_size-cuda"), asked.work / "cuda"
    stored, of_grid = (earlier(path) if asked.earlier else path for path in (STORED, grid.STORED))
    adaptive = [row for row in pq.read_table(of_grid).to_pylist() if row["method"] == "adaptive"]
    if not asked.show:
        if asked.data is None:
            parser.error("--data is needed to run anything")
        more = ["--schedule", "two-phase", "--device", asked.device, "--jobs", str(asked.jobs)]
        data, out = grid.prepare(asked.data, asked.work / "data"), asked.work / "equal"
        for at_defaults in (False, True)[: asked.stages]:
            for task in asked.tasks:
                found = [row for row in adaptive if row["task"] == task]
                if found:
                    rank = None if at_defaults else round(statistics.fmean(row["mean_rank"] for row in found))
                    grid.compare(out, data, task, _methods(rank), SEEDS, *more)
                    store(out, {row["seed"]: row["adapter_params"] for row in found})
    show([*adaptive, *(pq.read_table(stored).to_pylist() if stored.exists() else [])])


def _methods(rank: int | None) -> tuple[str, ...]:
    """What is trained at a rank in all linear layers, or at the defaults."""
    if rank is None:
        return tuple(f"{name},lr={lr}" for name, lr in RATES.items())
    return WHOLE, *(f"{name},rank={max(1, rank)},targets=all-linear,lr={lr}" for name, lr in RATES.items())


def store(out: Path, sizes: dict[int, int]) -> None:
    """Adds the finished runs, and of each rank-16 adapter what `convert_to_lora` makes of it.

    Args:
        out: folder of the runs.
        sizes: seed → parameters of the adapter that adaptive ended with on the task at hand.
    """
    rows = pq.read_table(STORED).to_pylist() if STORED.exists() else []
    known = {(row["task"], row["method"], row["seed"]) for row in rows}
    for run in run_folders(out):
        if not run.finished:
            continue
        result = run.read_result()
        name = result["method"], result["seed"]
        if (result["task"], *name) not in known:
            rows.append({**{key: result[key] for key in KEPT}, "method": result["method"], "share": None})
            if result["method"] == WHOLE and result["seed"] in sizes:
                rows.append({**rows[-1], "method": "post hoc", **_converted(run, sizes[result["seed"]])})
    names = list(dict.fromkeys(name for row in rows for name in row))
    partial = STORED.with_suffix(".partial")
    pq.write_table(pa.table({name: [row.get(name) for row in rows] for name in names}), partial)
    partial.replace(STORED)


def _converted(run: RunFolder, size: int) -> dict[str, Any]:
    """Score and size of a run's adapter after `convert_to_lora`."""
    trained = predict.open_trained(run.path)
    base, _ = loading.load(
        loading.locate(DEFAULT), list(trained.task.label_names), dtype=torch.float32, seed=0
    )
    adapter = PeftModel.from_pretrained(base, str(run.path))
    low, high = 0.0, 1.0
    for _ in range(8):
        middle = (low + high) / 2
        if _size(_convert(adapter, middle)) <= size:
            low = middle
        else:
            high = middle
    share = low or high  # it keeps a rank of 1 at least: the smallest, where that is too large
    kept = _convert(adapter, share)
    for path, layer in lora_layers(trained.model).items():
        A, B = (kept[f"base_model.model.{path}.lora_{factor}.weight"] for factor in "AB")
        layer.resize(A, B)
        layer.scaling = 1.0
    scores = predict.evaluate(trained)
    ranks = [layer.rank for layer in lora_layers(trained.model).values()]
    return {
        "score": scores["accuracy"],
        "adapter_params": _size(kept),
        "mean_rank": statistics.fmean(ranks),
        "train_seconds": None,
        "share": share,
    }


def _convert(adapter: PeftModel, share: float) -> dict[str, torch.Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is LoRA already
        return convert_to_lora(adapter, share)[1]


def _size(state: dict[str, torch.Tensor]) -> int:
    return sum(tensor.numel() for tensor in state.values())


def show(rows: list[dict[str, Any]]) -> None:
    """Markdown: of each way on each task the mean score, the parameters, the seeds, and how far adaptive is ahead on the same seeds."""
    of = {(row["task"], _name(row["method"]), row["seed"]): row for row in rows}
    methods = [name for name in dict.fromkeys(name for _, name, _ in of) if name != "adaptive"]
    tasks = [task for task in TASKS if any(key[:2] == (task, name) for key in of for name in methods)]
    print(f"| method | {' | '.join(tasks)} |\n|---|{'---:|' * len(tasks)}")
    for method in ("adaptive", *methods):
        cells = []
        for task in tasks:
            seeds = [s for t, name, s in of if (t, name) == (task, method) and (task, "adaptive", s) in of]
            if not seeds:
                cells.append("")
                continue
            score, size, adaptive = (
                statistics.fmean(of[task, name, seed][key] for seed in seeds)
                for name, key in ((method, "score"), (method, "adapter_params"), ("adaptive", "score"))
            )
            ahead = "" if method == "adaptive" else f", adaptive {100 * (adaptive - score):+.2f}"
            cells.append(f"{100 * score:.2f} ({size / 1000:.0f} k, {len(seeds)}{ahead})")
        print(f"| {method} | {' | '.join(cells)} |")


def _name(method: str) -> str:
    """Without ranks, which differ between tasks."""
    if method == WHOLE:
        return "LoRA of rank 16, all linear layers"
    if method == "post hoc":
        return "that, by PEFT's convert_to_lora at adaptive's size"
    name = method.partition(",")[0].removeprefix("peft:")
    return (
        f"{name}, at adaptive's mean rank, {method.partition('lr=')[2]}"
        if "rank=" in method
        else f"{name}, default"
        if "peft" in method
        else method
    )


if __name__ == "__main__":
    main()
