"""The peak of training before there is any: the very step that would be trained, on tensors that have shapes and no values.

    config.json ─► model, adapters, optimizer ─► one step of the heaviest batch ─► storages followed by kind, as in a real run
                   └──────────────── under FakeTensorMode: no weights, no arithmetic, no memory ────────────────┘

What isn't a tensor comes on top: Python and PyTorch themselves, and on a card its context and what its allocator can't use. Both are stated
as ranges, so an answer near the limit is "too close to call".
"""

import copy
import json
import statistics
import sys
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForSequenceClassification

from rankwise import attention, dropout, hub, machine, models, quantized
from rankwise.bench import architectures
from rankwise.bench.lengths import epoch, histogram, random_rows
from rankwise.config import LoraOptions, PlanConfig, RunConfig, TrainOptions, parse_memory
from rankwise.engine import Engine
from rankwise.errors import RankwiseError
from rankwise.lora import lora_layers
from rankwise.measure import KINDS, MB, Speed, Spread, TensorMemory, megabytes
from rankwise.methods import METHODS
from rankwise.packing import batch_order, filling, length_groups
from rankwise.rank import GROW_AT, START_RANK, RankController
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
MOST_TOKENS = 8192
"""Of the second batch that is gone through on the way to the largest; beyond that a line is followed to the third."""
CLOSE, GONE_THROUGH = 0.02, 6
"""The largest batch is named when the next that doesn't fit is so near, in a share of it, or when so many were gone through."""

LARGEST_RANK = START_RANK * 2 ** len(GROW_AT)
"""What adaptive LoRA could grow to, if held-out rows asked for it in every layer at every check."""

Report = Callable[[int, int, str], None]
"""Told how many steps were gone through, of how many, and what comes."""


# ── One peak ────────────────────────────────────────────────────────────────────────────────────────────────────────────


class _NoValues(TorchDispatchMode):
    """Answers 1 where a step asks for the value of a number: losses and norms of tensors that have none. Where it asks which tokens
    aren't padding, to look their gradients up, all are."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return 1.0 if args[0].is_floating_point() else 1
        if func is torch.ops.prim.device.default and isinstance(args[0], FakeTensor):
            return args[0].fake_device  # asked for very often
        if func is torch.ops.aten.index.Tensor and [getattr(i, "dtype", None) for i in args[1]] == [
            torch.bool
        ]:
            (mask,) = args[1]
            all_of_them = torch.empty(mask.numel(), dtype=torch.int64, device=mask.device)
            return func(args[0].flatten(0, mask.ndim - 1), [all_of_them])
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
        method: `full`, `lora` or `adaptive`.
        rank: r of every adapter; with `adaptive` at most what its layer can have.
        dtype: of frozen weights and of products.
        padding: `packed` or `longest`.
        workers: parts of a batch side by side.
        targets: layers that get an adapter; the family's query and value by default.
        base_bits: frozen linear layers in 8 or 4 bits; full fine-tuning has none.
    """

    architecture: Any
    method: str
    rank: int
    dtype: torch.dtype
    padding: Padding
    workers: int = 1
    targets: tuple[str, ...] = ()
    base_bits: int | None = None


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
                update = training.update  # whose first step makes what is kept between steps
                update.add([torch.zeros_like(parameter) for parameter in update.parameters])
                update.step(0.0)

    def peak(self, lengths: np.ndarray, *, recompute: bool = False) -> dict[str, int]:
        """Bytes by kind at the peak of a step that isn't the first.

        Parts side by side are taken to reach their own peaks at the same moment, which is the most they can take together.

        Args:
            lengths: tokens of each row of the batch.
            recompute: layers run again in backward (`--memory lean`).
        """
        return largest(self.moments(lengths, recompute))

    def moments(self, lengths: np.ndarray, recompute: bool) -> np.ndarray:
        """Bytes by kind at the moments in which a step can peak, [moments, kinds]."""
        first, *more = (self._moments(training, lengths, recompute) for training in self._trainings)
        return first + (self.layers - self.depths[0]) * (more[0] - first) if more else first

    def _moments(self, training: Training, lengths: np.ndarray, recompute: bool) -> np.ndarray:
        training.compute = replace(training.compute, engine=Engine(recompute=recompute))
        training.step_number, training.options = 0, replace(training.options, batch_size=len(lengths))
        with shapes_only(self._fake):
            training.rows = random_rows(lengths, self.setting.architecture, np.random.default_rng(0))
            training._epoch_batches = (0, [np.arange(len(lengths))])
            training._stand_ins = np.arange(len(lengths))
            memory = training.memory()
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


def largest(moments: np.ndarray) -> dict[str, int]:
    """Bytes by kind at the moment with most."""
    return dict(zip(KINDS, moments[moments.sum(axis=1).argmax()].round().astype(int).tolist(), strict=True))


def prepared(setting: Setting) -> Training:
    """What a run has once its model is loaded (`run.prepare`), with one row to train on."""
    method, auto = METHODS[setting.method], cast(Any, AutoModelForSequenceClassification)
    model = auto.from_config(
        setting.architecture, dtype=setting.dtype if method.frozen_base else torch.float32
    )
    found = setting.method == "adaptive"
    lora = LoraOptions(rank=None if found else setting.rank, targets=setting.targets)
    method.prepare(model, RunConfig(lora=lora), [])
    for layer in lora_layers(model).values() if found else ():
        layer.watch(False)  # until the ranks are what they are to be
        rank = min(setting.rank, layer.in_features, layer.out_features)
        layer.resize(
            layer.lora_A.new_zeros(rank, layer.in_features), layer.lora_B.new_zeros(layer.out_features, rank)
        )
    if setting.base_bits is not None and method.frozen_base:
        quantized.quantize(model, setting.base_bits)
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
    training = Training(model, rows, options, compute, seed=0)
    if found:  # it watches the layers; no decision is due in a step
        training.rank = controller = RankController(model, torch.Tensor, sys.maxsize, training.update)
        for path, layer in controller.layers.items():
            controller.moments[path] = torch.zeros_like(cast(torch.Tensor, layer.moments))
    return training


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


def heaviest(lengths: np.ndarray, batch_size: int, setting: Setting) -> np.ndarray:
    """Tokens of each row of an epoch's heaviest batch.

    Rows are shuffled as a run shuffles them, over `EPOCHS` epochs.
    """
    a_token, a_pair = _costs(setting)
    packed = setting.padding == "packed"
    each = a_token * lengths + a_pair * lengths.astype(float) ** 2
    best: tuple[float, np.ndarray] = (-1.0, lengths[:0])
    for i in range(EPOCHS):
        seed = stream_seed(0, "order", i)
        order = batch_order(lengths, batch_size, seed=seed, group_by_length=not packed)
        sizes = np.array([len(batch) for batch in order])
        begins, rows = np.cumsum(sizes) - sizes, np.concatenate(order)
        weights = (
            np.add.reduceat(each[rows], begins) if packed else sizes * np.maximum.reduceat(each[rows], begins)
        )
        heavy = int(weights.argmax())
        best = max(best, (float(weights[heavy]), lengths[order[heavy]]), key=lambda one: one[0])
    return best[1]


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


def plan(config: PlanConfig, on_progress: Report = lambda done, of, doing: None) -> dict[str, Any]:
    """Answers what `rankwise plan` asks.

    Args:
        config: what to plan for.
        on_progress: told what is being worked out.

    Returns:
        `configurations`: method, rank, batch_size, memory_mode, peak_memory_mb {total, weights, …}, outside_mb [least, most],
        verdict (`fits`, `doesn't`, `too close to call`) and fits (true, false, null), largest_batch_size (the last three null without a
        limit); seconds_an_epoch, where this machine was measured; of adaptive LoRA, which is planned at its start rank, `at_most`: rank and
        peak_memory_mb if every layer grew as often as it may. And what was planned for.

    Raises:
        RankwiseError: no such model, task or method; a size that is none.
    """
    limit = None if config.memory is None else parse_memory(config.memory)
    if isinstance(limit, str):
        raise RankwiseError(f"--memory is a size to fit in, such as 8GB; {limit} is a --memory-mode.")
    if config.base_bits is not None:
        quantized.check(torch.device(config.device))
    architecture = find_architecture(config.model)
    lengths = find_lengths(config.lengths or config.task)
    lengths = np.minimum(lengths, min(architectures.longest(architecture), config.max_length or 512))
    padding: Padding = "packed" if packs(architecture) else "longest"
    modes = ("fast", "lean") if config.memory_mode == "both" else (config.memory_mode,)
    methods = tuple(dict.fromkeys(config.methods))
    every = len(modes) * (1 if limit is None else 3)  # steps gone through for a method, mostly
    steps = every * len(methods) + len(modes) * (("adaptive" in methods) + config.speed * len(methods))
    gone = count()
    found = []
    for method in methods:
        rank = {"full": None, "adaptive": START_RANK}.get(method, config.rank)
        setting = Setting(
            architecture,
            method,
            rank or 1,
            _dtype(config),
            padding,
            config.workers,
            base_bits=config.base_bits,
        )
        shapes = Shapes(setting)
        for mode in modes:
            lean = mode == "lean"

            def report(doing: str = f"{method}, {mode}") -> None:
                on_progress(next(gone), steps, doing)

            one: dict[str, Any] = {"method": method, "rank": rank, "memory_mode": mode}
            one |= _answer(Sizes(shapes, lengths, lean, report), config, limit)
            if method == "adaptive":
                report("adaptive, at its largest")
                largest = Shapes(replace(setting, rank=LARGEST_RANK)).peak(
                    heaviest(lengths, config.batch_size, setting), recompute=lean
                )
                one["at_most"] = {"rank": LARGEST_RANK, "peak_memory_mb": megabytes(largest)}
            if config.speed:
                report("measuring")
                one["seconds_an_epoch"] = epoch_seconds(setting, lengths, config.batch_size, lean)
            found.append(one)
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
    """Peaks by batch size, of an epoch's heaviest batch.

    What is live at a given moment grows nearly in a line with the weight of a batch. So few sizes are gone through: the one that is asked
    for, one nearer the limit, and those that the line through two names.

    Args:
        shapes: of the training.
        lengths: tokens of every row.
        recompute: layers run again in backward.
        report: called before a step is gone through.
    """

    def __init__(
        self, shapes: Shapes, lengths: np.ndarray, recompute: bool, report: Callable[[], None] = lambda: None
    ) -> None:
        self.shapes, self.lengths, self.recompute, self._report = shapes, lengths, recompute, report
        self._known: dict[int, np.ndarray] = {}

    def __call__(self, batch_size: int) -> dict[str, int]:
        """Bytes by kind, gone through."""
        return largest(self._moments(batch_size))

    def _moments(self, batch_size: int) -> np.ndarray:
        if batch_size not in self._known:
            batch = heaviest(self.lengths, batch_size, self.shapes.setting)
            self._known[batch_size] = self._go_through(batch)
        return self._known[batch_size]

    def _go_through(self, batch: np.ndarray) -> np.ndarray:
        self._report()
        return self.shapes.moments(batch, self.recompute)

    def largest(self, batch_size: int, limit: float, fits: Callable[[dict[str, int]], bool]) -> int:
        """The largest batch size that fits, to `CLOSE`; it has been gone through itself. 0 where one row doesn't fit.

        Args:
            batch_size: one to go out from.
            limit: near which bytes of tensors the largest may be.
            fits: judges a peak.
        """
        good, bad = 0, len(self.lengths) + 1
        sizes = [batch_size, self._near(batch_size, limit)]
        for size in sizes:  # those that are worked out on the way come behind
            if fits(self(size)):
                good = max(good, size)
            else:
                bad = min(bad, size)
            if size == batch_size:
                continue
            if bad - good <= max(1, CLOSE * good) or len(sizes) == GONE_THROUGH:
                break
            law, between = self._law(*sizes[-2:]), range(good + 1, bad)
            enough = bisect_left(between, True, key=lambda n, law=law: not fits(largest(law(n))))
            sizes.append(between[max(0, enough - 1)])
        return good

    def _near(self, batch_size: int, limit: float) -> int:
        """Another size, nearer to the limit, by what doesn't change with the batch and what does."""
        fixed, changing = (sum(self(batch_size)[kind] for kind in kinds) for kinds in (KINDS[:3], KINDS[3:]))
        tokens = heaviest(self.lengths, batch_size, self.shapes.setting).sum()
        times = min((limit - fixed) / changing, MOST_TOKENS / tokens)
        size = min(max(1, round(batch_size * times)), len(self.lengths))
        return size if size != batch_size else batch_size // 2 or 2

    def _law(self, one: int, other: int) -> Callable[[int], np.ndarray]:
        """Moments of any size by its weight, in a line through two that were gone through."""
        setting = self.shapes.setting
        x1, x2 = (weight(heaviest(self.lengths, n, setting), setting) for n in (one, other))
        known = self._moments(one)
        slope = (self._moments(other) - known) / (x2 - x1 or 1.0)
        return lambda n: known + (weight(heaviest(self.lengths, n, setting), setting) - x1) * slope


def weight(batch: np.ndarray, setting: Setting) -> float:
    """What the memory of a batch grows with in a line, of the lengths it is computed with.

    A layer keeps some `KEPT` numbers a token and width, and one for each head and pair of a row's tokens.
    """
    if setting.padding == "packed":
        tokens = int(batch.sum())
        padded, tokens = length_groups(np.sort(batch)), tokens + filling(tokens)
    else:
        padded = np.full_like(batch, batch.max())
        tokens = int(padded.sum())
    a_token, a_pair = _costs(setting)
    return a_token * tokens + a_pair * float((padded.astype(float) ** 2).sum())


def _costs(setting: Setting) -> tuple[int, int]:
    return KEPT * models.width(setting.architecture), setting.architecture.num_attention_heads


def _answer(sizes: Sizes, config: PlanConfig, limit: int | None) -> dict[str, Any]:
    peak = sizes(config.batch_size)
    least, most = outside(peak, config.device)
    verdict = None if limit is None else judge(peak, limit, config.device)
    largest = None
    if limit is not None:
        room = limit - (most if config.device == "cuda" else 0.0)
        largest = sizes.largest(config.batch_size, room, lambda p: judge(p, limit, config.device) == "fits")
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
