"""What `rankwise compare` shows besides the table."""

from rankwise.cli import training
from rankwise.config import CompareConfig
from rankwise.run_folder import RESULT, RunFolder


def test_the_ranks_of_adaptive_runs_are_drawn_for_the_first_seed_of_a_task(tmp_path, capfd):
    config = CompareConfig(tasks=("movies",), methods=("lora", "adaptive"), seeds=2, out=tmp_path)
    for name, rank in (("adaptive.s0", 3), ("adaptive.s1", 5), ("lora.s0", 8)):
        folder = RunFolder(tmp_path / f"movies.{name}")
        folder.write_request({})
        ranks = {"bert.encoder.layer.0.attention.self.query": rank}
        words = dict.fromkeys(("task", "method", "model", "metric"), "x")
        unused = {**dict.fromkeys(RESULT, 0), **words, "scores": {"validation": {"x": 0.0}}}
        folder.write_result({**unused, "rank": ranks, "mean_rank": float(rank), "adapter_params": 96})
    training._show_ranks(config, json=False)
    assert capfd.readouterr().out.splitlines() == [
        "",
        "Ranks by layer: adaptive on movies, seed 0",
        "layer  0",
        "query  3",
        "Mean rank 3.00, 96 adapter parameters.",
    ]
