"""A Hugging Face Trainer script whose adapters find their ranks: adapt the model, hold some rows out for the callback, train as ever,
save an adapter that PEFT loads.

python examples/trainer.py my-adapter [model]
"""

import sys

import numpy as np
from datasets import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

import rankwise

out, name = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "sentence-transformers/all-MiniLM-L6-v2"
texts = ["a fine film", "a dull plot", "the plot was good", "the film is bad"] * 32
tokenizer = AutoTokenizer.from_pretrained(name)
rows = Dataset.from_dict({**tokenizer(texts), "labels": [1, 0, 1, 0] * 32})
held_out, train = rows.select(range(64)), rows.select(range(64, 128))
model = AutoModelForSequenceClassification.from_pretrained(
    name, num_labels=2, id2label={0: "negative", 1: "positive"}, label2id={"negative": 0, "positive": 1}
)
rankwise.adapt(model)
ranks = rankwise.RankCallback(held_out)

trainer = Trainer(
    model=model,
    args=TrainingArguments(
        output_dir=f"{out}/trainer", num_train_epochs=8, per_device_train_batch_size=8, learning_rate=1e-3,
        save_strategy="no", report_to=[], disable_tqdm=True,
    ),
    train_dataset=train,
    data_collator=DataCollatorWithPadding(tokenizer),
    callbacks=[ranks],
    compute_metrics=lambda p: {"accuracy": float(np.mean(p.predictions.argmax(1) == p.label_ids))},
)  # fmt: skip
trainer.train()
print(*ranks.decisions, sep="\n")
print(f"accuracy {trainer.evaluate(held_out)['eval_accuracy']:.2f}")
rankwise.save(model, out)
