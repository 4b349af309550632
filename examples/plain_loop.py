"""A plain PyTorch loop, here under Accelerate, whose adapters find their ranks: the controller asks for the loss of each held-out
example, whatever loss that is.

python examples/plain_loop.py my-adapter [model]
"""

import sys

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BatchEncoding

import rankwise

EPOCHS = 8
out, name = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "sentence-transformers/all-MiniLM-L6-v2"
rows = [("a fine film", 1), ("a dull plot", 0), ("the plot was good", 1), ("the film is bad", 0)] * 32
held_out, rows = rows[:64], rows[64:]

tokenizer = AutoTokenizer.from_pretrained(name)
model = AutoModelForSequenceClassification.from_pretrained(name, num_labels=2)
rankwise.adapt(model)


def collate(batch: list[tuple[str, int]]) -> BatchEncoding:
    texts, labels = zip(*batch, strict=True)
    encoded = tokenizer(list(texts), padding=True, return_tensors="pt")
    encoded["labels"] = torch.tensor(labels)
    return encoded


accelerator = Accelerator(cpu=not torch.cuda.is_available())
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
model, optimizer, batches = accelerator.prepare(
    model, optimizer, DataLoader(rows, batch_size=8, shuffle=True, collate_fn=collate)
)


@torch.no_grad()
def example_losses() -> torch.Tensor:
    model.eval()
    batch = collate(held_out).to(accelerator.device)
    losses = torch.nn.functional.cross_entropy(model(**batch).logits, batch["labels"], reduction="none")
    model.train()
    return losses


controller = rankwise.RankController(model, example_losses, EPOCHS * len(batches), optimizer)
model.train()
for _ in range(EPOCHS):
    for batch in batches:
        loss = model(**batch).loss
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        controller.step()
print(*controller.decisions, sep="\n")
print(f"loss {loss.item():.3f}")
rankwise.save(accelerator.unwrap_model(model), out)
