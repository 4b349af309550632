"""Are ranks found in a script around TRL's SFTTrainer, on SmolLM2 and E2E, with PEFT's layers?

    python studies/sft.py --data ../shared/data      # trains, checks, stores
    python studies/sft.py --show                     # prints what is stored

LoRA of rank 8 in all linear layers, with `rankwise.find_ranks` as the one line added. Three things are checked:

1. Ranks change.
2. A training that continues from the checkpoint after half of the steps takes the same decisions.
3. The adapter that the trainer saves has the same ranks and logits in PEFT, on the base model loaded anew.

The rows are the shortest of E2E's, so that a few minutes do. Stored as studies/sft.json.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

import rankwise
from rankwise.lora.peft_layer import low_rank_layers
from rankwise.models import smollm2
from rankwise.rank.config import RankConfig

STORED = Path(__file__).with_suffix(".json")
CONFIG = RankConfig(prune_at={0.4: 0.02, 0.8: 0.05}, grow_at=(), memory=10, fewest_steps=1, fewest_rows=1)
"""A check before the checkpoint and one behind it, in a training that is shorter than ranks are found in otherwise."""
CLOSE = 1e-4
"""Largest difference of logits, as a share of the largest: the trained model and the loaded one add up in another order."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder with e2e/train.parquet")
    parser.add_argument("--steps", type=int, default=50, help="of the training [%(default)s]")
    parser.add_argument("--batch-size", type=int, default=4, help="rows of a step [%(default)s]")
    parser.add_argument("--held-out", type=int, default=64, help="rows that decide ranks [%(default)s]")
    parser.add_argument("--show", action="store_true", help="print what is stored, run nothing")
    asked = parser.parse_args()
    if not asked.show:
        if asked.data is None:
            parser.error("--data is needed to run anything")
        found = check(asked.data, asked.steps, asked.batch_size, asked.held_out)
        STORED.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(STORED.read_text(encoding="utf-8"), end="")


def check(data: Path, steps: int, batch_size: int, held_out: int) -> dict[str, Any]:
    """Train, continue and load, and return what was found.

    Raises:
        SystemExit: one of the three things doesn't hold.
    """
    rows = shortest(data / "e2e" / "train.parquet", held_out + steps * batch_size)
    kept, trained = rows.select(range(held_out)), rows.select(range(held_out, len(rows)))
    with tempfile.TemporaryDirectory() as folder:
        out, started = Path(folder), time.perf_counter()
        whole, callback = trainer(out, trained, kept, steps, batch_size)
        whole.train()
        seconds = time.perf_counter() - started
        again, resumed = trainer(out, trained, kept, steps, batch_size)
        again.train(resume_from_checkpoint=str(out / f"checkpoint-{steps // 2}"))
        whole.save_model(str(out / "adapter"))
        loaded = PeftModel.from_pretrained(base(), str(out / "adapter")).eval()
        ids = torch.tensor([whole.train_dataset[0]["input_ids"]])
        with torch.no_grad():
            logits = whole.model.eval()(ids).logits
            difference = ((logits - loaded(ids).logits).abs().max() / logits.abs().max()).item()
        assert callback.controller is not None
        expected = {path: max(1, rank) for path, rank in callback.controller.ranks.items()}
        ranks = {path: layer.rank for path, layer in low_rank_layers(loaded).items()}
    first, second = ([one.to_json() for one in decisions.decisions] for decisions in (callback, resumed))
    claims = {
        "ranks change": any(one.accepted for one in callback.decisions),
        "a continued training decides the same": first == second,
        "the saved adapter has the same ranks": ranks == expected,
        "its logits are equal": difference < CLOSE,
    }
    if failed := [claim for claim, holds in claims.items() if not holds]:
        raise SystemExit(f"Not so: {', '.join(failed)}. The largest difference of logits is {difference:g}.")
    return {
        "steps": steps,
        "batch_size": batch_size,
        "held_out": held_out,
        "longest_row": max(map(len, whole.train_dataset["input_ids"])),
        "seconds": round(seconds, 1),
        "decisions": [str(one) for one in callback.decisions],
        "ranks": sorted(set(ranks.values())),
        "mean_rank": sum(ranks.values()) / len(ranks),
        "largest_difference_of_logits": difference,
        "holds": list(claims),
    }


def trainer(
    out: Path, rows: Dataset, held_out: Dataset, steps: int, batch_size: int
) -> tuple[Any, rankwise.RankCallback]:
    """Return a trainer as a TRL script makes it, and what finds its ranks."""
    arguments = SFTConfig(
        output_dir=str(out), max_steps=steps, save_steps=steps // 2, per_device_train_batch_size=batch_size,
        learning_rate=1e-3, report_to=[], use_cpu=True, bf16=False, disable_tqdm=True, gradient_checkpointing=False,
    )  # fmt: skip
    lora = LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules="all-linear")
    made = SFTTrainer(
        base(), arguments, train_dataset=rows, eval_dataset=held_out,
        processing_class=AutoTokenizer.from_pretrained(smollm2.folder()), peft_config=lora,
    )  # fmt: skip
    return made, rankwise.find_ranks(made, config=CONFIG)


def base() -> Any:
    """Return SmolLM2."""
    return AutoModelForCausalLM.from_pretrained(smollm2.folder(), dtype=torch.float32)


def shortest(file: Path, n: int) -> Dataset:
    """Return the rows with the fewest characters, in an order that doesn't go by length."""
    rows = pq.read_table(file, columns=["prompt", "completion"]).to_pylist()
    rows = sorted(rows, key=lambda row: len(row["prompt"]) + len(row["completion"]))[:n]
    ended = [row | {"prompt": row["prompt"] + "\n"} for row in rows]  # no token of both prompt and completion
    return Dataset.from_list(ended).shuffle(seed=0)


if __name__ == "__main__":
    main()
