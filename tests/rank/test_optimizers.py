"""The optimizers under which ranks can change: torch's own and every one that Transformers' Trainer offers."""

import importlib.util
import itertools
import re
import warnings

import pytest
import torch
import transformers as hf
from torch import nn
from transformers.training_args import OptimizerNames

from rankwise.errors import RankwiseError
from rankwise.lora.inject import adapt_freely
from rankwise.rank.controller import RankController

CARRIED, RESET, REFUSED = "state is carried", "state begins anew", "refused"


class Network(nn.Module):
    """Wide enough for bitsandbytes to keep 8-bit state (4,096 numbers a matrix)."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(1024, 1100), nn.Linear(1100, 2)

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


def trained(make):
    """Train a network through a prune to rank 0, a prune and a growth of a wide layer; return the controller."""
    torch.manual_seed(0)
    model = adapt_freely(Network(), targets=("first", "second")).train()
    optimizer = make(model)
    controller = RankController(model, lambda: torch.zeros(2), 10_000, optimizer)
    x, y = torch.randn(16, 1024), torch.randn(16, 2)
    if hasattr(optimizer, "train"):
        optimizer.train()

    def steps(n):
        for _ in range(n):
            loss = (model(x) - y).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            controller.step()
            assert loss.isfinite()

    def resize(path, before, after):
        assert controller.layers[path].rank == before
        with torch.no_grad():
            controller.resizer.resize({path: (before, after)}, controller.bases(), controller.steps_taken)

    steps(4)
    for path, *ranks in (("first", 16, 5, 10), ("second", 2, 0, 1)):
        for before, after in itertools.pairwise(ranks):
            resize(path, before, after)
            steps(3)
    with torch.no_grad():
        controller.sort()
    steps(2)
    for parameter in model.parameters():
        assert parameter.isfinite().all()
    return controller


TORCH = [
    ("Adadelta", {}, RESET),
    ("Adafactor", {}, RESET),
    ("Adagrad", {}, CARRIED),
    ("Adam", {"amsgrad": True}, CARRIED),
    ("AdamW", {}, CARRIED),
    ("AdamW", {"fused": True}, CARRIED),
    ("Adamax", {}, RESET),
    ("ASGD", {}, RESET),
    ("LBFGS", {}, REFUSED),
    ("NAdam", {}, CARRIED),
    ("RAdam", {}, CARRIED),
    ("RMSprop", {}, CARRIED),
    ("RMSprop", {"centered": True}, CARRIED),
    ("RMSprop", {"momentum": 0.9}, RESET),
    ("Rprop", {}, RESET),
    ("SGD", {}, CARRIED),
    ("SGD", {"momentum": 0.9, "nesterov": True}, CARRIED),
    ("SparseAdam", {}, REFUSED),
]


@pytest.mark.parametrize(("name", "options", "expected"), TORCH, ids=lambda value: str(value))
def test_ranks_change_under_every_optimizer_of_torch(name, options, expected):
    def make(model):
        # torch's own Adafactor and LBFGS have no `fused`; the learning rate is small for all
        matrices = [p for p in model.parameters() if p.requires_grad]
        return getattr(torch.optim, name)(matrices, lr=1e-4, **options)

    if expected == REFUSED:
        with pytest.raises(RankwiseError, match=f"Ranks can't be found with {name}: it "):
            trained(make)
        return
    controller = trained(make)
    assert len(controller.notes) == (expected == RESET)
    assert all(note.startswith(f"{name} keeps state") for note in controller.notes)


def test_torch_has_no_optimizer_that_is_not_in_the_table():
    known = {name for name, _, _ in TORCH} | {"Optimizer", "Muon"}  # Muon takes part in the next test
    assert {name for name in dir(torch.optim) if re.match("[A-Z]", name)} <= known


def test_muon_carries_its_momentum():
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("this torch has no Muon")
    controller = trained(lambda m: torch.optim.Muon([p for p in m.parameters() if p.requires_grad], lr=1e-4))
    assert not controller.notes


NEEDS = {
    "4bit": "torchao",
    "torch_8bit": "torchao",
    "galore": "galore_torch",
    "apollo": "apollo_torch",
    "lomo": "lomo_optim",
    "grokadamw": "grokadamw",
    "schedule_free": "schedulefree",
    "stable": "optimi",
    "xla": "torch_xla",
    "npu": "torch_npu",
    "anyprecision": "torchdistx",
}
TRAINER = {"adafactor": RESET, "sgd": CARRIED, "adagrad": CARRIED, "rmsprop": CARRIED}
"""Trainer's name → what becomes of the state. AdamW's is carried, all others' begins anew."""


@pytest.mark.slow
@pytest.mark.parametrize("name", [x.value for x in OptimizerNames])
def test_ranks_change_under_every_optimizer_of_trainer(name, tmp_path):
    missing = [m for part, m in NEEDS.items() if part in name and not importlib.util.find_spec(m)]
    if missing:
        pytest.skip(f"needs {missing[0]}")
    low_rank = (
        "galore" in name or "apollo" in name
    )  # Trainer itself refuses them where no linear layer is trained
    refused = low_rank or "lomo" in name
    arguments = hf.TrainingArguments(
        output_dir=str(tmp_path),
        optim=name,
        learning_rate=1e-4,
        optim_target_modules=["first"] if low_rank else None,
        report_to=[],
        use_cpu=True,
    )

    def make(model):
        trainer = hf.Trainer(model, arguments)
        return trainer.create_optimizer()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the optimizers themselves warn of
        if refused:
            kind, sentence = (
                (ValueError, "No target modules") if low_rank else (RankwiseError, "Ranks can't be")
            )
            with pytest.raises(kind, match=sentence):
                trained(make)
            return
        controller = trained(make)
    expected = TRAINER.get(name, CARRIED if name in ("adamw_torch", "adamw_torch_fused") else RESET)
    assert len(controller.notes) == (expected == RESET)


def test_an_optimizer_that_lacks_the_layers_is_refused():
    model = adapt_freely(Network(), targets=("first",))
    with pytest.raises(RankwiseError, match=r"\(SGD\) doesn't train first.lora_A \(2 of 2"):
        RankController(model, lambda: torch.zeros(2), 10, torch.optim.SGD([nn.Parameter(torch.zeros(1))]))
