"""The optimizers under which ranks can change: torch's own and every one that Transformers' Trainer offers."""

import contextlib
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
from rankwise.lora.inject import adapt_at_start_rank
from rankwise.rank.controller import RankController

CARRIED = "works: state is carried into the new rank"
RESET = "works: state begins anew in a layer that is resized, and a note says so"
REFUSED = "refused before the first step"


class Network(nn.Module):
    """Wide enough for bitsandbytes to keep 8-bit state (4,096 numbers a matrix)."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(1024, 1100), nn.Linear(1100, 2), nn.Linear(2, 2)

    def forward(self, x):
        return self.head(self.second(torch.tanh(self.first(x))))


def trained(make):
    """Train a network through a prune to rank 0, a prune and a growth of a wide layer; return the controller."""
    torch.manual_seed(0)
    model = adapt_at_start_rank(Network(), targets=("first", "second"), also_train=["head"]).train()
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
    if hasattr(optimizer, "eval"):
        with pytest.raises(RankwiseError, match=r"Call the optimizer's eval\(\) before sort"):
            controller.sort()
        optimizer.eval()
    before = controller.layers["first"].delta()
    controller.sort()
    torch.testing.assert_close(controller.layers["first"].delta(), before, rtol=1e-4, atol=1e-7)
    if hasattr(optimizer, "train"):
        optimizer.train()
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
    controller = trained(
        lambda m: torch.optim.Muon([p for p in m.parameters() if p.requires_grad and p.ndim == 2], lr=1e-4)
    )
    assert not controller.notes


TRAINER = {
    "adamw_torch": CARRIED,
    "adamw_torch_fused": CARRIED,
    "adafactor": RESET,
    "adamw_torch_4bit": RESET,
    "adamw_torch_8bit": RESET,
    "ademamix": RESET,
    "sgd": CARRIED,
    "adagrad": CARRIED,
    "adamw_bnb_8bit": RESET,
    "adamw_8bit": RESET,
    "ademamix_8bit": RESET,
    "lion_8bit": RESET,
    "lion_32bit": RESET,
    "paged_adamw_32bit": RESET,
    "paged_adamw_8bit": RESET,
    "paged_ademamix_32bit": RESET,
    "paged_ademamix_8bit": RESET,
    "paged_lion_32bit": RESET,
    "paged_lion_8bit": RESET,
    "rmsprop": CARRIED,
    "rmsprop_bnb": RESET,
    "rmsprop_bnb_8bit": RESET,
    "rmsprop_bnb_32bit": RESET,
    "galore_adamw": CARRIED,
    "galore_adamw_8bit": RESET,
    "galore_adafactor": RESET,
    "galore_adamw_layerwise": REFUSED,
    "galore_adamw_8bit_layerwise": REFUSED,
    "lomo": REFUSED,
    "adalomo": REFUSED,
    "grokadamw": REFUSED,
    "schedule_free_radam": RESET,
    "schedule_free_adamw": RESET,
    "schedule_free_sgd": RESET,
    "apollo_adamw": CARRIED,
    "apollo_adamw_layerwise": REFUSED,
    "stable_adamw": CARRIED,
}
"""Every name that Trainer knows → what happens. Run with torchao 0.18, schedulefree 1.4, lomo-optim 0.1, grokadamw 0.1, torch-optimi 0.3,
galore-torch 1.0 and apollo-torch 1.0. Where such a package is missing, Trainer refuses the name itself."""
ELSEWHERE = {"adamw_torch_xla", "adamw_torch_npu_fused", "adamw_anyprecision", "galore_adafactor_layerwise"}
"""Names that Trainer refuses: they need torch_xla, torch_npu or torchdistx; the last is refused by galore-torch itself."""
CUDA = {"galore_adamw_8bit", "adalomo"}
"""Names whose packages refuse to run without CUDA."""
PACKAGES = {
    "4bit": "torchao",
    "torch_8bit": "torchao",
    "galore": "galore_torch",
    "apollo": "apollo_torch",
    "lomo": "lomo_optim",
    "grokadamw": "grokadamw",
    "schedule_free": "schedulefree",
    "stable": "optimi",
}


def test_the_table_has_every_optimizer_of_trainer():
    assert {x.value for x in OptimizerNames} == TRAINER.keys() | ELSEWHERE


@pytest.mark.slow
@pytest.mark.parametrize("name", [x.value for x in OptimizerNames])
def test_ranks_change_under_every_optimizer_of_trainer(name, tmp_path):
    low_rank = "galore" in name or "apollo" in name
    arguments = hf.TrainingArguments(
        output_dir=str(tmp_path),
        optim=name,
        learning_rate=1e-4,
        optim_target_modules=["head"] if low_rank else None,
        report_to=[],
        use_cpu=True,
    )

    def make(model):
        return hf.Trainer(model, arguments).create_optimizer()

    missing = any(
        part in name and not importlib.util.find_spec(package) for part, package in PACKAGES.items()
    )
    with warnings.catch_warnings(action="ignore"):  # what the optimizers themselves warn of
        if missing or name in ELSEWHERE or (name in CUDA and not torch.cuda.is_available()):
            with pytest.raises((ImportError, ValueError, AssertionError)):
                trained(make)
            return
        if TRAINER[name] == REFUSED:
            with pytest.raises(RankwiseError, match="Ranks can't be found with .*: it "):
                trained(make)
            return
        controller = trained(make)
    assert len(controller.notes) == (TRAINER[name] == RESET)


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_adagrad_goes_on_after_other_ranks_were_loaded(value):
    """It makes its state in its constructor alone."""
    torch.manual_seed(0)
    model = adapt_at_start_rank(Network(), targets=("first",))
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adagrad(parameters, lr=1e-3, initial_accumulator_value=value)
    controller = RankController(model, lambda: torch.zeros(2), 10_000, optimizer)
    x = torch.randn(16, 1024)
    other = adapt_at_start_rank(Network(), 3, targets=("first",), seed=5)
    nn.init.normal_(other.first.lora_B)
    for step in range(4):
        if step == 2:
            model.load_state_dict(other.state_dict())
        model(x).square().mean().backward()
        gradient = model.first.lora_A.grad.clone()
        optimizer.step()
        optimizer.zero_grad()
        with pytest.warns(UserWarning, match="other weights") if step == 2 else contextlib.nullcontext():
            controller.step()
        if step == 2:
            torch.testing.assert_close(optimizer.state[model.first.lora_A]["sum"], gradient**2 + value)
    assert model.first.rank == 3
    assert not any("keeps state" in note for note in controller.notes)


def test_an_optimizer_that_lacks_the_layers_is_refused():
    model = adapt_at_start_rank(Network(), targets=("first",))
    with pytest.raises(RankwiseError, match=r"\(SGD\) doesn't train first.lora_A \(2 of 2"):
        RankController(model, lambda: torch.zeros(2), 10, torch.optim.SGD([nn.Parameter(torch.zeros(1))]))
