"""The same computation on a GPU, where there is one: packed against padded, gradients against the CPU's, and whole trainings."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import tiny
from rankwise.engine import checkpoint
from rankwise.engine.attention import attend
from rankwise.engine.compute import Compute
from rankwise.engine.packing import pack, pad
from rankwise.engine.pooling import packed_logits
from rankwise.engine.training import Training
from rankwise.lora.inject import adapt, adapt_at_start_rank
from rankwise.lora.layer import lora_layers
from rankwise.run_folder import RunFolder
from short_training import OPTIONS, encoded, run

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

FAMILIES = ["bert", "roberta", "distilbert", "gpt2", "llama", "mistral", "modernbert"]
CPU, GPU = torch.device("cpu"), torch.device("cuda")
RUN = ["--epochs", "2", "--batch-size", "8", "--lr", "0.01", "--device", "cuda"]


def model_of(family, dtype, device):
    model = tiny.classifier(family)
    model.config.pad_token_id = 0
    adapt(model.to(dtype), 4)
    for layer in lora_layers(model).values():
        torch.nn.init.normal_(layer.lora_B, generator=torch.Generator().manual_seed(0))
    return model.to(device)


def on(device, model, padding="packed", **changes):
    compute = Compute(device=device, padding=padding, max_length=64, pad_id=0, threads=1)
    return Training(model, encoded(600), options=replace(OPTIONS, **changes), compute=compute, seed=0)


def gradients(state):
    with state.compute.running(state.model.eval()):  # no dropout, whose streams differ between CPU and GPU
        (batch,) = state.compute.batches(state.model, state.rows, np.arange(24), key=(0, 0))
        loss, found = state.gradients(batch, 24)
    return loss, [g.double().cpu() for g in found if g is not None]


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_the_cpus(family):
    ours, theirs = (gradients(on(device, model_of(family, torch.float64, device))) for device in (GPU, CPU))
    assert ours[0] == pytest.approx(theirs[0], rel=1e-5)
    whole = torch.stack([g.norm() for g in theirs[1]]).norm()
    for a, b in zip(ours[1], theirs[1], strict=True):
        assert (a - b).norm() <= 1e-4 * max(b.norm(), 1e-2 * whole)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-4), (torch.bfloat16, 5e-2)])
def test_packed_logits_are_the_padded_ones(family, dtype, close):
    model = model_of(family, dtype, GPU).eval()
    rows = encoded(40)
    which = np.arange(40)
    padded = {k: v.to(GPU) for k, v in pad(rows, which, 0).items() if k != "labels"}
    compute = Compute(device=GPU, max_length=64, pad_id=0)
    with torch.no_grad():
        theirs = model(**padded).logits.float()
        with compute.running(model):
            batch = pack(rows, which, model=model).to(GPU)
            ours = torch.empty_like(theirs)
            ours[torch.from_numpy(batch.rows).to(GPU)] = packed_logits(model, batch).float()
    assert (ours - theirs).norm() <= close * theirs.norm()


@pytest.mark.parametrize("causal", [False, True])
def test_the_varlen_kernel_does_what_the_fused_one_does(causal):
    rows = encoded(32)
    layout = pack(rows, np.arange(32), model=tiny.classifier("bert")).to(GPU).layout
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 4, layout.tokens, 16, generator=generator).to(GPU) for _ in range(3))
    exact = attend(q, k, v, layout, scaling=0.25, causal=causal)
    half = attend(q.bfloat16(), k.bfloat16(), v.bfloat16(), layout, scaling=0.25, causal=causal)
    assert half.dtype == torch.bfloat16
    assert (half.float() - exact).norm() <= 2e-2 * exact.norm()


@pytest.mark.parametrize("padding", ["packed", "longest"])
def test_a_resumed_adaptive_training_gives_the_same_ranks_and_weights(padding, tmp_path):
    def fresh():
        model = tiny.classifier("bert")
        adapt_at_start_rank(model, None, targets=("all-linear",))
        return on(GPU, model.to(GPU), padding, epochs=3.5)

    whole = run(fresh())
    assert 105 in {d.step for d in whole.decisions}
    run(first := fresh(), until=130)
    checkpoint.save(first, tmp_path)
    second = fresh()
    checkpoint.load(second, tmp_path)
    run(second)
    assert [d.to_json() for d in second.decisions] == [d.to_json() for d in whole.decisions]
    for (name, a), (_, b) in zip(
        second.model.named_parameters(), whole.model.named_parameters(), strict=True
    ):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("method", ["lora", "full", "adaptive"])
def test_a_run_on_a_gpu(method, tmp_path, told):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(tiny.reviews(900)), tmp_path / "train.parquet")
    folder = tiny.model_folder(tmp_path / "model")
    result = told(
        "train",
        tmp_path / "train.parquet",
        "--model",
        folder,
        "--method",
        method,
        *RUN,
        "--out",
        tmp_path / "out",
    )
    assert (result["device"], result["dtype"]) == ("cuda", "bfloat16")
    assert result["score"] > 0.8
    assert result["peak_cuda_mb"] > 0
    assert RunFolder(tmp_path / "out").finished
