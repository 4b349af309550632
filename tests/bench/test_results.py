"""Ratios, and the table that people see."""

import sys

from rankwise.bench import results
from rankwise.bench.contenders import CONTENDERS, MEMORY_RATIOS, RATIOS
from rankwise.bench.coordinator import Record
from rankwise.engine.measure import KINDS

OPERATIONS = {
    "started": 1234.0,
    "products": 217.0,
    "gflop": 45.6,
    "traffic_gb": 7.8,
    "products_seconds": 0.0912,
    "traffic_seconds": 0.0345,
}


def _record(name, rates, memory=100.0):
    repeats = [
        {"rows_per_second": r, "tokens_per_second": 10 * r, "step_seconds": {"median": 1 / r}} for r in rates
    ]
    kinds = {"total": memory, **dict.fromkeys(KINDS, memory / 6)}
    measured = {"peak_memory_mb": memory, "memory_by_kind_mb": kinds, "peak_rss_mb": None}
    return Record(name, repeats, measured, OPERATIONS)


def test_ratios_are_paired_by_repeat_and_taken_against_the_better_baseline():
    records = [
        _record("rankwise lora", [20, 30, 60], memory=50),
        _record("peft lora sdpa", [10, 10, 20], memory=200),
        _record("peft lora eager", [9, 9, 100]),
        _record("gemm lower bound", [40, 45, 60]),
    ]
    ratios = results.ratios(records)
    assert ratios["lora_vs_peft_best"] == results.Spread(3, 2, 3)
    assert ratios["step_vs_lower_bound"] == results.Spread(1.5, 1, 2)
    assert ratios.keys() == {"lora_vs_peft_best", "step_vs_lower_bound"}
    assert results.memory_ratios(records) == {"peft_sdpa_vs_lora": 4, "peft_eager_vs_lora": 2}


def test_a_failed_contender_is_in_no_ratio():
    failed = _record("peft lora sdpa", [1000])
    failed.failure = "out of memory"
    records = [_record("rankwise lora", [20]), failed, _record("peft lora eager", [10])]
    assert results.ratios(records)["lora_vs_peft_best"].median == 2
    assert [row["name"] for row in results.rows(records)] == ["rankwise lora", "peft lora eager"]


def test_every_ratio_compares_rows_of_the_table():
    assert {first for first, _ in RATIOS.values()} <= CONTENDERS.keys()
    assert {second for _, seconds in RATIOS.values() for second in seconds} <= CONTENDERS.keys()
    for first, second in MEMORY_RATIOS.values():
        assert {second, *([first] if isinstance(first, str) else first)} <= CONTENDERS.keys()


def test_the_fastest_of_trls_settings_counts_for_speed_and_memory():
    records = [
        _record("rankwise lora", [30, 30], memory=100),
        _record("trl lora", [10, 10], memory=150),
        _record("trl lora padding-free", [12, 15], memory=300),
    ]
    assert results.ratios(records)["lora_vs_trl_best"] == results.Spread(2.25, 2, 2.5)
    assert results.memory_ratios(records) == {"trl_best_vs_lora": 3}
    assert set(results.best(records).values()) == {"rankwise lora", "trl lora padding-free"}


def test_the_table_has_a_row_per_contender_the_failures_and_the_ratios(capfd):
    records = [
        _record("rankwise lora", [20, 30]),
        _record("peft lora sdpa", [10, 10]),
        Record("gemm lower bound", failure="[1] no"),
    ]
    spreads = results.ratios(records)
    result = {
        "title": "a model",
        "rows": results.rows(records),
        "ratios": {name: spread.median for name, spread in spreads.items()},
        "ratio_spreads": {name: vars(spread) for name, spread in spreads.items()},
        "memory_ratios": results.memory_ratios(records),
        "failed": {record.name: record.failure for record in records if record.failure},
        "notes": ["TRL is left out."],
    }
    results.show(result, sys.stdout)
    shown = capfd.readouterr().out
    lines = shown.splitlines()
    assert lines[0] == "a model"
    ours = next(line for line in lines if line.startswith("rankwise lora"))
    assert ours.split()[2:6] == ["25.0", "20.0", "–", "30.0"]
    counted = [line for line in lines if line.startswith("rankwise lora")][2]
    assert counted.split()[2:] == ["1,234", "217", "45.6", "91.2", "7.8", "34.5"]
    assert "gemm lower bound failed: [1] no" in shown
    assert "TRL is left out." in lines
    assert next(line for line in lines if line.startswith("lora_vs_peft_best")).split()[1] == "2.50×"
    assert "\x1b" not in shown, "no control characters outside a terminal"
