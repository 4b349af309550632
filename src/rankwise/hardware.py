"""What a run runs on: device, number type, cores, and the versions and hardware that are recorded with it.

torch is imported inside functions, because the grid's own process needs only the number of cores.
"""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankwise.errors import RankwiseError

if TYPE_CHECKING:
    import torch


def choose_device(asked: str) -> "torch.device":
    """Return the device asked for. `auto` takes the first that there is of cuda, mps and cpu.

    Raises:
        RankwiseError: this machine has no such device.
    """
    import torch

    if asked == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(asked)
        torch.zeros(1, device=device).item()  # tensors of the meta device have no values
    except (RuntimeError, AssertionError, NotImplementedError, ImportError, ValueError):
        raise RankwiseError(
            f"This machine has no device {asked!r}. Leave out `device=` to take the best there is."
        ) from None
    return device


def device_of_process(device: "torch.device") -> "torch.device":
    """Return the device of this process, where several train together: each GPU has one of them.

    Raises:
        RankwiseError: there are fewer GPUs than processes, or the device can't be shared.
    """
    if processes() == 1 or device.type == "cpu":
        return device
    import torch

    n, gpus = processes_here(), torch.cuda.device_count()
    if device.type != "cuda":
        raise RankwiseError(
            f"Several processes train on CUDA GPUs or on CPUs, not on {device.type}. Give `device=cpu`."
        )
    if n > gpus:
        raise RankwiseError(
            f"{n} processes were started on this machine, and it has {gpus} GPU{'s' * (gpus != 1)}. Start as many processes as GPUs, or "
            "give `device=cpu`."
        )
    torch.cuda.set_device(_number("LOCAL_RANK", least=0))
    return torch.device("cuda", torch.cuda.current_device())


def choose_dtype(asked: str, device: "torch.device") -> tuple["torch.dtype", str]:
    """Return the number type of frozen weights and matrix products, and why: bfloat16 if the hardware multiplies it."""
    import torch

    if asked != "auto":
        return getattr(torch, asked), "as asked for"
    if device.type == "cuda":
        has = torch.cuda.is_bf16_supported(including_emulation=False)
        return (
            torch.bfloat16 if has else torch.float32
        ), "the GPU has it" if has else "the GPU has no bfloat16"
    if device.type == "cpu":
        if torch.cpu._is_amx_tile_supported():
            return torch.bfloat16, "the CPU has AMX"
        if torch.cpu._is_avx512_bf16_supported():
            return torch.bfloat16, "the CPU has AVX512-BF16"
        return torch.float32, "the CPU has no bfloat16 instructions"
    return torch.float32, f"the safe choice on {device.type}"


def cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processes() -> int:
    """Return how many processes train together: more than one where a launcher such as torchrun started this one."""
    launched = all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))
    return _number("WORLD_SIZE") if launched else 1


def processes_here() -> int:
    """Return how many of them run on this machine."""
    return _number("LOCAL_WORLD_SIZE") if processes() > 1 else 1


def _number(variable: str, least: int = 1) -> int:
    try:
        return max(least, int(os.environ.get(variable, least)))
    except ValueError:
        return least


def versions() -> dict[str, str]:
    """Return the versions of the packages that determine a result, and of Python."""
    found = {"python": platform.python_version()}
    for package in (
        "rankwise",
        "torch",
        "transformers",
        "tokenizers",
        "safetensors",
        "numpy",
        "scipy",
        "peft",
    ):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def hardware(device: "torch.device") -> dict[str, Any]:
    """Return the machine in words and numbers: processor, cores, memory in MB, device."""
    found: dict[str, Any] = {"processor": _processor(), "cores": cores(), "system": platform.system()}
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        found["memory_mb"] = round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e6)
    found["device"] = device.type
    if device.type == "cuda":
        import torch

        found["device"] = torch.cuda.get_device_name(device)
    return found


def _processor() -> str:
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as lines:
            return next(
                (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")),
                platform.machine(),
            )
    except OSError:
        return platform.processor() or platform.machine()
