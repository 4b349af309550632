"""A measurement, from its request to its result."""

import importlib.util
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from typing import Any

from rankwise import hardware
from rankwise.bench import architectures, lengths, results
from rankwise.bench.config import BenchConfig
from rankwise.bench.contenders import (
    CONTENDERS,
    IN_SEVERAL,
    TRL_FULL,
    TRL_LORA,
    beside_several,
    processes_of,
    standard,
)
from rankwise.bench.coordinator import Progress, Record, compete
from rankwise.config_json import to_json
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
        peak_memory_mb, memory_by_kind_mb, peak_rss_mb and operations; in several processes memory is that of the one that takes most,
        and there are `processes`, `bytes_sent_a_step` by each, and `communication_share` {median, min, max}, waiting included.
        `operations` is what a step has the device do: operations `started`, matrix `products` among them and their `gflop`,
        `traffic_gb` read and written, and the seconds of both at the rates of this machine's large products and copies
        (`products_seconds`, `traffic_seconds`).
        `ratios`: medians over paired repeats, above 1 where the first is faster; `step_vs_lower_bound` is the time of a
        step over that of its matrix products. `ratio_spreads` has their ranges.
        `memory_ratios`; `failed`: why a contender failed; `notes`: sentences about who took part; `config`, `versions` and `hardware`.

    Raises:
        RankwiseError: a contender, model or length is unknown, a package is missing, one of several processes failed, or no
            contender finished.
    """
    if hardware.processes() > 1:
        raise RankwiseError(
            "`rankwise bench` starts its processes itself. Start it without torchrun, with `processes=`."
        )
    asked, config = config, resolve(config)
    records = compete(
        beside_several(config.contenders, config.processes),
        to_json(config),
        config.repeats,
        processes=processes_of,
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
        "notes": _notes(asked, config, records),
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
        if config.problem not in CONTENDERS[name].problems:
            known = ", ".join(standard(config.problem))
            raise RankwiseError(f"{name!r} doesn't take part in {config.problem}. These do: {known}.")
    usual = IN_SEVERAL if config.processes > 1 else _installed(standard(config.problem))
    contenders = tuple(dict.fromkeys(config.contenders)) or usual
    missing = _missing(contenders)
    if missing:
        extra = "trl" if "trl" in missing else "'rankwise[peft]'"
        raise RankwiseError(
            f"The baselines need {' and '.join(sorted(missing))}: pip install {extra}, or name --contenders without them."
        )
    sizes = (config.rows, config.repeats, config.batch_size, config.rank, config.processes)
    if min(*sizes, config.threads or 1) < 1:
        raise RankwiseError("Rows, repeats, batch size, rank, processes and threads must be at least 1.")
    if config.processes > 1 and not any(CONTENDERS[name].several for name in contenders):
        able = ", ".join(name for name, contender in CONTENDERS.items() if contender.several)
        raise RankwiseError(f"None of the contenders trains in several processes. These do: {able}.")
    name = config.lengths_name
    lengths.histogram(name)
    model_config = architectures.model_config(config)
    architectures.check_problem(model_config, config.random_weights or config.model_name, config.problem)
    longest = architectures.longest(model_config, config.problem)
    if name.isdecimal() and int(name) > longest:
        raise RankwiseError(
            f"{config.random_weights or config.model_name} takes at most {longest} tokens per row; --lengths {name} is more."
        )
    if config.problem == "generation" and name == "1":
        raise RankwiseError(
            "A language model learns nothing from rows of one token. Give --lengths of 2 or more."
        )
    device = hardware.choose_device(config.device)
    dtype, _ = hardware.choose_dtype(config.dtype, device)
    return replace(
        config,
        model=config.model_name,
        lengths=name,
        contenders=contenders,
        device=device.type,
        dtype=str(dtype).removeprefix("torch."),
        threads=config.threads or hardware.cores(),
    )


def _missing(contenders: Iterable[str]) -> set[str]:
    """Return the packages that some contenders need and that aren't installed."""
    return {
        package
        for name in contenders
        for package in CONTENDERS[name].needs
        if importlib.util.find_spec(package) is None
    }


def _installed(contenders: Iterable[str]) -> tuple[str, ...]:
    """Return the contenders without those that need TRL, where it isn't installed."""
    return tuple(name for name in contenders if "trl" not in _missing([name]))


def _notes(asked: BenchConfig, config: BenchConfig, records: Sequence[Record]) -> list[str]:
    """Return a sentence about contenders that were left out, and one about the fastest of TRL's settings."""
    notes = []
    if (
        not asked.contenders
        and config.processes == 1
        and _installed(standard(config.problem)) != standard(config.problem)
    ):
        notes.append("TRL's SFTTrainer is left out, because trl isn't installed: pip install trl.")
    chosen = results.best(records)
    for group, what in ((TRL_LORA, "LoRA"), (TRL_FULL, "full fine-tuning")):
        if group in chosen:
            notes.append(f"TRL's fastest setting for {what}: {chosen[group]}.")
    return notes


def _title(config: BenchConfig) -> str:
    what = f"{config.random_weights} (random weights)" if config.random_weights else config.model_name
    return (
        f"{what}, {config.lengths_name} lengths, batches of {config.batch_size}, {config.dtype} on {config.device}, "
        f"{config.threads} thread{'s' * (config.threads != 1)}; {config.repeats} repeats of {config.rows} rows"
    )
