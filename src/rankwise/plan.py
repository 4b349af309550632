"""The peak of training before there is any: the very step that would be trained, on tensors that have shapes and no values.

    config.json ─► model, adapters, optimizer ─► one step of the heaviest batch ─► storages followed by kind, as in a real run
                   └──────────────── under FakeTensorMode: no weights, no arithmetic, no memory ────────────────┘

What isn't a tensor comes on top: Python and PyTorch themselves, and on a card its context and what its allocator can't use. Both are stated
as ranges, so an answer near the limit is "too close to call".
"""

import copy
import json
import math
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForSequenceClassification

from rankwise import attention, dropout, hub, machine, models
from rankwise.bench import architectures
from rankwise.bench.lengths import epoch, histogram, random_rows
from rankwise.config import LoraOptions, PlanConfig, RunConfig, TrainOptions, parse_memory
from rankwise.engine import Engine
from rankwise.errors import RankwiseError
from rankwise.measure import KINDS, MB, Speed, Spread, TensorMemory, megabytes
from rankwise.methods import METHODS
from rankwise.packing import batch_order
from rankwise.rank import START_RANK
from rankwise.streams import stream_seed
from rankwise.train import Compute, Padding, Training

OUTSIDE: dict[str, tuple[float, float, float, float]] = {
    "cpu": (0.3e9, 0.6e9, 0.0, 0.10),
    "cuda": (0.4e9, 1.0e9, 0.02, 0.15),
}
"""What isn't tensors: bytes that are always there (least, most), and a share of the tensors lost to the allocator (least, most). On a CPU
the first is Python and PyTorch, on a card its context, kernels and the workspaces of its libraries."""
EPOCHS = 3
"""Over which the heaviest batch is looked for: the order of rows is drawn anew in each."""
KEPT = 17
"""Numbers a layer keeps for backward, for each token and unit of width: what makes batches of long rows comparable with those of many."""
NEAR = 0.03
"""Of a peak: what may be left of the limit where a batch size is called the largest."""
TRIES = 3
"""Batch sizes tried on the way to the largest."""

Report = Callable[[str], None]


# ── One peak ────────────────────────────────────────────────────────────────────────────────────────────────────────────


class _NoValues(TorchDispatchMode):
    """Answers 1 where a step asks for the value of a number: losses and norms of tensors that have none."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return 1.0 if args[0].is_floating_point() else 1
        return func(*args, **(kwargs or {}))


@contextmanager
def shapes_only(fake: FakeTensorMode) -> Iterator[None]:
    """In this block tensors have shapes and no values, those made of NumPy's arrays included, and take no memory."""
    from_numpy, lanes = torch.from_numpy, dropout._lanes
    with torch.random.fork_rng(devices=[]), fake, _NoValues():
        torch.from_numpy = lambda array: fake.from_tensor(from_numpy(array))
        dropout._lanes = _undrawn
        try:
            yield
        finally:
            torch.from_numpy, dropout._lanes = from_numpy, lanes


def _undrawn(key: Any, start: int, n: int, device: torch.device) -> torch.Tensor:
    """The lanes of `dropout._lanes`, in the same memory, without a number drawn: large batches take millions."""
    skip = start % 4
    words = torch.empty((skip + n + 3) // 4, dtype=torch.int64, device=device)
    return words.view(torch.int16)[skip : skip + n]


@dataclass(frozen=True)
class Setting:
    """What is trained.

    Attributes:
        architecture: a Transformers config.
        method: `full` or `lora`.
        rank: r of every adapter.
        dtype: of frozen weights and of products.
        padding: `packed` or `longest`.
        workers: parts of a batch side by side.
        targets: layers that get an adapter; the family's query and value by default.
    """

    architecture: Any
    method: str
    rank: int
    dtype: torch.dtype
    padding: Padding
    workers: int = 1
    targets: tuple[str, ...] = ()


class Shapes:
    """A training without values: `peak` of any batch. What is followed is a step of `Training`, the very code of a run.

    Layers are alike, so what is live at a given moment grows with their number in a line. Of a deep model two shallow ones are run, and
    the line through each of the moments in which a step can peak is followed to the model's own depth.

    Args:
        setting: what is trained.
        depths: layers of the models that are run. Default: 3 and 4 where there are more and all are alike.
    """

    def __init__(self, setting: Setting, depths: tuple[int, ...] | None = None) -> None:
        self.setting, self._fake = setting, FakeTensorMode()
        self.layers = int(setting.architecture.num_hidden_layers)
        alike = len(set(getattr(setting.architecture, "layer_types", None) or ())) < 2
        self.depths = depths or ((3, 4) if self.layers > 4 and alike else (self.layers,))
        with shapes_only(self._fake):
            self._trainings = [
                prepared(replace(setting, architecture=reduced(setting.architecture, n))) for n in self.depths
            ]
            for training in self._trainings:
                for group in training.update.optimizer.param_groups:  # its first step makes the moments
                    for parameter in group["params"]:
                        if parameter.grad is None:  # a slab has its own
                            parameter.grad = torch.zeros_like(parameter)
                training.update.step(0.0)

    def peak(self, lengths: np.ndarray, *, recompute: bool = False) -> dict[str, int]:
        """Bytes by kind at the peak of a step that isn't the first.

        Parts side by side are taken to reach their own peaks at the same moment, which is the most they can take together.

        Args:
            lengths: tokens of each row of the batch.
            recompute: layers run again in backward (`--memory lean`).
        """
        first, *more = (self._moments(training, lengths, recompute) for training in self._trainings)
        moments = first + (self.layers - self.depths[0]) * (more[0] - first) if more else first
        return dict(zip(KINDS, moments[moments.sum(axis=1).argmax()].tolist(), strict=True))

    def _moments(self, training: Training, lengths: np.ndarray, recompute: bool) -> np.ndarray:
        """Bytes by kind at the moments in which a step can peak, [moments, kinds]."""
        training.compute = replace(training.compute, engine=Engine(recompute=recompute))
        training.step_number, training.options = 0, replace(training.options, batch_size=len(lengths))
        with shapes_only(self._fake):
            training.rows = random_rows(lengths, self.setting.architecture, np.random.default_rng(0))
            training._epoch_batches = (0, [np.arange(len(lengths))])
            memory = TensorMemory("cpu", training.model, training.update.optimizer)
            training.speed = marks = _Marks(memory)
            with memory, training.compute.running(training.model):
                training.step()
        return moments(memory.trace(), marks.begun, marks.ended)


class _Marks(Speed):
    """Notes where in a memory's trace the shares of a step lie."""

    def __init__(self, memory: TensorMemory) -> None:
        super().__init__()
        self.memory = memory
        self.begun: dict[str, list[int]] = {}
        self.ended: dict[str, list[int]] = {}

    @contextmanager
    def share(self, name: str, side_by_side: int = 1) -> Iterator[None]:
        self.begun.setdefault(name, []).append(self.memory.events)
        yield
        self.ended.setdefault(name, []).append(self.memory.events)


def moments(trace: np.ndarray, begun: dict[str, list[int]], ended: dict[str, list[int]]) -> np.ndarray:
    """What a step takes at most in forward, in the first and second half of backward, and outside of them, by kind.

    Along the layers memory rises or falls in a line, so its peak is at one end: one of these moments. Parts, which were run one after the
    other, are put on top of each other in each.

    Args:
        trace: bytes by kind after each event.
        begun, ended: the events at which shares of the step began and ended, one entry a part.
    """

    def top(first: int, last: int) -> np.ndarray:
        some = trace[first - 1 : max(first, last)]
        return some[some.sum(axis=1).argmax()]

    level = trace[begun["forward"][0] - 1]
    stages = np.tile(level, (3, 1))
    parts = zip(begun["forward"], begun["backward"], ended["backward"], strict=True)
    for forward, backward, end in parts:
        middle = (backward + end) // 2
        each = [top(forward, backward), top(backward, middle), top(middle, end)]
        stages += np.array(each) - trace[forward - 1]
    return np.vstack([stages, top(ended["backward"][-1], len(trace))])


def prepared(setting: Setting) -> Training:
    """What a run has once its model is loaded (`run.prepare`), with one row to train on."""
    method, auto = METHODS[setting.method], cast(Any, AutoModelForSequenceClassification)
    model = auto.from_config(
        setting.architecture, dtype=setting.dtype if method.frozen_base else torch.float32
    )
    method.prepare(model, RunConfig(lora=LoraOptions(rank=setting.rank, targets=setting.targets)), [])
    compute = Compute(
        device=torch.device("cpu"),
        autocast=setting.dtype if not method.frozen_base and setting.dtype != torch.float32 else None,
        padding=setting.padding,
        max_length=architectures.longest(setting.architecture),
        pad_id=setting.architecture.pad_token_id,
        threads=1,
    )
    options = TrainOptions(
        epochs=1, batch_size=1, accumulate=setting.workers, lr=1e-4, optimizer="adamw", schedule="constant", warmup=0.0,
        weight_decay=0.0, clip=1.0,
    )  # fmt: skip
    rows = random_rows(np.array([1]), setting.architecture, np.random.default_rng(0))
    return Training(model, rows, options, compute, seed=0)


# ── What is asked ───────────────────────────────────────────────────────────────────────────────────────────────────────


def find_architecture(name: str) -> Any:
    """The Transformers config of a shipped architecture, a config.json or its folder, or a model by name, with a padding token.

    Raises:
        RankwiseError: there is none.
    """
    path = Path(name)
    if path.suffix == ".json" and path.is_file():
        found = _read(path)
    elif (path / hub.CONFIG).is_file():
        found = _read(path / hub.CONFIG)
    elif name.rsplit("/", 1)[-1].lower() in architectures.known():
        found = architectures.architecture(name)
    else:
        found = models.locate(name).config
    if found.pad_token_id is None:  # GPT-2, Llama: any token will do, attention never sees it
        eos = found.eos_token_id
        found.pad_token_id = eos[0] if isinstance(eos, list) else (eos or 0)
    return found


def _read(path: Path) -> Any:
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        return AutoConfig.for_model(fields.pop("model_type"), **fields)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RankwiseError(
            f"{path} is no config.json of a Transformers model: {type(error).__name__}: {error}. "
            "It needs a model_type and the sizes that go with it."
        ) from None


def find_lengths(name: str) -> np.ndarray:
    """Tokens of every row of an epoch: of a task by name, one number for all rows (1,000 of them), or a file with one number a line.

    Raises:
        RankwiseError: it is none of these.
    """
    file = Path(name)
    if file.is_file():
        try:
            found = np.array([int(word) for word in file.read_text(encoding="utf-8").split()], dtype=np.int64)
        except (OSError, ValueError) as error:
            raise RankwiseError(f"{file} should have one number of tokens a line: {error}.") from None
        if len(found) == 0 or found.min() < 1:
            raise RankwiseError(f"{file} should have one number of tokens a line, each 1 or more.")
        return found
    counts = histogram(name)
    return np.repeat(np.array([*counts]), 1000) if len(counts) == 1 else epoch(name, np.random.default_rng(0))


def heaviest(lengths: np.ndarray, batch_size: int, setting: Setting) -> tuple[np.ndarray, float]:
    """Tokens of each row of an epoch's heaviest batch, and its weight, in which peaks grow nearly in a line.

    A layer keeps some `KEPT` numbers a token and width, and one for each head and pair of a row's tokens. Rows are shuffled as a run
    shuffles them, over `EPOCHS` epochs.
    """
    width, heads = models.width(setting.architecture), setting.architecture.num_attention_heads

    def weight(n: np.ndarray) -> float:
        n = n if setting.padding == "packed" else np.full_like(n, n.max())
        return float(KEPT * width * n.sum() + heads * (n.astype(float) ** 2).sum())

    batches = (
        lengths[batch]
        for epoch in range(EPOCHS)
        for batch in batch_order(
            lengths,
            batch_size,
            seed=stream_seed(0, "order", epoch),
            group_by_length=setting.padding != "packed",
        )
    )
    weighed = ((batch, weight(batch)) for batch in batches)
    return max(weighed, key=lambda one: one[1])


def packs(architecture: Any) -> bool:
    """Whether models of this kind can be trained packed: a small one is built and asked (`attention.can_pack`)."""
    small = reduced(architecture, 2)
    for name, most in (("intermediate_size", 64), ("vocab_size", 1000)):
        if isinstance(getattr(small, name, None), int):
            setattr(small, name, min(most, getattr(small, name)))
    small.pad_token_id = min(small.pad_token_id, 1)
    with torch.random.fork_rng(devices=[]), models.quiet():
        try:
            auto: Any = AutoModelForSequenceClassification
            return attention.can_pack(auto.from_config(small))[0]
        except (ValueError, RuntimeError, IndexError, TypeError):
            return False


def reduced(architecture: Any, layers: int) -> Any:
    """The same architecture with its first layers only."""
    few = copy.deepcopy(architecture)
    few.num_hidden_layers = layers
    if getattr(few, "layer_types", None):
        few.layer_types = few.layer_types[:layers]
    return few


def plan(config: PlanConfig, on_progress: Report = lambda text: None) -> dict[str, Any]:
    """Answers what `rankwise plan` asks.

    Args:
        config: what to plan for.
        on_progress: told what is being worked out.

    Returns:
        `configurations`: method, rank, batch_size, memory_mode, peak_memory_mb {total, weights, …}, outside_mb [least, most],
        verdict (`fits`, `doesn't`, `too close to call`) and fits (true, false, null), largest_batch_size (the last three null without a
        limit); seconds_an_epoch, where this machine was measured; and what was planned for.

    Raises:
        RankwiseError: no such model, task or method; a size that is none.
    """
    limit = None if config.memory is None else parse_memory(config.memory)
    if isinstance(limit, str):
        raise RankwiseError(f"--memory is a size to fit in, such as 8GB; {limit} is a --memory-mode.")
    architecture = find_architecture(config.model)
    lengths = find_lengths(config.lengths or config.task)
    lengths = np.minimum(lengths, min(architectures.longest(architecture), config.max_length or 512))
    padding: Padding = "packed" if packs(architecture) else "longest"
    modes = ("fast", "lean") if config.memory_mode == "both" else (config.memory_mode,)
    found = []
    for method in dict.fromkeys(config.methods):
        rank = {"full": None, "adaptive": START_RANK}.get(method, config.rank)
        setting = Setting(
            architecture,
            "full" if method == "full" else "lora",
            rank or 1,
            _dtype(config),
            padding,
            config.workers,
        )
        shapes = Shapes(setting)
        for mode in modes:
            on_progress(f"{method}, {mode}")
            sizes = Sizes(shapes, lengths, mode == "lean")
            found.append(
                {"method": method, "rank": rank, "memory_mode": mode, **_answer(sizes, config, limit)}
            )
        if config.speed:
            on_progress(f"{method}, measuring")
            for one, mode in zip(found[-len(modes) :], modes, strict=True):
                one["seconds_an_epoch"] = epoch_seconds(setting, lengths, config.batch_size, mode == "lean")
    return {
        "model": config.model,
        "lengths": config.lengths or config.task,
        "rows": len(lengths),
        "tokens_a_row": asdict(Spread.of(lengths.tolist())) | {"mean": float(lengths.mean())},
        "device": config.device,
        "dtype": str(_dtype(config)).removeprefix("torch."),
        "padding": padding,
        "workers": config.workers,
        "memory_mb": None if limit is None else limit / MB,
        "configurations": found,
    }


def _dtype(config: PlanConfig) -> torch.dtype:
    if config.dtype == "auto" and config.device == "cuda":
        return torch.bfloat16
    return machine.choose_dtype(config.dtype, torch.device("cpu"))[0]


class Sizes:
    """Peaks by batch size: of an epoch's heaviest batch, worked out once each.

    Args:
        shapes: of the training.
        lengths: tokens of every row.
        recompute: layers run again in backward.
    """

    def __init__(self, shapes: Shapes, lengths: np.ndarray, recompute: bool) -> None:
        self.shapes, self.lengths, self.recompute = shapes, lengths, recompute
        self.known: dict[int, tuple[float, dict[str, int]]] = {}

    def __call__(self, batch_size: int) -> dict[str, int]:
        """Bytes by kind."""
        if batch_size not in self.known:
            batch, weight = heaviest(self.lengths, batch_size, self.shapes.setting)
            self.known[batch_size] = weight, self.shapes.peak(batch, recompute=self.recompute)
        return self.known[batch_size][1]

    def largest(self, fits: Callable[[dict[str, int]], bool], room: Callable[[dict[str, int]], float]) -> int:
        """The largest batch size known to fit, to within a few percent; 0 where one row doesn't.

        Args:
            fits: judges a peak.
            room: bytes left of the limit by a peak, negative above it.
        """
        low, high = 0, len(self.lengths) + 1  # the one fits, the other doesn't
        for n in sorted(self.known):
            low, high = (n, high) if fits(self(n)) else (low, min(high, n))
        for _ in range(TRIES):
            left = room(self(low)) / sum(self(low).values()) if low else 1.0
            if high - low <= 1 or left < NEAR:
                break
            n = self._next(low, high, room)
            low, high = (n, high) if fits(self(n)) else (low, n)
        return low

    def _next(self, low: int, high: int, room: Callable[[dict[str, int]], float]) -> int:
        """The largest size between `low` and `high` whose heaviest batch is no heavier than where the line through the two known sizes
        nearest the limit meets it; a batch without rows keeps what doesn't change with rows."""
        points = [(weight, room(peak)) for weight, peak in self.known.values()]
        _, peak = next(iter(self.known.values()))
        points.append((0.0, room(peak) + sum(peak[kind] for kind in ("activations", "batch", "workspace"))))
        (x1, left), (x2, right) = sorted(points, key=lambda point: abs(point[1]))[:2]
        slope = (right - left) / (x2 - x1)
        weight = x1 - 0.998 * left / slope if slope < 0 else math.inf
        first, last = low + 1, max(low + 1, high - 1)
        while first < last:
            middle = (first + last + 1) // 2
            if heaviest(self.lengths, middle, self.shapes.setting)[1] <= weight:
                first = middle
            else:
                last = middle - 1
        return first


def _answer(sizes: Sizes, config: PlanConfig, limit: int | None) -> dict[str, Any]:
    peak = sizes(config.batch_size)
    least, most = outside(peak, config.device)
    verdict = None if limit is None else judge(peak, limit, config.device)
    largest = None
    if limit is not None:
        largest = sizes.largest(
            lambda p: judge(p, limit, config.device) == "fits",
            lambda p: limit - sum(p.values()) - (outside(p, "cuda")[1] if config.device == "cuda" else 0.0),
        )
    return {
        "batch_size": config.batch_size,
        "peak_memory_mb": megabytes(peak),
        "outside_mb": [least / MB, most / MB],
        "verdict": verdict,
        "fits": {"fits": True, "doesn't": False}.get(verdict or ""),
        "largest_batch_size": largest,
    }


def outside(peak: dict[str, int], device: str) -> tuple[float, float]:
    """What a process takes that isn't tensors, in bytes: at least, and at most."""
    least, most, lost_least, lost_most = OUTSIDE[device]
    changing = sum(peak.values()) - peak["weights"]
    return least + lost_least * changing, most + lost_most * changing


def judge(peak: dict[str, int], limit: float, device: str) -> str:
    """`fits`, `doesn't`, or `too close to call`.

    On a CPU the limit is on tensor bytes, as in `rankwise train --memory`; a card has to hold the rest too.
    """
    tensors = sum(peak.values())
    if device == "cpu":
        return "fits" if tensors <= limit else "doesn't"
    least, most = outside(peak, device)
    if tensors + most <= limit:
        return "fits"
    return "doesn't" if tensors + least > limit else "too close to call"


# ── Time ────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def epoch_seconds(setting: Setting, lengths: np.ndarray, batch_size: int, recompute: bool) -> float:
    """Seconds that an epoch takes here: steps of the same model with 1 and 3 layers and random values are timed, and the line through
    both followed to all its layers. Evaluation isn't in it.

    Args:
        setting: what is trained.
        lengths: tokens of every row.
        batch_size: rows a step.
        recompute: layers run again in backward.
    """
    batches = batch_order(lengths, batch_size, seed=0)
    order = sorted(batches, key=lambda b: abs(lengths[b].sum() - lengths.mean() * batch_size))
    typical = lengths[order[0]]
    layers = int(setting.architecture.num_hidden_layers)
    few = tuple(dict.fromkeys(min(n, layers) for n in (1, 3)))
    seconds = [_step_seconds(setting, typical, n, recompute) for n in few]
    a_layer = (seconds[-1] - seconds[0]) / max(1, few[-1] - few[0])
    step = seconds[-1] + a_layer * (layers - few[-1])
    return step * float(lengths.sum()) / float(typical.sum())


def _step_seconds(setting: Setting, lengths: np.ndarray, layers: int, recompute: bool) -> float:
    """The median of a few steps behind a warm-up, on all cores."""
    training = prepared(replace(setting, architecture=reduced(setting.architecture, layers)))
    training.compute = replace(training.compute, engine=Engine(recompute=recompute), threads=None)
    training.rows = random_rows(lengths, setting.architecture, np.random.default_rng(0))
    training.steps, taken = 10**6, []
    with training.compute.running(training.model):
        while len(taken) < 5:
            taken.append(training.step().seconds)
    return statistics.median(taken[2:])
