"""A run with adaptive rank measures its sizes; export takes one of them, without training and without data."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

import tiny
from own_tables import write
from rankwise.adapters import curve_file
from rankwise.adapters.export import export
from rankwise.errors import RankwiseError
from rankwise.runs.early_stopping import EarlyStopping


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A finished run on 640 rows, and its 160 validation rows in a file."""
    return _trained(tmp_path_factory.mktemp("curve"))


@pytest.fixture(scope="module")
def ended_early(tmp_path_factory) -> Path:
    """The same, but that early stopping ends it after four of five epochs, when ranks are decided."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EarlyStopping, "stop", property(lambda self: len(self.losses) == 4))
        return _trained(tmp_path_factory.mktemp("early"), "--patience", "9")


def _trained(folder: Path, *more: str) -> Path:
    from rankwise.cli import main

    tiny.model_folder(folder / "model")
    for name, n, seed in (("train.jsonl", 640, 0), ("validation.jsonl", 160, 1)):
        write(folder / name, "".join(json.dumps(row) + "\n" for row in tiny.reviews(n, seed)))
    with pytest.raises(SystemExit) as stopped:
        main(
            [
                *("train", str(folder / "train.jsonl"), "--validation", str(folder / "validation.jsonl")),
                *(
                    "--model",
                    str(folder / "model"),
                    "--dtype",
                    "float32",
                    "--epochs",
                    "5",
                    "--batch-size",
                    "16",
                ),
                *("--lr", "4e-3", "--threads", "1", "--out", str(folder / "out"), *more),
            ]
        )
    assert stopped.value.code == 0
    return folder


@pytest.mark.slow
def test_the_curve_begins_at_the_adapter_and_ends_at_none(run):
    curve = curve_file.read(run / "out")
    assert curve is not None
    result = json.loads((run / "out" / "result.json").read_text())
    assert curve.points[0].ranks == result["rank"]
    assert curve.points[0].params == result["adapter_params"]
    assert curve.points[0].scores["accuracy"] == result["score"]
    assert curve.points[-1].params == 0
    assert curve.rows == 160


@pytest.mark.slow
@pytest.mark.parametrize("which", ["run", "ended_early"])
def test_export_gives_exactly_the_stored_size(which, tmp_path, told, request):
    run = request.getfixturevalue(which)
    curve = curve_file.read(run / "out")
    assert curve is not None
    size = next(point for point in curve.points[1:] if point.params)
    asked = told("export", run / "out", "--max-params", size.params, "--out", tmp_path / "small")
    assert asked["adapter_params"] == size.params
    assert asked["rank"] == {path: rank for path, rank in size.ranks.items() if rank}
    whole, small = (
        load_file(folder / "adapter_model.safetensors") for folder in (run / "out", tmp_path / "small")
    )
    for name, value in small.items():
        if ".lora_A" in name:
            assert value.equal(whole[name][: len(value)])
    scored = told("evaluate", tmp_path / "small", run / "validation.jsonl")
    assert scored["accuracy"] == pytest.approx(size.scores["accuracy"])


@pytest.mark.slow
def test_a_share_of_the_gain_takes_the_smallest_size_within_it(run, tmp_path, told):
    curve = curve_file.read(run / "out")
    assert curve is not None
    asked = told("export", run / "out", "--max-loss-increase", "50%", "--out", tmp_path / "half")
    assert asked["adapter_params"] == curve.within_loss(0.5).params
    assert asked["measured"]["loss_increase"] <= 0.5 * curve.gain


@pytest.mark.slow
def test_inspect_and_the_model_card_show_the_sizes(run, told):
    curve = curve_file.read(run / "out")
    assert curve is not None
    assert told("inspect", run / "out")["curve"] == curve.to_json()
    card = (run / "out" / "README.md").read_text()
    assert "## Smaller sizes" in card
    assert all(f"| {point.params:,} |" in card for point in curve.points)


@pytest.mark.slow
def test_a_curve_of_another_adapter_is_refused(run, tmp_path):
    small = tmp_path / "small"
    export(run / "out", small, uniform_rank=3)
    curve_file.write(small, curve_file.read(run / "out"))  # pyright: ignore[reportArgumentType]
    with pytest.raises(RankwiseError, match="is of another adapter"):
        export(small, tmp_path / "smaller", max_params=1000)
    (small / "rank_curve.json").write_text('{"rows": 3}')
    with pytest.raises(RankwiseError, match=r"rank_curve.json is damaged \(it lacks gain, points\)"):
        export(small, tmp_path / "smaller", max_params=1000)
    (small / "rank_curve.json").unlink()
    with pytest.raises(
        RankwiseError, match="has no rank_curve.json, so what a smaller size costs isn't known"
    ):
        export(small, tmp_path / "smaller", max_loss_increase=0.01)
