"""Short trainings of a tiny BERT, with adaptive rank, at a fixed rank, and of all weights."""

from dataclasses import replace

import numpy as np
import torch

import tiny
from rankwise.config import TrainOptions
from rankwise.engine.compute import Compute
from rankwise.engine.execution import Engine
from rankwise.engine.training import Training
from rankwise.lora.inject import adapt, adapt_at_start_rank
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


def training(n=600, padding="packed", targets=(), dropout=0.0, start=None, given=None, **changes):
    model = tiny.classifier("bert")
    adapt_at_start_rank(model, start, targets=targets, dropout=dropout, prefer="size")
    compute = Compute(device=torch.device("cpu"), padding=padding, max_length=64, pad_id=0)
    return Training(
        model, encoded(n), options=replace(OPTIONS, **changes), compute=compute, seed=0, **given or {}
    )


def fixed(method="lora", rows=None, padding="packed", seed=0, engine=None, given=None, **changes):
    """A training of adapters of rank 4, or with `full` of all weights: two epochs of 60 rows, or of `rows`.

    `given` are more arguments of `Training`, `changes` of its options.
    """
    model = tiny.classifier("bert")
    if method == "lora":
        adapt(model, 4)
    engine = engine or Engine()
    compute = Compute(
        device=torch.device("cpu"),
        padding=padding,
        max_length=64,
        pad_id=0,
        engine=engine,
        threads=engine.micro_batches,
    )
    rows = encoded(60) if rows is None else rows
    return Training(
        model, rows, options=replace(OPTIONS, **changes), compute=compute, seed=seed, **given or {}
    )


def run(state, until=None):
    with state.compute.running(state.model):
        while not state.done and (until is None or state.step_number < until):
            state.step()
    return state
