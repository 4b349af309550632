"""Adapters whose files hold what they can't mean, or a part that isn't understood, are refused by the name of that part."""

import copy
import json
import time

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import rankwise
import tiny
from rankwise.adapters import peft_format
from rankwise.adapters.formats import loralib
from rankwise.adapters.inspect import inspect
from rankwise.adapters.load import load_any
from rankwise.errors import RankwiseError

IDS = torch.randint(3, 15, (3, 7), generator=torch.Generator().manual_seed(0))
QUERY = "base_model.model.bert.encoder.layer.0.attention.self.query"
NAN = float("nan")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    tiny.classifier("bert").save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


def peft_adapter(base, folder, **settings):
    """An adapter that PEFT made, every trained weight random, and the model it came from."""
    model = type(tiny.classifier("bert")).from_pretrained(base)
    config = LoraConfig(**{"task_type": "SEQ_CLS", "r": 3, "target_modules": ["query", "value"], **settings})
    torch.manual_seed(1)
    peft = get_peft_model(model, config).eval()
    with torch.no_grad():
        for parameter in peft.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    peft.save_pretrained(folder)
    return peft


@pytest.fixture
def adapter(base, tmp_path):
    peft_adapter(base, tmp_path / "adapter")
    return tmp_path / "adapter"


def change_config(folder, **changes):
    file = folder / peft_format.CONFIG
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def change_tensors(folder, change):
    file = folder / peft_format.WEIGHTS
    state = load_file(file)
    change(state)
    save_file(
        {name: value.contiguous().clone() for name, value in state.items()}, file, metadata={"format": "pt"}
    )


def put(name, value):
    def change(state):
        old = state[name]
        state[name] = value(old)

    return change


def first_is(number):
    def change(value):
        value = value.clone()
        value.view(-1)[0] = number
        return value

    return change


A, B, HEAD = f"{QUERY}.lora_A.weight", f"{QUERY}.lora_B.weight", "base_model.model.classifier.weight"
TENSORS = {
    "NaN in A": (put(A, first_is(NAN)), "A of .*query holds NaN or infinity"),
    "infinity in B": (put(B, first_is(float("inf"))), "B of .*query holds NaN or infinity"),
    "NaN in the head": (put(HEAD, first_is(NAN)), "classifier.weight holds NaN or infinity"),
    "complex A": (put(A, lambda A: A.to(torch.complex64)), "A of .*query is complex64, not floating point"),
    "complex head": (put(HEAD, lambda W: W.to(torch.complex64)), "classifier.weight is complex64"),
    "whole numbers": (put(B, lambda B: B.to(torch.int64)), "B of .*query is int64, not floating point"),
    "A of one dimension": (put(A, torch.flatten), r"A of .*query is \[96\] and B \[32, 3\]"),
    "no components": (put(A, lambda A: A[:0]), r"A of .*query is \[0, 32\]"),
    "other ranks": (put(A, lambda A: A[:2]), r"A of .*query is \[2, 32\] and B \[32, 3\]"),
    "A without B": (lambda state: state.pop(B), "B of .*query is missing"),
    "B without A": (lambda state: state.pop(A), "A of .*query is missing"),
    "no head": (
        lambda state: [state.pop(name) for name in list(state) if "classifier" in name],
        "says that classifier and score are saved, but it holds nothing of them",
    ),
    "another tensor": (
        lambda state: state.update({f"{QUERY}.extra": torch.ones(2)}),
        "holds .*query.extra, which",
    ),
    "another name": (
        lambda state: state.update({"x.weight": torch.ones(2)}),
        "holds x.weight, which is no name of PEFT's",
    ),
    "another layer": (
        lambda state: state.update({name.replace("query", "key"): state[name] for name in (A, B)}),
        "holds matrices of .*key, a layer that adapter_config.json beside it doesn't name",
    ),
    "convolution": (
        lambda state: state.update({A: state[A][:, :, None, None], B: state[B][:, :, None, None]}),
        "adapts .*query, a convolution",
    ),
}


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_that_mean_nothing_are_refused_by_name(adapter, case):
    change, message = TENSORS[case]
    change_tensors(adapter, change)
    with pytest.raises(RankwiseError, match=message):
        peft_format.read(adapter)


CONFIGS = [
    ({"lora_alpha": NAN}, "lora_alpha"),
    ({"lora_alpha": 10**400}, "lora_alpha"),
    ({"lora_alpha": "16"}, "lora_alpha: input should be a valid number"),
    ({"lora_alpha": None}, "lora_alpha"),
    ({"r": 0}, "r: input should be greater than or equal to 1"),
    ({"r": 4}, "A of .*query has rank 3, but adapter_config.json says 4"),
    ({"r": True}, "r: input should be a valid integer"),
    ({"r": "3"}, "r: input should be a valid integer"),
    ({"r": 3.5}, "r: input should be a valid integer"),
    ({"rank_pattern": {"query": 0}}, "rank_pattern.query"),
    ({"rank_pattern": ["query"]}, "rank_pattern: input should be an object"),
    ({"alpha_pattern": {"query": NAN}}, "alpha_pattern.query"),
    ({"alpha_pattern": {"(": 3}}, r"'\(' is neither a module's name nor a pattern"),
    ({"lora_dropout": 2}, "lora_dropout: input should be less than or equal to 1"),
    ({"use_rslora": "yes"}, "use_rslora: input should be a valid boolean"),
    ({"bias": "some"}, "bias: input should be 'none', 'all' or 'lora_only'"),
    ({"modules_to_save": "classifier"}, "modules_to_save: input should be a valid array"),
    ({"modules_to_save": [1]}, "modules_to_save: input should be a valid string"),
    ({"target_modules": 5}, "target_modules"),
    ({"task_type": "DANCE"}, "task_type"),
    ({"base_model_name_or_path": 5}, "base_model_name_or_path: input should be a valid string"),
    ({"peft_type": None}, "peft_type: input should be a valid string"),
    ({"peft_type": 5}, "peft_type: input should be a valid string"),
]


@pytest.mark.parametrize(("changes", "message"), CONFIGS, ids=[str(changes)[:60] for changes, _ in CONFIGS])
def test_settings_of_another_kind_are_refused_by_name(adapter, changes, message):
    change_config(adapter, **changes)
    with pytest.raises(RankwiseError, match=message):
        peft_format.read(adapter)


@pytest.mark.parametrize(
    "content", [b"", b"null", b"[]", b"7", b'"x"', b"{", b"[" * 60_000, b"\xff\xfe", b"{}"]
)
def test_a_config_that_is_no_object_is_refused(adapter, content):
    (adapter / peft_format.CONFIG).write_bytes(content)
    with pytest.raises(RankwiseError, match="adapter_config.json is no config of an adapter"):
        peft_format.read(adapter)


@pytest.mark.parametrize("field", ["alpha_pattern", "rank_pattern", "target_modules", "exclude_modules"])
def test_a_pattern_that_takes_forever_is_refused(adapter, field):
    """`(.*.*)*…$` on a path takes more steps than there are atoms."""
    pattern = r"(([^q]|e|r|.)*)*" * 3 + "!"
    change_config(adapter, **{field: pattern if field.endswith("modules") else {pattern: 3}})
    began = time.process_time()
    try:
        peft_format.read(adapter)
    except RankwiseError as error:
        assert "takes longer than" in str(error) or "doesn't name" in str(error)  # noqa: PT017
    assert time.process_time() - began < 10


def test_metadata_is_checked(adapter):
    state = load_file(adapter / peft_format.WEIGHTS)
    for labels, problem in [
        ("[1, 2]", ""),
        ('"ab"', ""),
        ('["a", "a"]', ""),
        ("[", ""),
        ('["a", "b"]', "dance"),
    ]:
        metadata = {"format": "pt", "label_names": labels, "problem": problem}
        save_file(state, adapter / peft_format.WEIGHTS, metadata=metadata)
        with pytest.raises(RankwiseError, match="label|problem"):
            peft_format.read(adapter)


def test_an_adapted_embedding_is_refused_where_it_would_be_dropped_and_evaluated_by_peft(base, tmp_path):
    peft = peft_adapter(base, tmp_path / "adapter", target_modules=["query", "word_embeddings"])
    for read in (inspect, lambda folder: rankwise.export(folder, tmp_path / "out")):
        with pytest.raises(RankwiseError, match="holds .*word_embeddings.lora_embedding_A, which W0"):
            read(tmp_path / "adapter")
    assert not (tmp_path / "out").exists()
    ours = rankwise.load(tmp_path / "adapter", base=str(base))
    torch.testing.assert_close(ours(IDS).logits, peft(IDS).logits)


def test_a_part_that_peft_drops_too_is_refused_by_evaluation(base, adapter):
    change_tensors(adapter, lambda state: state.update({f"{QUERY}.extra": torch.ones(2)}))
    with pytest.raises(RankwiseError, match=r"query.extra, which PEFT finds no place for"):
        rankwise.load(adapter, base=str(base))


def test_an_adapter_in_pefts_old_file_is_read(base, adapter):
    state = load_file(adapter / peft_format.WEIGHTS)
    expected = peft_format.read(adapter)
    (adapter / peft_format.WEIGHTS).unlink()
    torch.save(state, adapter / "adapter_model.bin")
    found = peft_format.read(adapter)
    assert found.scaling == expected.scaling
    assert all(
        torch.equal(x, y)
        for path in found.lora
        for x, y in zip(found.lora[path], expected.lora[path], strict=True)
    )
    for content in (b"", b"nothing", {"a": 1}, [1]):
        if isinstance(content, bytes):
            (adapter / "adapter_model.bin").write_bytes(content)
        else:
            torch.save(content, adapter / "adapter_model.bin")
        with pytest.raises(RankwiseError, match="adapter_model.bin"):
            peft_format.read(adapter)


def test_a_folder_of_several_adapters_names_them(base, tmp_path):
    model = type(tiny.classifier("bert")).from_pretrained(base)
    config = LoraConfig(task_type="SEQ_CLS", target_modules=["query"])
    peft = get_peft_model(model, config, adapter_name="one")
    peft.add_adapter("two", config)
    peft.save_pretrained(tmp_path)
    with pytest.raises(RankwiseError, match=f"Name one of those in it: {tmp_path}/one, {tmp_path}/two"):
        peft_format.read(tmp_path)
    assert len(peft_format.read(tmp_path / "two").lora) == 2


def test_writing_that_stops_halfway_leaves_no_adapter(adapter, tmp_path, monkeypatch):
    """New matrices beside an old config would be another adapter."""
    rankwise.export(adapter, tmp_path / "out")

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(peft_format, "_write_weights", full)
    with pytest.raises(OSError, match="No space"):
        peft_format.write(peft_format.read(adapter), tmp_path / "out")
    with pytest.raises(RankwiseError, match="holds no adapter"):
        peft_format.read(tmp_path / "out")


LORALIB = {
    "bias=all": (
        lambda state: state.update({"bert.encoder.layer.0.output.dense.bias": torch.ones(32)}),
        "biases of the base",
    ),
    "bias=lora_only": (
        lambda state: state.update({"bert.q.bias": torch.ones(4)}),
        "holds bert.q.bias: biases of the base",
    ),
    "A without B": (lambda state: state.pop("bert.q.lora_B"), "B of bert.q is missing"),
    "B without A": (lambda state: state.update({"bert.v.lora_B": torch.ones(4, 2)}), "holds bert.v.lora_B"),
    "NaN": (lambda state: state["bert.q.lora_A"].fill_(NAN), "A of bert.q holds NaN"),
    "complex": (
        lambda state: state.update({"bert.q.lora_A": state["bert.q.lora_A"].to(torch.complex64)}),
        "complex64",
    ),
    "no tensor": (lambda state: state.update({"epoch": 3}), "holds epoch, which is no tensor"),
    "fused": (lambda state: state.update({"bert.q.lora_A": torch.ones(4, 4)}), "fused projection"),
    "the layer itself": (
        lambda state: state.update({"bert.q.weight": torch.ones(4, 4), "bert.q.bias": torch.ones(4)}),
        "of a layer that has LoRA matrices",
    ),
}


@pytest.mark.parametrize("case", LORALIB)
def test_a_loralib_checkpoint_is_refused_by_the_part_that_is_wrong(tmp_path, case):
    change, message = LORALIB[case]
    state = {
        "bert.q.lora_A": torch.ones(2, 4),
        "bert.q.lora_B": torch.ones(4, 2),
        "classifier.weight": torch.ones(2, 4),
    }
    torch.save(state, tmp_path / "whole.bin")
    assert loralib.read(tmp_path / "whole.bin", None, 1.0).modules_to_save == ["classifier"]
    change(state)
    torch.save(state, tmp_path / "file.bin")
    with pytest.raises(RankwiseError, match=message):
        loralib.read(tmp_path / "file.bin", None, 1.0)


def test_metadata_and_tensors_of_an_export_are_those_of_its_source(adapter, tmp_path):
    rankwise.export(adapter, tmp_path / "out")
    with (
        safe_open(tmp_path / "out" / peft_format.WEIGHTS, "pt") as out,
        safe_open(adapter / peft_format.WEIGHTS, "pt") as source,
    ):
        assert set(out.keys()) == set(source.keys())


def test_pefts_copy_of_what_is_read_is_the_same(base, adapter):
    """`copy.deepcopy` of what PEFT loads, so that nothing here depends on the order of loading."""
    peft = PeftModel.from_pretrained(type(tiny.classifier("bert")).from_pretrained(base), adapter).eval()
    ours = rankwise.load(adapter, base=str(base))
    torch.testing.assert_close(copy.deepcopy(ours)(IDS).logits, peft(IDS).logits)


@pytest.mark.slow
@pytest.mark.parametrize("field", ["target_modules", "rank_pattern"])
def test_a_pattern_that_never_ends_is_refused_for_adapters_that_peft_runs_too(base, tmp_path, field):
    peft_adapter(base, tmp_path / "adapter", use_dora=True)
    never = r"(([a-z0-9._]+)+)+!"
    change_config(tmp_path / "adapter", **{field: {never: 2} if field == "rank_pattern" else never})
    with pytest.raises(RankwiseError, match="takes longer than 3 s to match"):
        load_any(tmp_path / "adapter", base=str(base), dtype=torch.float32)
