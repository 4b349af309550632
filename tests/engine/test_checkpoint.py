"""A training continues from a checkpoint bit for bit, and takes none that isn't its own."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from rankwise.engine import checkpoint
from short_training import fixed, run, training


def losses(state, until=None):
    found = []
    with state.compute.running(state.model):
        while not state.done and (until is None or state.step_number < until):
            found.append(state.step().loss)
    return found


@pytest.mark.parametrize("padding", ["packed", "longest"])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_resumed_training_equals_an_undisturbed_one(method, padding, tmp_path):
    whole, first, second = (fixed(method, padding=padding) for _ in range(3))
    expected = losses(whole)
    begun = losses(first, until=7)
    checkpoint.save(first, tmp_path)
    checkpoint.load(second, tmp_path)
    assert second.seconds == first.seconds
    assert begun + losses(second) == expected
    for (name, a), (_, b) in zip(second.trained_parameters(), whole.trained_parameters(), strict=True):
        assert torch.equal(a, b), name


# What isn't this training's checkpoint


def fresh():
    """A training of 262 steps that finds ranks; it prunes at step 105."""
    return training(1000, epochs=2.1, targets=("all-linear",))


@pytest.fixture(scope="module")
def adaptive(tmp_path_factory):
    """The checkpoint of a training that finds ranks, after something was pruned: its position, and its tensors."""
    folder = tmp_path_factory.mktemp("adaptive")
    checkpoint.save(run(fresh(), until=110), folder, request="mine")
    return json.loads((folder / "training.json").read_text()), load_file(folder / "training.safetensors")


def write(folder, position, tensors):
    (folder / "training.json").write_text(json.dumps(position))
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "training.safetensors")


def refused(folder, position, tensors, request="mine"):
    """Why it isn't taken; the training is left as it was."""
    write(folder, position, tensors)
    state = fresh()
    before = {name: value.detach().clone() for name, value in state.trained_parameters()}
    with pytest.raises(ValueError) as error:
        checkpoint.load(state, folder, request)
    assert state.step_number == 0
    assert all(torch.equal(value, before[name]) for name, value in state.trained_parameters())
    return str(error.value)


@pytest.mark.slow
def test_an_adaptive_training_takes_its_own_checkpoint(adaptive, tmp_path):
    position, tensors = adaptive
    assert any(name.startswith("rank.pruned.") for name in tensors), "nothing was pruned before it"
    write(tmp_path, position, tensors)
    state = fresh()
    checkpoint.load(state, tmp_path, "mine")
    assert state.step_number == position["step"]
    assert [decision.to_json() for decision in state.decisions] == position["rank"]["decisions"]


WRONG_POSITIONS = [
    ({"step": 1_000_000_000}, "step 1000000000 of 262"),
    ({"step": 263, "steps": 263}, "step 263 of 263, and this run has 262 steps"),
    ({"step": -1}, "step"),
    ({"step": 7.5}, "step"),
    ({"step": True}, "step"),
    ({"step": 109}, "ranks are at step 110, its weights at 109"),
    ({"seconds": float("nan")}, "seconds"),
    ({"seconds": -1.0}, "seconds"),
    ({"skipped_steps": 111}, "111 of 110"),
    ({"request": "another"}, "asked for otherwise"),
    ({"rank": None}, "finds ranks"),
    ({"rank": {}}, "rank.steps"),
    ({"more": 1}, "more"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("changes", "says"), WRONG_POSITIONS)
def test_a_position_that_this_training_cant_have_is_refused(changes, says, adaptive, tmp_path):
    position, tensors = adaptive
    assert says in refused(tmp_path, {**position, **changes}, tensors)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda rank: rank["scaling"].popitem(), "scales other layers"),
        (lambda rank: rank["scaling"].update(dict.fromkeys(rank["scaling"], 0.0)), "rank.scaling"),
        (lambda rank: rank["scaling"].update(dict.fromkeys(rank["scaling"], float("inf"))), "rank.scaling"),
        (lambda rank: rank["decisions"].append({"step": 3}), "a rank decision is none"),
        (lambda rank: rank["decisions"][0].update(step="x"), "a rank decision is none"),
        (lambda rank: rank["decisions"][0]["evidence"].update(loss_increase=[]), "a rank decision is none"),
    ],
)
def test_rank_decisions_that_are_none_are_refused(change, says, adaptive, tmp_path):
    position = json.loads(json.dumps(adaptive[0]))
    change(position["rank"])
    assert says in refused(tmp_path, position, adaptive[1])


def name_of(tensors, *parts):
    return next(name for name in sorted(tensors) if all(part in name for part in parts))


def nan(value):
    value = value.clone()
    value.view(-1)[-1] = float("nan")
    return value


@pytest.mark.slow
@pytest.mark.parametrize(
    ("parts", "change", "says"),
    [
        (("model.", "lora_A"), None, "it lacks model."),
        (("model.", "lora_A"), nan, "isn't finite"),
        (("model.", "lora_A"), lambda value: value[:-1], "the optimizer's exp_avg"),
        (("model.", "lora_A"), lambda value: value[:, :-1], "and this run's is"),
        (("model.", "lora_A"), lambda value: value[0], "and this run's is"),
        (("model.", "classifier.weight"), lambda value: value.double(), "of float64"),
        (("model.", "classifier.weight"), lambda value: value.to(torch.complex64), "of complex64"),
        (("model.", "classifier.weight"), lambda value: value[:1], "1 × 32"),
        (("optimizer.exp_avg.", "lora_A"), None, "lacks the optimizer's exp_avg"),
        (("optimizer.exp_avg.", "lora_A"), lambda value: value.flatten(), "the optimizer's exp_avg of"),
        (("optimizer.exp_avg.", "lora_A"), nan, "isn't finite"),
        (("optimizer.exp_avg_sq.", "lora_A"), lambda value: -value - 1, "negative"),
        (("optimizer.step.", "lora_A"), lambda value: value + 1e9, "steps of"),
        (("optimizer.step.", "lora_A"), lambda value: value.to(torch.complex64), "steps of"),
        (("optimizer.step.", "lora_A"), lambda value: value.double(), "steps of"),
        (("rank.statistics.",), lambda value: value[1:], "the statistics of"),
        (("rank.statistics.",), lambda value: value.to(torch.int64), "of int64"),
        (("rank.statistics.",), lambda value: value.to(torch.complex64), "of complex64"),
        (("rank.pruned.B.",), None, "it lacks rank.pruned.B."),
        (("rank.pruned.A.",), lambda value: value[:, 1:], "what was pruned of"),
    ],
)
def test_tensors_that_this_training_cant_have_are_refused(parts, change, says, adaptive, tmp_path):
    position, tensors = adaptive
    name = name_of(tensors, *parts)
    changed = {key: value for key, value in tensors.items() if key != name}
    if change is not None:
        changed[name] = change(tensors[name])
    assert says in refused(tmp_path, position, changed)


@pytest.mark.slow
def test_matrices_of_two_ranks_are_refused(adaptive, tmp_path):
    position, tensors = adaptive
    name = name_of(tensors, "model.", "lora_A").removeprefix("model.")
    keys = [f"model.{name}", f"optimizer.exp_avg.{name}", f"optimizer.exp_avg_sq.{name}"]
    changed = {**tensors, **{key: torch.cat([tensors[key], tensors[key]]) for key in keys}}
    rank = len(tensors[keys[0]])
    assert f"has rank {2 * rank} in A and {rank} in B" in refused(tmp_path, position, changed)


@pytest.mark.slow
def test_a_tensor_that_nothing_takes_is_refused(adaptive, tmp_path):
    position, tensors = adaptive
    assert "this run has no model.more" in refused(
        tmp_path, position, {**tensors, "model.more": torch.zeros(1)}
    )
