"""A short training of a tiny BERT with adaptive rank."""

from dataclasses import replace

import numpy as np
import torch

import tiny
from rankwise.config import TrainOptions
from rankwise.engine.compute import Compute
from rankwise.engine.training import Training
from rankwise.lora.inject import adapt_freely
from rankwise.tasks.encoding import Rows, encode

OPTIONS = TrainOptions(
    epochs=2,
    batch_size=8,
    lr=0.01,
    optimizer="adamw",
    schedule="linear",
    warmup=0.1,
    weight_decay=0.01,
    clip=1.0,
)


def encoded(n):
    reviews = tiny.reviews(n)
    labels = np.array([r["label"] == "positive" for r in reviews], dtype=np.int64)
    texts = Rows(text=[r["text"] for r in reviews], text_pair=None, labels=labels, idx=np.arange(n))
    return encode(texts, tiny.tokenizer(), 64, None)


def training(n=600, padding="packed", targets=(), dropout=0.0, start=None, **changes):
    model = tiny.classifier("bert")
    adapt_freely(model, start, targets=targets, dropout=dropout)
    compute = Compute(device=torch.device("cpu"), padding=padding, max_length=64, pad_id=0)
    return Training(model, encoded(n), options=replace(OPTIONS, **changes), compute=compute, seed=0)


def run(state, until=None):
    with state.compute.running(state.model):
        while not state.done and (until is None or state.step_number < until):
            state.step()
    return state
