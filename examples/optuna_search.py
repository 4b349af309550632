"""A search over method and learning rate by Optuna; trials that fall behind in the held-out loss are pruned.

python examples/optuna_search.py reviews.csv [trials] [model]
"""

import csv
import random
import sys
from pathlib import Path

import optuna
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import rankwise

RATES = {"lora": (1e-4, 1e-2), "adaptive": (1e-4, 1e-2), "full": (1e-5, 1e-3)}
EVERY = 10
"""Steps between two looks at the held-out loss."""
file, trials = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 20
name = sys.argv[3] if len(sys.argv) > 3 else "sentence-transformers/all-MiniLM-L6-v2"

with Path(file).open(encoding="utf-8", newline="") as table:
    rows = list(csv.DictReader(table))
random.Random(0).shuffle(rows)
held_out, rows = rows[: len(rows) // 5], rows[len(rows) // 5 :]
labels = dict(enumerate(sorted({row["label"] for row in rows})))
tokenizer = AutoTokenizer.from_pretrained(name)


def train(trial: optuna.Trial) -> float:
    method = trial.suggest_categorical("method", list(RATES))
    lr = trial.suggest_float(f"lr_{method}", *RATES[method], log=True)
    model = AutoModelForSequenceClassification.from_pretrained(name, id2label=labels)
    if method != "full":
        rankwise.adapt(model, 8 if method == "lora" else None)

    def report(step) -> None:
        if step.step % EVERY == 0:
            trial.report(rankwise.evaluate(model, tokenizer, held_out)["loss"], step.step)
            if trial.should_prune():
                raise optuna.TrialPruned

    options = rankwise.TrainOptions(epochs=2, batch_size=16, lr=lr)
    result = rankwise.fit(model, tokenizer, rows, held_out, options=options, on_step=report)
    return result.scores["loss"]


study = optuna.create_study(
    sampler=optuna.samplers.TPESampler(seed=0),
    pruner=optuna.pruners.MedianPruner(n_startup_trials=3),
)
study.optimize(train, n_trials=trials)
pruned = sum(trial.state == optuna.trial.TrialState.PRUNED for trial in study.trials)
print(
    f"{len(study.trials)} trials, {pruned} pruned. Lowest held-out loss {study.best_value:.3f}: {study.best_params}"
)
