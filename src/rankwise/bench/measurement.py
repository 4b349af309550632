"""A measurement, from its request to its result."""

import importlib.util
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from rankwise import hardware
from rankwise.bench import architectures, lengths, results
from rankwise.bench.config import BenchConfig
from rankwise.bench.contenders import CONTENDERS, standard
from rankwise.bench.coordinator import Progress, compete
from rankwise.config import to_json
from rankwise.errors import RankwiseError, nearest


def bench(
    config: BenchConfig, on_progress: Callable[[Progress], None] = lambda progress: None
) -> dict[str, Any]:
    """Measure, and return what `rankwise bench --json` prints.

    Args:
        config: what to measure.
        on_progress: called before each contender's turn.

    Returns:
        `rows`: per contender its name, rows_per_second {median, min, max}, tokens_per_second, step_seconds,
        peak_memory_mb, memory_by_kind_mb and peak_rss_mb.
        `ratios`: medians over paired repeats, above 1 where the first is faster; `step_vs_lower_bound` is the time of a
        step over that of its matrix products. `ratio_spreads` has their ranges.
        `memory_ratios`; `failed`: why a contender failed; `config`, `versions` and `hardware`.

    Raises:
        RankwiseError: a contender, model or length is unknown, a package is missing, or no contender finished.
    """
    config = resolve(config)
    records = compete(
        config.contenders,
        to_json(config),
        config.repeats,
        environment={"OMP_NUM_THREADS": str(config.threads), "TOKENIZERS_PARALLELISM": "false"},
        on_progress=on_progress,
    )
    failed = {record.name: record.failure for record in records if record.failure is not None}
    if len(failed) == len(records):
        raise RankwiseError(
            "No contender finished. " + " ".join(f"{n}: {reason}" for n, reason in failed.items())
        )
    compared = results.ratios(records)
    return {
        "title": _title(config),
        "rows": results.rows(records),
        "ratios": {name: spread.median for name, spread in compared.items()},
        "ratio_spreads": {name: asdict(spread) for name, spread in compared.items()},
        "memory_ratios": results.memory_ratios(records),
        "failed": failed,
        "config": to_json(config),
        "versions": hardware.versions(),
        "hardware": hardware.hardware(hardware.choose_device(config.device)),
    }


def resolve(config: BenchConfig) -> BenchConfig:
    """Return the request with device, dtype, threads and contenders filled in.

    Raises:
        RankwiseError: as `bench`.
    """
    for name in config.contenders:
        if name not in CONTENDERS:
            raise RankwiseError(f"There is no contender {name!r}.{nearest(name, CONTENDERS)}")
    contenders = tuple(dict.fromkeys(config.contenders)) or standard()
    missing = {
        p for name in contenders for p in CONTENDERS[name].needs if importlib.util.find_spec(p) is None
    }
    if missing:
        raise RankwiseError(
            f"The baselines need {' and '.join(sorted(missing))}: pip install 'rankwise[peft]', or name --contenders without them."
        )
    if min(config.rows, config.repeats, config.batch_size, config.rank, config.threads or 1) < 1:
        raise RankwiseError("Rows, repeats, batch size, rank and threads must be at least 1.")
    lengths.histogram(config.lengths)
    longest = architectures.longest(architectures.model_config(config))
    if config.lengths.isdecimal() and int(config.lengths) > longest:
        raise RankwiseError(
            f"{config.random_weights or config.model} takes at most {longest} tokens per row; --lengths {config.lengths} is more."
        )
    device = hardware.choose_device(config.device)
    dtype, _ = hardware.choose_dtype(config.dtype, device)
    return replace(
        config,
        contenders=contenders,
        device=device.type,
        dtype=str(dtype).removeprefix("torch."),
        threads=config.threads or hardware.cores(),
    )


def _title(config: BenchConfig) -> str:
    what = f"{config.random_weights} (random weights)" if config.random_weights else config.model
    return (
        f"{what}, {config.lengths} lengths, batches of {config.batch_size}, {config.dtype} on {config.device}, "
        f"{config.threads} thread{'s' * (config.threads != 1)}; {config.repeats} repeats of {config.rows} rows"
    )
