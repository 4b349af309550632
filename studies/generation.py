"""Does adaptive rank find its size on a language model? SmolLM2 on E2E: fixed ranks in all linear layers, full fine-tuning, prefix-tuning.

    python studies/generation.py --data ../shared/data      # runs what is missing, stores each run as it ends, prints
    python studies/generation.py --show                     # prints what is stored

2,000 training rows, one epoch in batches of 8 (Hu et al. 2021), paired by seed. Learning rates come from a sweep on training rows alone: a
quarter of their prompts is held out, and each method has the same number of trials. Then each method runs with its best rate, is judged by
its cross-entropy on test rows, and writes a text for each of the 630 test prompts, greedily. BLEU and ROUGE-L take all references of
a prompt.
Runs are `rankwise train` and `rankwise predict`, one after the other. Stop it at any time: the same command continues. Stored as
studies/generation.parquet, a row a run. With `--rows` or `--prompts`, which try it out, everything is stored in the work folder.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rankwise.report.stats import estimate
from rankwise.run_folder import RunFolder

STORED = Path(__file__).with_suffix(".parquet")
Row = dict[str, Any]
ROWS, PROMPTS, JUDGED, SEEDS = 2000, 630, 1500, 3
"""Training rows, test prompts that texts are written for, test rows that the cross-entropy is of, and seeds."""
SWEPT = 4
"""One in so many prompts of the training rows is held out in the sweep."""
ADAPTIVE = ("adaptive", "adaptive:prefer=size")
FIXED = tuple(f"lora:rank={r},alpha=5.66,rslora=true,targets=all-linear" for r in (1, 4, 16))
PREFIX = "peft:prefix,prefix_projection=true,encoder_hidden_size=512"
"""As Li & Liang 2021 have it: the prefix comes out of a network while it is trained. Without, the loss stays far above the start's."""
METHODS: dict[str, tuple[float, ...]] = {
    **dict.fromkeys((*ADAPTIVE, *FIXED), (5e-4, 1e-3, 2e-3)),
    "full": (3e-5, 1e-4, 3e-4),
    PREFIX: (3e-4, 1e-3, 3e-3),
}
"""Learning rates that are tried."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder with e2e/train.parquet and e2e/test.parquet")
    parser.add_argument("--work", type=Path, default=Path("runs/generation"), help="where runs are kept")
    parser.add_argument("--methods", nargs="*", default=tuple(METHODS), help="some of the methods")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="how many seeds")
    parser.add_argument("--rows", type=int, default=ROWS, help="training rows, and test rows at most")
    parser.add_argument("--prompts", type=int, default=PROMPTS, help="test prompts to write for")
    parser.add_argument("--threads", type=int, help="of each run")
    parser.add_argument("--show", action="store_true", help="print what is stored, run nothing")
    asked = parser.parse_args()
    tried = (asked.rows, asked.prompts) != (ROWS, PROMPTS)
    stored = asked.work / STORED.name if tried else STORED
    if not asked.show:
        if asked.data is None:
            parser.error("--data is needed to run anything")
        folders = prepare(asked.data, asked.work / "data", asked.rows, asked.prompts)
        options = ["--limit-eval", str(min(JUDGED, asked.rows))]
        options += [] if asked.threads is None else ["--threads", str(asked.threads)]
        for method in asked.methods:
            for lr in METHODS[method]:
                run(stored, asked.work, "sweep", folders["sweep"], method, lr, 0, options)
        for seed in range(asked.seeds):
            for method in asked.methods:
                lr = best_lr(_read(stored), method)
                run(stored, asked.work, "test", folders["test"], method, lr, seed, options)
    show(_read(stored))


def prepare(data: Path, out: Path, n: int, prompts: int) -> dict[str, Path]:
    """Write the rows that are used as data of the task `e2e`, once in the sweep's splits and once in the test's."""
    train = pq.read_table(data / "e2e" / "train.parquet")
    test = pq.read_table(data / "e2e" / "test.parquet").slice(0, prompts)
    train = train.take(np.random.default_rng(0).permutation(len(train))[:n])
    names = sorted(set(train["prompt"].to_pylist()))
    held_out = {names[i] for i in np.random.default_rng(0).permutation(len(names))[: len(names) // SWEPT]}
    swept = np.array([prompt in held_out for prompt in train["prompt"].to_pylist()])
    splits = {
        "sweep": (train.take(np.flatnonzero(~swept)), train.take(np.flatnonzero(swept))),
        "test": (train, test),
    }
    for name, (trained, judged) in splits.items():
        folder = out / name / "e2e"
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(trained, folder / "train.parquet")
        pq.write_table(judged, folder / "test.parquet")
    return {name: out / name for name in splits}


def run(
    stored: Path, work: Path, part: str, data: Path, method: str, lr: float, seed: int, options: Sequence[str]
) -> None:
    """Run, judge and store one training, unless it is stored."""
    key = {"part": part, "method": method, "lr": lr, "seed": seed}
    if any(all(row[name] == value for name, value in key.items()) for row in _read(stored)):
        return
    out = work / part / f"{method.replace(':', '.')}.lr{lr:g}.s{seed}"
    program = [sys.executable, "-m", "rankwise"]
    print(f"{part}: {method}, learning rate {lr:g}, seed {seed}", flush=True)
    command = ["train", "--task", "e2e", "--data", str(data), "--model", "smollm2", "--method", method]
    command += ["--lr", str(lr), "--seed", str(seed), "--epochs", "1", "--batch-size", "8"]
    subprocess.run([*program, *command, *options, "--out", str(out)], check=True)
    scores = {}
    if part == "test":
        file = str(data / "e2e" / "test.parquet")
        command = [
            "predict",
            str(out),
            file,
            "--scores",
            "bleu",
            "rouge_l",
            "--max-new-tokens",
            "96",
            "--json",
        ]
        command += ["--out", str(out / "texts.parquet")]
        said = subprocess.run([*program, *command], check=True, stdout=subprocess.PIPE, text=True)
        scores = json.loads(said.stdout)["predicted"]
    _store(
        stored, {**key, **summary(RunFolder(out)), **{name: scores.get(name) for name in ("bleu", "rouge_l")}}
    )


def summary(run: RunFolder) -> Row:
    """Return what is stored of a finished run."""
    result = run.read_result()
    scores = next(iter(result["scores"].values()))
    kept = ("n_train", "n_validation", "trainable_params", "adapter_params", "train_seconds", "peak_rss_mb")
    return {
        **{name: result[name] for name in kept},
        **{name: scores[name] for name in ("cross_entropy", "perplexity", "token_accuracy")},
        "rank": json.dumps(result["rank"]),
        "decisions": json.dumps([decision["text"] for decision in run.read_ranks()]),
    }


def best_lr(rows: Sequence[Row], method: str) -> float:
    """Return the rate of a method with the lowest cross-entropy on the sweep's held-out rows."""
    swept = [row for row in rows if (row["part"], row["method"]) == ("sweep", method)]
    return min(swept, key=lambda row: row["cross_entropy"])["lr"]


def _read(path: Path) -> list[Row]:
    return pq.read_table(path).to_pylist() if path.exists() else []


def _store(path: Path, row: Row) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    pq.write_table(pa.Table.from_pylist([*_read(path), row]), partial)
    partial.replace(path)


def show(rows: Sequence[Row]) -> None:
    """Print Markdown: the sweep, each method's scores, and adaptive against the fixed rank that is best."""
    methods = [method for method in METHODS if any(row["method"] == method for row in rows)]
    print("| method | cross-entropy on held-out training rows, by learning rate |\n|---|---|")
    for method in methods:
        swept = [row for row in rows if (row["part"], row["method"]) == ("sweep", method)]
        cells = [f"{row['lr']:g}: {row['cross_entropy']:.4f}" for row in swept]
        print(f"| {method} | {', '.join(cells)} |")
    tested = {m: {r["seed"]: r for r in rows if (r["part"], r["method"]) == ("test", m)} for m in methods}
    tested = {method: by_seed for method, by_seed in tested.items() if by_seed}
    if not tested:
        return
    print("\n| method | rate | cross-entropy | perplexity | BLEU | ROUGE-L | trained parameters | seeds |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for method, by_seed in tested.items():
        cells = [
            f"{_mean(by_seed, name):{form}}"
            for name, form in (
                ("lr", "g"), ("cross_entropy", ".4f"), ("perplexity", ".3f"), ("bleu", ".2f"), ("rouge_l", ".2f"),
                ("trainable_params", ",.0f"),
            )
        ]  # fmt: skip
        print(f"| {method} | {' | '.join(cells)} | {len(by_seed)} |")
    for method in ADAPTIVE:
        _against_best_fixed(method, tested)


def _against_best_fixed(method: str, tested: dict[str, dict[int, Row]]) -> None:
    """Print a method's difference from the fixed rank with the lowest mean cross-entropy, and its size."""
    fixed = [one for one in FIXED if one in tested]
    if method not in tested or not fixed:
        return
    best = min(fixed, key=lambda one: _mean(tested[one], "cross_entropy"))
    seeds = sorted(tested[method].keys() & tested[best].keys())
    print(f"\n{method} against the best fixed rank ({best}), {len(seeds)} seeds:")
    for name, form in (("cross_entropy", "+.4f"), ("bleu", "+.2f")):
        found = estimate([tested[method][seed][name] - tested[best][seed][name] for seed in seeds])
        half = "" if found.half is None else f" ± {found.half:{form[1:]}}"
        print(f"- {name} {found.mean:{form}}{half}")
    for name in ("cross_entropy", "trainable_params"):
        print(f"- {name}: {100 * _mean(tested[method], name) / _mean(tested[best], name):.2f} % of its")


def _mean(by_seed: dict[int, Row], name: str) -> float:
    return statistics.fmean(row[name] for row in by_seed.values())


if __name__ == "__main__":
    main()
