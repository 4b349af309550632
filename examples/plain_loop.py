"""A plain PyTorch loop with rankwise's layers, and Accelerate where it is installed.

python examples/plain_loop.py my-adapter [model]
"""

import sys

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import rankwise

out, name = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "sentence-transformers/all-MiniLM-L6-v2"
rows = [("a fine film", 1), ("a dull plot", 0), ("the plot was good", 1), ("the film is bad", 0)] * 16

tokenizer = AutoTokenizer.from_pretrained(name)
model = AutoModelForSequenceClassification.from_pretrained(name, num_labels=2)
rankwise.adapt(model, rank=8)


def collate(batch: list[tuple[str, int]]) -> dict[str, torch.Tensor]:
    texts, labels = zip(*batch, strict=True)
    return {**tokenizer(list(texts), padding=True, return_tensors="pt"), "labels": torch.tensor(labels)}


accelerator = Accelerator(cpu=not torch.cuda.is_available())
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
model, optimizer, batches = accelerator.prepare(
    model, optimizer, DataLoader(rows, batch_size=8, shuffle=True, collate_fn=collate)
)
model.train()
for _ in range(8):
    for batch in batches:
        loss = model(**batch).loss
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
print(f"loss {loss.item():.3f}")
rankwise.save(accelerator.unwrap_model(model), out)
