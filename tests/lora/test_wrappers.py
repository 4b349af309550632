"""Models that are compiled or wrapped, whole or in part."""

import copy
import shutil
from dataclasses import replace

import pytest
import torch
import transformers as hf
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

import rankwise
import tiny
from rankwise.adapters import attach
from rankwise.errors import RankwiseError
from rankwise.lora.inject import adapt_at_start_rank
from rankwise.lora.layer import lora_layers
from rankwise.lora.wrappers import bare
from rankwise.rank.config import RankConfig
from rankwise.rank.controller import RankController
from short_training import OPTIONS

IDS = torch.tensor([[1, 4, 8, 6, 2], [1, 5, 9, 7, 2]])


def compiled(model):
    return torch.compile(model, backend="eager")


def encoder_compiled(model):
    model.bert.encoder = compiled(model.bert.encoder)
    return model


def head_compiled(model):
    model.classifier = compiled(model.classifier)
    return model


WRAPPERS = [compiled, encoder_compiled, head_compiled]


def trained(model):
    for layer in lora_layers(model).values():
        nn.init.normal_(layer.lora_B, std=0.1)
    return model.eval()


@pytest.mark.parametrize("first", ["wrap", "adapt"])
@pytest.mark.parametrize("wrap", [*WRAPPERS, nn.DataParallel])
def test_what_is_saved_of_a_wrapped_model_loads_in_peft(wrap, first, tmp_path):
    tiny.model_folder(tmp_path / "base")
    base = hf.AutoModelForSequenceClassification.from_pretrained
    model = base(tmp_path / "base", num_labels=2)
    if first == "wrap" and wrap is nn.DataParallel:
        with pytest.raises(RankwiseError, match="wrapped by DataParallel"):
            rankwise.adapt(wrap(model), 2)
        return
    plain = model
    model = rankwise.adapt(wrap(model), 2) if first == "wrap" else wrap(rankwise.adapt(model, 2))
    trained(plain)
    rankwise.save(model, tmp_path / "adapter")
    theirs = PeftModel.from_pretrained(base(tmp_path / "base", num_labels=2), tmp_path / "adapter").eval()
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        expected = plain(IDS).logits
        torch.testing.assert_close(theirs(IDS).logits, expected, atol=1e-5, rtol=1e-5)
    assert (type(plain.bert.encoder).__name__ == "OptimizedModule") == (wrap is encoder_compiled)


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_a_controller_names_the_layers_of_a_compiled_model_as_they_are(wrap):
    model = rankwise.adapt(tiny.classifier("bert"))
    expected = list(lora_layers(model))
    model = wrap(model)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    controller = RankController(model, lambda: torch.zeros(2), 10, optimizer)
    assert list(controller.layers) == expected
    controller.sort()


def test_a_controller_refuses_data_parallel_models():
    model = nn.DataParallel(rankwise.adapt(tiny.classifier("bert")))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(RankwiseError, match="wrapped by DataParallel"):
        RankController(model, lambda: torch.zeros(2), 10, optimizer)


def test_a_model_that_peft_has_wrapped_is_refused():
    model = get_peft_model(tiny.classifier("bert"), LoraConfig(target_modules=["query"]))
    with pytest.raises(RankwiseError, match="wrapped by PeftModel"):
        rankwise.adapt(model, 2)


CHECKS = RankConfig(prune_at={0.4: 0.05, 0.8: 0.2}, grow_at=(), memory=5)


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh())
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        return self.head(self.body(x))


def rank_training(wrap, steps=40):
    """Train through prunes; return the losses and the controller."""
    torch.manual_seed(0)
    network = Network()
    x, teacher = torch.randn(256, 12), copy.deepcopy(network)
    with torch.no_grad():
        teacher.body[0].weight += torch.outer(torch.randn(16), torch.randn(12))
        y = teacher(x)
    adapt_at_start_rank(network, 4, targets=("0", "2"))
    forward = wrap(network)

    def losses(rows):
        return (forward(x[rows]) - y[rows]).square().mean(dim=1)

    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=0.02)
    held_out = torch.no_grad()(lambda: losses(slice(0, 128)))
    controller = RankController(forward, held_out, steps, optimizer, config=CHECKS)
    seen = []
    for _ in range(steps):
        loss = losses(slice(128, 256)).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        controller.step()
        seen.append(loss.item())
    return seen, controller


def whole(**options):
    return lambda network: torch.compile(network, **options)


def body(**options):
    def wrap(network):
        network.body = torch.compile(network.body, **options)
        return network

    return wrap


def a_layer(**options):
    def wrap(network):
        network.body[0].compile(**options)
        return network

    return wrap


COMPILED = [
    *(part(backend=backend) for part in (whole, body, a_layer) for backend in ("eager", "aot_eager")),
    whole(backend="aot_eager", dynamic=True),
    pytest.param(a_layer(), marks=pytest.mark.slow),
]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own
@pytest.mark.parametrize("wrap", COMPILED)
def test_ranks_change_under_a_compiled_forward_as_without(wrap):
    if shutil.which("g++") is None:
        pytest.skip("torch.compile needs a compiler")
    torch._dynamo.reset()
    losses, plain = rank_training(lambda model: model)
    compiled_losses, compiled = rank_training(wrap)
    accepted = [(d.step, d.kind, d.changes) for d in plain.decisions if d.accepted]
    assert len(accepted) == 2
    assert accepted == [(d.step, d.kind, d.changes) for d in compiled.decisions if d.accepted]
    assert compiled_losses == pytest.approx(losses, rel=1e-3, abs=1e-5)
    for path, sums in plain.statistics.sums.items():
        torch.testing.assert_close(compiled.statistics.sums[path], sums, rtol=0.01, atol=1e-6)


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_fit_evaluate_and_predict_see_through_a_compiled_model(wrap):
    found = []
    for make in (lambda model: model, wrap):
        plain = rankwise.adapt(tiny.classifier("bert"), 2)
        plain.config.id2label = {0: "negative", 1: "positive"}
        model, data = make(plain), tiny.reviews(40)
        result = rankwise.fit(
            model, tiny.tokenizer(), data, data, options=replace(OPTIONS, epochs=1), max_length=64
        )
        scores = rankwise.evaluate(model, tiny.tokenizer(), data, max_length=64)
        logits = rankwise.predict(model, tiny.tokenizer(), data, max_length=64)
        assert scores == result.scores
        found.append((scores, logits.tolist(), [step.loss for step in result.steps]))
        assert (type(plain.bert.encoder).__name__ == "OptimizedModule") == (make is encoder_compiled)
    assert found[0] == found[1]


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_an_adapter_is_attached_to_a_compiled_model_and_merged_into_it(wrap):
    source = trained(rankwise.adapt(tiny.classifier("bert"), 2))
    adapter = attach.extract(source)
    model = wrap(tiny.classifier("bert"))
    attach.attach(model, adapter)
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        torch.testing.assert_close(model(IDS).logits, source(IDS).logits)
        attach.merge(model)
        torch.testing.assert_close(model(IDS).logits, source(IDS).logits)
    with bare(model) as plain:
        assert not lora_layers(plain)


def test_layers_that_share_a_weight_are_merged_each_with_its_own_update():
    model = Network()
    model.body.append(nn.Linear(16, 16))
    model.tied = model.body[4].weight = model.body[2].weight
    trained(adapt_at_start_rank(model, 3, targets=("2", "4")))
    x = torch.randn(5, 12)
    expected, kept = model(x), model.tied.clone()
    attach.merge(model)
    torch.testing.assert_close(model(x), expected)
    assert torch.equal(model.tied, kept)


def test_what_is_trained_or_scored_is_never_a_data_parallel_wrapper():
    model = nn.DataParallel(rankwise.adapt(tiny.classifier("bert"), 2))
    data = tiny.reviews(10)
    for act in (rankwise.fit, rankwise.evaluate, rankwise.predict):
        with pytest.raises(RankwiseError, match="wrapped by DataParallel"):
            act(model, tiny.tokenizer(), data)
