"""What is written is read, here and by PEFT, whatever the layers, ranks, names and forms."""

import copy
import itertools

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

import tiny
from rankwise import export
from rankwise.adapters import attach, peft_format
from rankwise.adapters.formats import loralib
from rankwise.errors import RankwiseError
from rankwise.lora.inject import insert
from rankwise.lora.layer import lora_layers

IDS = torch.randint(3, 15, (3, 7), generator=torch.Generator().manual_seed(0))
BASES = {family: tiny.classifier(family) for family in ("bert", "distilbert", "gpt2", "llama")}
LINEAR = {
    family: [name for name, module in base.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    for family, base in BASES.items()
}
RANKS = st.sampled_from([1, 2, 3, 8, 40])  # layers are 32 wide
ALPHAS = st.sampled_from([0.3, 1, 16, 0, -2])


def same(a, b):
    torch.testing.assert_close(a, b, rtol=2e-4, atol=2e-4)


def randomised(model):
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


@st.composite
def pefts(draw):
    """A family and the settings of an adapter that PEFT makes of its layers."""
    family = draw(st.sampled_from(sorted(BASES)))
    paths = draw(st.lists(st.sampled_from(LINEAR[family]), min_size=1, max_size=4, unique=True))
    task = draw(st.sampled_from(["SEQ_CLS", None]))
    if task is not None:  # PEFT leaves what it saves whole without matrices
        paths = [path for path in paths if "classifier" not in path and "score" not in path]
    assume(paths)
    return family, {
        "task_type": task,
        "target_modules": paths,
        "r": draw(RANKS),
        "lora_alpha": draw(ALPHAS),
        "rank_pattern": {f"^{path}": draw(RANKS) for path in paths if draw(st.booleans())},
        "alpha_pattern": {f"^{path}": draw(ALPHAS) for path in paths if draw(st.booleans())},
        "use_rslora": draw(st.booleans()),
        "fan_in_fan_out": family == "gpt2",
        "init_lora_weights": False,
    }


@given(
    pefts(),
    st.sampled_from(["peft", "loralib"]),
    st.booleans(),
    st.none() | RANKS,
    st.none() | st.integers(2000, 8000),
)
def test_what_peft_makes_is_read_exported_and_read_again(tmp_path_factory, made, form, head, rank, size):
    family, options = made
    folder, base = tmp_path_factory.mktemp("adapter"), BASES[family]
    peft = randomised(get_peft_model(copy.deepcopy(base), LoraConfig(**options)))
    peft.save_pretrained(folder / "made")
    adapter = peft_format.read(folder / "made")
    expected = peft(IDS).logits
    same(attach.attach(copy.deepcopy(base), adapter).eval()(IDS).logits, expected)

    out = folder / "out"
    try:
        done = export(folder / "made", out, format=form, head=head, uniform_rank=rank, max_params=size)
    except RankwiseError as error:
        assert "max_params" in str(error)  # noqa: PT017
        return
    again = peft_format.read(out) if form == "peft" else loralib.read(out, "base", 1.0)
    assert again.ranks == done.ranks
    logits = attach.attach(copy.deepcopy(base), again).eval()(IDS).logits
    if form == "peft":
        same(PeftModel.from_pretrained(copy.deepcopy(base), out).eval()(IDS).logits, logits)
        if done.kept > 1 - 1e-7 and (head or not adapter.trained):
            same(logits, expected)


PATHS = [
    ".".join(names)
    for n in (1, 2, 3)
    for names in itertools.product(("fc", "my_fc", "block", "1", "classifier"), repeat=n)
]


class Leaves(nn.Module):
    """Linear layers at given paths, one after another."""

    def __init__(self, paths):
        super().__init__()
        for path in paths:
            parent = self
            *above, name = path.split(".")
            for part in above:
                if part not in parent._modules:
                    parent.add_module(part, nn.Module())
                parent = parent._modules[part]
            parent.add_module(name, nn.Linear(4, 4))
        self.paths = paths

    def forward(self, x):
        for path in self.paths:
            x = torch.tanh(self.get_submodule(path)(x)) + x
        return x


@settings(max_examples=100)
@given(
    st.lists(st.sampled_from(PATHS), min_size=2, max_size=6, unique=True),
    st.lists(st.sampled_from([0, 1, 2, 3, 5]), min_size=6, max_size=6),
    st.lists(st.sampled_from([0.5, 2.0]), min_size=6, max_size=6),
    st.lists(st.booleans(), min_size=6, max_size=6),
)
def test_names_that_end_alike_mean_different_layers(tmp_path_factory, paths, ranks, scalings, whole):
    """PEFT must load what is saved, and compute the same, or the adapter is refused."""
    paths = [path for path in paths if not any(other.startswith(f"{path}.") for other in paths)]
    ranks = {path: rank for path, rank in zip(paths, ranks, strict=False) if rank}
    assume(ranks)
    torch.manual_seed(0)
    base = Leaves(paths)
    model = copy.deepcopy(base)
    insert(model, ranks, dict(zip(paths, scalings, strict=False)))
    for path, saved in zip(paths, whole, strict=False):
        if saved and path not in ranks:
            model.get_submodule(path).requires_grad_(True)
    randomised(model)
    x, folder = torch.randn(3, 4), tmp_path_factory.mktemp("adapter")
    try:
        peft_format.save(model, folder)
    except RankwiseError as error:
        assert "PEFT's format can't hold" in str(error)  # noqa: PT017
        assert any(whole)
        return
    same(PeftModel.from_pretrained(copy.deepcopy(base), folder).eval()(x), model(x))
    adapter = peft_format.read(folder)
    assert adapter.ranks == ranks
    same(attach.attach(copy.deepcopy(base), adapter).eval()(x), model(x))


def test_a_module_saved_whole_within_one_of_its_name_is_refused(tmp_path):
    model = Leaves(["fc", "my_fc", "classifier.classifier.fc"])
    insert(model, {"my_fc": 1}, {"my_fc": 0.5})
    model.get_submodule("classifier.classifier.fc").requires_grad_(True)
    with pytest.raises(
        RankwiseError, match=r"can't hold classifier\.classifier, which is saved whole, in classifier:"
    ):
        peft_format.save(model, tmp_path)


def test_a_layer_and_a_nested_layer_of_its_name_keep_their_ranks(tmp_path):
    base = Leaves(["fc", "block.fc"])
    model = copy.deepcopy(base)
    insert(model, {"fc": 2, "block.fc": 3}, {"fc": 1.0, "block.fc": 1.0})
    peft_format.save(randomised(model), tmp_path)
    peft = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path)
    assert {
        name: module.r for name, module in peft.base_model.model.named_modules() if hasattr(module, "r")
    } == {
        "fc": {"default": 2},
        "block.fc": {"default": 3},
    }


def test_an_adapter_of_higher_rank_than_its_layers_are_wide_loads(tmp_path):
    base = BASES["bert"]
    config = LoraConfig(r=64, target_modules=["query", "classifier"], init_lora_weights=False)
    peft = get_peft_model(copy.deepcopy(base), config).eval()
    peft.save_pretrained(tmp_path)
    model = attach.attach(copy.deepcopy(base), peft_format.read(tmp_path)).eval()
    assert {layer.rank for layer in lora_layers(model).values()} == {64}
    same(model(IDS).logits, peft(IDS).logits)


def test_an_adapter_of_the_head_is_saved_again(tmp_path):
    base = BASES["bert"]
    config = LoraConfig(r=4, target_modules=["query", "classifier"], init_lora_weights=False)
    peft = get_peft_model(copy.deepcopy(base), config).eval()
    peft.save_pretrained(tmp_path / "one")
    model = attach.attach(copy.deepcopy(base), peft_format.read(tmp_path / "one")).eval()
    peft_format.save(model, tmp_path / "two")
    again = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "two").eval()
    same(again(IDS).logits, peft(IDS).logits)


def test_trained_biases_of_adapted_layers_are_not_left_out_without_a_word(tmp_path):
    model = copy.deepcopy(BASES["bert"])
    path = "bert.encoder.layer.0.attention.self.query"
    insert(model, {path: 2}, {path: 1.0})
    lora_layers(model)[path].bias.requires_grad_(True)
    with pytest.raises(RankwiseError, match="bias of .*query was trained"):
        peft_format.save(model, tmp_path)
