"""A search over method and learning rate by Ray Tune; trials that fall behind in the held-out loss are stopped (ASHA).

python examples/ray_tune.py reviews.csv [trials] [model]
"""

import csv
import random
import sys
from pathlib import Path

from ray import tune
from ray.tune.schedulers import ASHAScheduler
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import rankwise

EVERY = 10
"""Steps between two looks at the held-out loss."""


def train(config: dict) -> None:
    with Path(config["file"]).open(encoding="utf-8", newline="") as table:
        rows = list(csv.DictReader(table))
    random.Random(0).shuffle(rows)
    held_out, rows = rows[: len(rows) // 5], rows[len(rows) // 5 :]
    labels = dict(enumerate(sorted({row["label"] for row in rows})))
    tokenizer = AutoTokenizer.from_pretrained(config["model"])
    model = AutoModelForSequenceClassification.from_pretrained(config["model"], id2label=labels)
    method, lr = config["method"], config["lr"]
    if method != "full":
        rankwise.adapt(model, 8 if method == "lora" else None)

    def report(step) -> None:
        if step.step % EVERY == 0:
            loss = rankwise.evaluate(model, tokenizer, held_out)["loss"]
            tune.report({"loss": loss, "step": step.step})

    options = rankwise.TrainOptions(epochs=2, batch_size=16, lr=lr / 10 if method == "full" else lr)
    rankwise.fit(model, tokenizer, rows, options=options, on_step=report)


if __name__ == "__main__":
    file, trials = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 20
    name = sys.argv[3] if len(sys.argv) > 3 else "sentence-transformers/all-MiniLM-L6-v2"
    space = {
        "file": str(Path(file).absolute()),  # trials run in folders of their own
        "model": str(Path(name).absolute()) if Path(name).exists() else name,
        "method": tune.choice(["lora", "adaptive", "full"]),
        "lr": tune.loguniform(1e-4, 1e-2),
    }
    scheduler = ASHAScheduler(time_attr="step", grace_period=EVERY, max_t=100_000)
    settings = tune.TuneConfig(metric="loss", mode="min", scheduler=scheduler, num_samples=trials)
    best = tune.Tuner(train, param_space=space, tune_config=settings).fit().get_best_result()
    print(
        f"Lowest held-out loss {best.metrics['loss']:.3f}: {best.config['method']}, learning rate {best.config['lr']:.2g}"
    )
