"""Exported adapters, against what other programs or plain linear algebra make of them."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, RobertaConfig

import tiny
from rankwise import export, plugins
from rankwise.adapters import attach, formats, peft_format
from rankwise.adapters.adapter import Adapter
from rankwise.adapters.formats import FORMATS, ExportFormat, loralib, register
from rankwise.adapters.inspect import inspect
from rankwise.adapters.truncate import components
from rankwise.cli import main
from rankwise.errors import RankwiseError
from rankwise.lora.inject import find_targets, insert, train_beside
from rankwise.lora.layer import lora_layers

LORALIB = Path(__file__).parents[2] / "../shared/data/loralib/roberta_base_lora_mnli.bin"
IDS = torch.randint(3, 15, (3, 7), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def base():
    return tiny.classifier("roberta")


@pytest.fixture
def adapted(base, tmp_path):
    """A model with layers of ranks 1 to 4 and two scalings, and the folder it is saved in."""
    model, paths = copy.deepcopy(base), find_targets(base)
    insert(
        model,
        dict(zip(paths, [1, 2, 3, 4], strict=True)),
        dict(zip(paths, [0.5, 2.0, 2.0, 2.0], strict=True)),
    )
    train_beside(model, ["classifier"])
    torch.manual_seed(1)
    with torch.no_grad():
        for layer in lora_layers(model).values():
            layer.lora_B.normal_(std=0.3)
        for parameter in model.classifier.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    peft_format.save(model, tmp_path / "adapter")
    return model.eval(), tmp_path / "adapter"


def in_peft(base, folder: Path):
    return PeftModel.from_pretrained(copy.deepcopy(base), str(folder)).eval()


def test_padding_to_a_uniform_rank_leaves_the_logits_unchanged(base, adapted, tmp_path):
    model, folder = adapted
    done = export(folder, tmp_path / "out", uniform_rank=4)
    assert set(done.ranks.values()) == {4}
    assert done.kept == pytest.approx(1.0)
    peft = in_peft(base, tmp_path / "out")
    (config,) = peft.peft_config.values()
    assert (config.rank_pattern, config.alpha_pattern, config.r, config.lora_alpha) == ({}, {}, 4, 8)
    torch.testing.assert_close(peft(IDS).logits, model(IDS).logits, rtol=1e-4, atol=1e-5)


def read_by_a_server(folder: Path) -> dict[str, torch.Tensor]:
    """ΔW of each layer as a server has it that reads r and lora_alpha alone."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = safetensors.torch.load_file(folder / "adapter_model.safetensors")
    return {
        name: config["lora_alpha"] / config["r"] * tensors[name.replace(".lora_A.", ".lora_B.")] @ A
        for name, A in tensors.items()
        if ".lora_A." in name
    }


@pytest.mark.parametrize("rank", [None, 4, 20])
def test_a_served_adapter_has_one_rank_and_one_scale_and_equal_logits(base, adapted, tmp_path, rank):
    model, folder = adapted
    done = export(folder, tmp_path / "out", serve=True, uniform_rank=rank)
    peft = in_peft(base, tmp_path / "out")
    (config,) = peft.peft_config.values()
    assert (config.rank_pattern, config.alpha_pattern) == ({}, {})
    assert config.r == config.lora_alpha == (rank or 4)
    assert f"--max-lora-rank {32 if rank == 20 else 8} or more" in done.notes[0]
    torch.testing.assert_close(peft(IDS).logits, model(IDS).logits, rtol=1e-4, atol=1e-5)
    for (_, layer), delta in zip(
        sorted(lora_layers(model).items()),
        dict(sorted(read_by_a_server(tmp_path / "out").items())).values(),
        strict=True,
    ):
        torch.testing.assert_close(delta, layer.delta())


def test_a_served_adapter_of_a_language_model_has_equal_logits(tmp_path):
    """PEFT's own adapter of several ranks and alphas, rank-stabilised."""
    torch.manual_seed(0)
    llama = AutoModelForCausalLM.from_config(tiny.config("llama"))
    config = LoraConfig(
        task_type="CAUSAL_LM", r=3, lora_alpha=5, use_rslora=True, target_modules="all-linear", init_lora_weights=False,
        rank_pattern={"q_proj": 6, "layers.1.mlp.down_proj": 1}, alpha_pattern={"q_proj": 1, "k_proj": 9},
    )  # fmt: skip
    trained = get_peft_model(copy.deepcopy(llama), config).eval()
    trained.save_pretrained(tmp_path / "adapter")
    done = export(tmp_path / "adapter", tmp_path / "out", serve=True)
    served = in_peft(llama, tmp_path / "out")
    (config,) = served.peft_config.values()
    assert (config.r, config.lora_alpha, config.use_rslora) == (6, 6, False)
    assert (config.rank_pattern, config.alpha_pattern, config.task_type) == ({}, {}, "CAUSAL_LM")
    torch.testing.assert_close(served(IDS).logits, trained(IDS).logits, rtol=1e-4, atol=1e-5)
    assert len(done.notes) == 1


def test_the_command_says_which_rank_a_server_needs(adapted, tmp_path, capfd):
    _, folder = adapted
    with pytest.raises(SystemExit) as stopped:
        main(["export", str(folder), "--out", str(tmp_path / "out"), "--serve"])
    assert stopped.value.code == 0
    said = " ".join(capfd.readouterr().out.split())
    assert "vLLM needs --max-lora-rank 8 or more; its default is 16." in said
    assert "leave them out with --no-head" in said


def test_a_size_that_padding_exceeds_is_refused(adapted, tmp_path):
    _, folder = adapted
    for options in ({"serve": True}, {"format": "loralib"}):
        with pytest.raises(RankwiseError, match=r"Padded to one rank \(\d\).*`uniform_rank=`"):
            export(folder, tmp_path / "out", max_params=64 * 5, **options)
    assert (
        export(folder, tmp_path / "out", serve=True, uniform_rank=1, max_params=64 * 4).adapter_params
        <= 64 * 4
    )


def test_settings_that_exclude_each_other_are_refused(adapted, tmp_path):
    _, folder = adapted
    with pytest.raises(RankwiseError, match="writes PEFT's format, which servers read, not loralib"):
        export(folder, tmp_path / "out", serve=True, format="loralib")
    with pytest.raises(RankwiseError, match="Give one of them"):
        export(folder, tmp_path / "out", uniform_rank=2, max_loss_increase=0.1)


@pytest.mark.parametrize(("rank", "params"), [(2, None), (None, 64 * 5), (2, 64 * 2 * 3)])
def test_truncation_keeps_the_best_update_of_its_size(adapted, tmp_path, rank, params):
    model, folder = adapted
    done = export(folder, tmp_path / "out", uniform_rank=rank, max_params=params)
    smaller = peft_format.read(tmp_path / "out")
    updates = {path: layer.delta().double() for path, layer in lora_layers(model).items()}
    values = {path: torch.linalg.svdvals(update)[:4] for path, update in updates.items()}
    total = sum(float((update**2).sum()) for update in updates.values())
    left = 0.0
    for path, update in updates.items():
        here = torch.zeros_like(update)
        if path in smaller.lora:
            A, B = (m.double() for m in smaller.lora[path])
            here = smaller.scaling[path] * (B @ A)
        left += float(((update - here) ** 2).sum())
    assert 1 - left / total == pytest.approx(done.kept, abs=1e-5)
    if params is None:
        best = sum(float((v[:rank] ** 2).sum()) for v in values.values())
    elif rank is None:
        best = float(torch.cat(list(values.values())).square().sort(descending=True).values[:5].sum())
        assert done.adapter_params == params
    else:
        assert done.adapter_params <= params
        return
    assert done.kept == pytest.approx(best / total, abs=1e-5)


def test_an_export_without_head_holds_only_lora_matrices(base, adapted, tmp_path):
    _, folder = adapted
    assert any("vLLM" in note and "`head=False`" in note for note in export(folder, tmp_path / "with").notes)
    done = export(folder, tmp_path / "without", uniform_rank=4, head=False)
    assert done.notes == ()
    adapter = peft_format.read(tmp_path / "without")
    assert adapter.trained == {}
    assert adapter.modules_to_save == []


def test_an_adapter_survives_the_way_to_loralib_and_back(base, adapted, tmp_path):
    model, folder = adapted
    done = export(folder, tmp_path / "out.bin", format="loralib")
    assert any("r=4, lora_alpha=8" in note for note in done.notes)
    state = torch.load(tmp_path / "out.bin", weights_only=True)
    path = next(iter(lora_layers(model)))
    layer = lora_layers(model)[path]
    torch.testing.assert_close(2.0 * state[f"{path}.lora_B"] @ state[f"{path}.lora_A"], layer.delta())
    export(tmp_path / "out.bin", tmp_path / "back", base="tiny", alpha=8)
    back = attach.attach(copy.deepcopy(base), peft_format.read(tmp_path / "back")).eval()
    torch.testing.assert_close(back(IDS).logits, model(IDS).logits, rtol=1e-4, atol=1e-5)


def test_a_format_from_outside_the_package_is_one_entry(adapted, tmp_path, monkeypatch):
    """A format that stores ΔW of each layer."""

    def write(adapter: Adapter, out: Path) -> None:
        deltas = {path: (adapter.scaling[path] * (B @ A)).numpy() for path, (A, B) in adapter.lora.items()}
        np.savez(out, **deltas)

    monkeypatch.setitem(FORMATS, "delta", ExportFormat("delta", write, one_file=True))
    model, folder = adapted
    export(folder, tmp_path / "deltas.npz", format="delta")
    with np.load(tmp_path / "deltas.npz") as found:
        for path, layer in lora_layers(model).items():
            np.testing.assert_allclose(found[path], layer.delta().numpy(), rtol=1e-5, atol=1e-6)
    with pytest.raises(RankwiseError, match=r"no export format 'delt'.*peft, loralib, transformers, delta"):
        export(folder, tmp_path / "x", format="delt")


def test_a_plug_in_adds_a_format_to_the_command(adapted, tmp_path, monkeypatch, capfd):
    site = tmp_path / "site"
    info = site / "names_format-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: names-format\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[rankwise.plugins]\nnames = names_format\n")
    (site / "names_format.py").write_text(
        "from rankwise.adapters.formats import ExportFormat, register\n"
        "write = lambda adapter, out: out.write_text('\\n'.join(adapter.lora))\n"
        "register(ExportFormat('names', write, one_file=True))\n"
    )
    monkeypatch.syspath_prepend(site)
    monkeypatch.setattr(plugins, "_looked", False)
    monkeypatch.setattr(formats, "FORMATS", dict(FORMATS))
    _, folder = adapted
    with pytest.raises(SystemExit) as stopped:
        main(["export", str(folder), "--format", "names", "--out", str(tmp_path / "names.txt")])
    assert stopped.value.code == 0, capfd.readouterr().err
    assert (tmp_path / "names.txt").read_text().split() == list(peft_format.read(folder).lora)
    with pytest.raises(RankwiseError, match="'names' already"):
        register(formats.FORMATS["names"])


def test_a_loralib_checkpoint_is_inspected_like_its_adapter(adapted, tmp_path):
    _, folder = adapted
    export(folder, tmp_path / "out.bin", format="loralib")
    mine, expected = inspect(tmp_path / "out.bin"), inspect(folder)
    assert mine["adapter_params"] >= expected["adapter_params"]  # padded to one rank
    assert mine["effective_rank"] == pytest.approx(expected["effective_rank"], rel=1e-3)


@pytest.mark.slow
@pytest.mark.skipif(not LORALIB.is_file(), reason="needs the LoRA paper's checkpoint")
def test_the_lora_papers_checkpoint_loads_into_roberta_base():
    adapter = loralib.read(LORALIB, "roberta-base", 16)
    assert len(adapter.lora) == 24
    assert adapter.num_labels == 3
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(RobertaConfig(
        vocab_size=50265, max_position_embeddings=514, type_vocab_size=1, num_labels=3
    ))  # fmt: skip
    plain = copy.deepcopy(model.roberta.encoder.layer[3].attention.self.value)
    attach.attach(model, adapter)
    state = torch.load(LORALIB, map_location="cpu", weights_only=True)
    placed = lora_layers(model)
    assert set(placed) == {
        f"roberta.encoder.layer.{i}.attention.self.{name}" for i in range(12) for name in ("query", "value")
    }
    path = "roberta.encoder.layer.3.attention.self.value"
    x = torch.randn(5, 768)
    A, B = state[f"{path}.lora_A"], state[f"{path}.lora_B"]
    expected = x @ plain.weight.T + plain.bias + 16 / 8 * (x @ A.T @ B.T)
    torch.testing.assert_close(placed[path](x), expected, rtol=1e-4, atol=1e-4)
    for name, value in model.classifier.state_dict().items():
        assert torch.equal(value, state[f"classifier.{name}"])


def test_components_are_those_of_the_svd():
    A, B = torch.randn(3, 10, dtype=torch.float64), torch.randn(7, 3, dtype=torch.float64)
    (left, right), sigma = components(A, B)
    U, values, Vh = torch.linalg.svd((B @ A).double())
    torch.testing.assert_close(sigma, values[:3])
    for k in range(3):
        torch.testing.assert_close(torch.outer(right[:, k], left[k]), values[k] * torch.outer(U[:, k], Vh[k]))


def test_impossible_exports_are_refused_with_a_message(adapted, tmp_path, capfd):
    _, folder = adapted
    with pytest.raises(RankwiseError, match="holds the adapter itself"):
        export(folder, folder)
    with pytest.raises(
        RankwiseError, match="`max_params=10` is too small for one component. The smallest takes 64"
    ):
        export(folder, tmp_path / "out", max_params=10)
    with pytest.raises(RankwiseError, match="too small for one layer of rank 4. The smallest takes 256"):
        export(folder, tmp_path / "out", max_params=100, uniform_rank=4)
    (tmp_path / "x.bin").write_bytes(b"nothing")
    with pytest.raises(RankwiseError, match="`alpha=`"):
        export(tmp_path / "x.bin", tmp_path / "out")
    with pytest.raises(RankwiseError, match="no loralib checkpoint"):
        export(tmp_path / "x.bin", tmp_path / "out", alpha=16)
    torch.save({"w": torch.zeros(2)}, tmp_path / "y.bin")
    with pytest.raises(RankwiseError, match="holds no LoRA matrices"):
        export(tmp_path / "y.bin", tmp_path / "out", alpha=16)
    with pytest.raises(SystemExit):
        main(["export", str(folder), "--out", str(tmp_path / "out"), "--max-params", "many"])
    assert "--max-params takes a number such as 50k" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_command_prints_the_kept_energy(adapted, tmp_path, capfd):
    _, folder = adapted
    with pytest.raises(SystemExit) as stopped:
        main(["export", str(folder), "--out", str(tmp_path / "out"), "--max-params", "0.2k"])
    assert stopped.value.code == 0
    assert "% of the update's energy is kept" in capfd.readouterr().out


@pytest.mark.parametrize("content", [b"", b"review,stars\nok,1\n", b'{"a": 1}', bytes(range(256))])
def test_other_files_are_refused_without_advice_to_load_them_unsafely(tmp_path, content):
    (tmp_path / "other").write_bytes(content)
    with pytest.raises(RankwiseError, match="other is no loralib checkpoint") as said:
        inspect(tmp_path / "other")
    assert "weights_only" not in str(said.value)


def test_a_file_of_one_tensor_holds_no_lora_matrices(tmp_path):
    torch.save(torch.zeros(3), tmp_path / "tensor.pt")
    with pytest.raises(RankwiseError, match=r"holds no LoRA matrices"):
        inspect(tmp_path / "tensor.pt")


def test_only_an_earlier_export_is_replaced(adapted, tmp_path):
    _, folder = adapted
    for _ in range(2):
        export(folder, tmp_path / "out")
        export(folder, tmp_path / "out.bin", format="loralib")
    (tmp_path / "rows.csv").write_text("text,label\nfine,1\n")
    with pytest.raises(RankwiseError, match="rows.csv holds something else than an adapter"):
        export(folder, tmp_path / "rows.csv", format="loralib")
    assert (tmp_path / "rows.csv").read_text() == "text,label\nfine,1\n"
    (tmp_path / "out" / "ranks.jsonl").write_text("{}\n")  # how another adapter was compressed
    with pytest.raises(RankwiseError, match=r"a record of its own \(ranks.jsonl\)"):
        export(folder, tmp_path / "out")
