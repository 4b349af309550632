"""A Hugging Face Trainer script with rankwise's layers: adapt the model, train as ever, save an adapter that PEFT loads.

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
texts = ["a fine film", "a dull plot", "the plot was good", "the film is bad"] * 16
rows = Dataset.from_dict({"text": texts, "labels": [1, 0, 1, 0] * 16})

tokenizer = AutoTokenizer.from_pretrained(name)
model = AutoModelForSequenceClassification.from_pretrained(
    name, num_labels=2, id2label={0: "negative", 1: "positive"}, label2id={"negative": 0, "positive": 1}
)
rankwise.adapt(model, rank=8)

trainer = Trainer(
    model=model,
    args=TrainingArguments(
        output_dir=f"{out}/trainer", num_train_epochs=8, per_device_train_batch_size=8, learning_rate=5e-3,
        save_strategy="no", report_to=[], disable_tqdm=True,
    ),
    train_dataset=rows.map(lambda row: tokenizer(row["text"]), remove_columns="text"),
    data_collator=DataCollatorWithPadding(tokenizer),
    compute_metrics=lambda p: {"accuracy": float(np.mean(p.predictions.argmax(1) == p.label_ids))},
)  # fmt: skip
trainer.train()
print(f"accuracy {trainer.evaluate(trainer.train_dataset)['eval_accuracy']:.2f}")
rankwise.save(model, out)
