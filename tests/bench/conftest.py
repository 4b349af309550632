"""Tiny architectures, and contenders that train it for a while."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rankwise.bench.config import BenchConfig
from rankwise.bench.contenders import CONTENDERS
from rankwise.bench.measurement import resolve
from rankwise.bench.worker import make_schedule
from rankwise.engine.packing import pad
from tiny import CONFIGS


@pytest.fixture(scope="session")
def tiny_roberta(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with the config.json of a tiny RoBERTa."""
    folder: Path = tmp_path_factory.mktemp("tiny-roberta")
    CONFIGS["roberta"].save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with the config.json of a tiny Llama with a frozen head of its own."""
    folder: Path = tmp_path_factory.mktemp("tiny-llama")
    CONFIGS["llama"].save_pretrained(folder)
    return str(folder)


@pytest.fixture
def language_config(tiny_llama: str) -> BenchConfig:
    """A measurement of language models."""
    return resolve(
        BenchConfig(
            problem="generation", random_weights=tiny_llama, batch_size=8, rows=24, repeats=1, dtype="float32"
        )
    )


@pytest.fixture
def build_runner() -> Callable[[str, BenchConfig], Any]:
    """Builds a contender by its name."""

    def build(name: str, config: BenchConfig) -> Any:
        contender = CONTENDERS[name]
        return import_module(contender.module).build_runner(config, **contender.settings)

    return build


@dataclass(frozen=True)
class Trained:
    """A contender after a short training: its runner, its first weights, and its loss before and after."""

    runner: Any
    first: dict[str, torch.Tensor]
    loss_before: float
    loss_after: float

    def moved(self) -> set[str]:
        """Names of the parameters that training changed."""
        parameters = self.runner.model.named_parameters()
        return {name for name, p in parameters if not torch.equal(p.detach(), self.first[name])}


@pytest.fixture
def train_contender(
    tiny_roberta: str, build_runner: Callable[[str, BenchConfig], Any]
) -> Callable[..., Trained]:
    """Trains a contender on the same 24 rows, over and over."""

    def train(name: str, epochs: int = 20) -> Trained:
        config = resolve(
            BenchConfig(
                random_weights=tiny_roberta, batch_size=8, rows=24, repeats=1, lengths="rte", dtype="float32"
            )
        )
        return _train(build_runner(name, config), config, name, epochs)

    return train


@pytest.fixture
def train_language_model(
    language_config: BenchConfig, build_runner: Callable[[str, BenchConfig], Any]
) -> Callable[[str], Trained]:
    """Trains a contender on the same 24 rows, over and over."""
    return lambda name: _train(build_runner(name, language_config), language_config, name, 20)


def _train(runner: Any, config: BenchConfig, name: str, epochs: int) -> Trained:
    schedule = make_schedule(runner, config, CONTENDERS[name].max_length)
    rows, steps = schedule.rows.select(np.concatenate(schedule.repeats[0])), []
    first = {n: p.detach().clone() for n, p in runner.model.named_parameters()}
    before = _loss(runner.model, rows)
    batches = [np.arange(i, i + 8) for i in range(0, 24, 8)] * epochs
    runner.train(rows, batches, lambda: steps.append(1))
    assert len(steps) == len(batches)
    return Trained(runner, first, before, _loss(runner.model, rows))


def _loss(model: Any, rows: Any) -> float:
    """Mean cross-entropy of rows by Transformers' own padded call, without dropout."""
    batch = pad(rows, np.arange(len(rows)), model.config.pad_token_id)
    if rows.token_labels is not None:  # Transformers compares each token's output with the next label
        batch["labels"] = batch["labels"].roll(1, dims=1)
    model.eval()
    with torch.no_grad():
        return float(model(**batch).loss)
