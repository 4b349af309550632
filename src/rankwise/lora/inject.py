"""Which layers of a model get a LoRA layer, and what is trained besides them: the classification head, and modules that are new.

Targets are named the way PEFT names them: by the last part of a module's path (`query`), a whole path, a pattern
(`encoder.layer.[0-5].*.value`), or `all-linear` for every linear layer of the pretrained body, BERT's pooler with it.
"""

import re
from collections.abc import Iterable, Sequence

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from rankwise.errors import RankwiseError, nearest
from rankwise.lora.layer import LoRALinear, draw_A, lora_layers
from rankwise.models.families import FAMILIES, body_and_heads
from rankwise.rank.controller import ALPHA, START_RANK, stretch


def find_targets(model: nn.Module, targets: Sequence[str] = ()) -> list[str]:
    """Paths of the linear layers that `targets` name, in the model's order.

    Args:
        model: a Transformers model, or any module whose linear layers are named by `targets`.
        targets: names, paths, patterns or `all-linear`; empty for query and value of a known family.

    Raises:
        RankwiseError: the family is unknown and no targets are given, or a target names no linear layer.
    """
    _, heads = body_and_heads(model)
    linear = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D | LoRALinear)
        and not any(name == h or name.startswith(f"{h}.") for h in heads)
    }
    if not targets:
        family = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
        if family not in FAMILIES:
            raise RankwiseError(
                f"Query and value of a {family} model are not known. Name the layers to adapt with --targets; "
                f"it has: {', '.join(sorted({name.rsplit('.', 1)[-1] for name in linear}))}."
            )
        targets = FAMILIES[family].query_value
    chosen: set[str] = set()
    for target in targets:
        if target == "all-linear":
            found = list(linear)
        else:
            pattern = _compile(target)
            found = [name for name in linear if pattern.fullmatch(name)]
        if not found:
            known = {name.rsplit(".", 1)[-1] for name in linear} | {"all-linear"}
            raise RankwiseError(
                f"No linear layer of this model is called {target!r}.{nearest(target, known)}"
            )
        chosen.update(found)
    return [name for name in linear if name in chosen]


def _compile(target: str) -> re.Pattern[str]:
    try:
        return re.compile(rf"(.*\.)?({target})")
    except re.error as error:
        raise RankwiseError(
            f"The target {target!r} is neither a layer's name nor a pattern: {error}."
        ) from None


def adapt(
    model: nn.Module,
    rank: int | None = None,
    *,
    alpha: float | None = None,
    rslora: bool = False,
    dropout: float = 0.0,
    targets: Sequence[str] = (),
    also_train: Sequence[str] = (),
    seed: int = 0,
) -> nn.Module:
    """Puts LoRA layers into a model, in place; trains them, its head and `also_train`, and freezes the rest.

    Args:
        model: a Transformers model (or any module, with `targets`).
        rank: r of every adapted layer, for good. None: each layer finds its own while it trains (`rank.RankController`), which `fit` and
            `RankCallback` see to.
        alpha: s = alpha/r, or alpha/√r with `rslora`. Default 2·rank; where ranks are found see `rank.ALPHA`.
        rslora: scale by alpha/√r (Kalajdzievski 2023).
        dropout: probability on the adapters' input while training.
        targets: see `find_targets`. Default: query and value; all linear layers where ranks are found.
        also_train: paths of further modules trained and saved whole (BERT's pooler where it is new).
        seed: draws A.

    Returns:
        The same model.

    Raises:
        RankwiseError: a target that isn't there, or a rank larger than a layer.
    """
    if lora_layers(model):
        raise RankwiseError(
            "This model has LoRA layers already. Load the base model again, or merge them first."
        )
    if rank is None:
        return adapt_freely(
            model, dropout=dropout, alpha=alpha, targets=targets, also_train=also_train, seed=seed
        )
    paths = _not_whole(find_targets(model, targets), also_train)
    scaling = scale(rank, alpha, rslora)
    insert(model, dict.fromkeys(paths, rank), dict.fromkeys(paths, scaling), dropout=dropout, seed=seed)
    train_beside(model, [*body_and_heads(model)[1], *also_train])
    return model


def adapt_freely(
    model: nn.Module,
    start: int | None = None,
    *,
    alpha: float | None = None,
    dropout: float = 0.0,
    targets: Sequence[str] = (),
    also_train: Sequence[str] = (),
    seed: int = 0,
) -> nn.Module:
    """The same with ranks that are found: every layer starts at `start` (`rank.START_RANK`, or as high as it can) and is watched from
    then on. What is found hardly depends on it. Without `targets` all linear layers of the body take part.
    """
    paths = _not_whole(_generous(model, targets), also_train)
    most = {path: min(model.get_submodule(path).weight.shape) for path in paths}  # pyright: ignore[reportArgumentType]
    ranks = {path: min(START_RANK, most[path]) if start is None else start for path in paths}
    start = START_RANK if start is None else start
    scaling = (ALPHA if alpha is None else alpha) / start
    insert(model, ranks, dict.fromkeys(paths, scaling), dropout=dropout, seed=seed)
    train_beside(model, [*body_and_heads(model)[1], *also_train])
    for layer in lora_layers(model).values():
        layer.watch()
    return model


@torch.no_grad()
def make_room(model: nn.Module, *, dropout: float = 0.0, targets: Sequence[str] = (), seed: int = 0) -> None:
    """Lets the layers of a model that has adapters start generous again: those below the start rank get components that change nothing,
    those without any a layer of their own. What is trained besides stays trained.
    """
    trained, adapted = [p for p in model.parameters() if p.requires_grad], lora_layers(model)
    paths = _not_whole(_generous(model, targets), trained_beside(model))
    most = {path: min(START_RANK, *model.get_submodule(path).weight.shape) for path in paths}  # pyright: ignore[reportGeneralTypeIssues]
    missing = {path: rank for path, rank in most.items() if path not in adapted}
    scaling = ALPHA / START_RANK
    insert(model, missing, dict.fromkeys(missing, scaling), dropout=dropout, seed=seed)
    for parameter in trained:
        parameter.requires_grad_(True)
    generator = torch.Generator().manual_seed(seed + 1)
    for path, layer in adapted.items():
        added = max(0, most.get(path, 0) - layer.rank)
        c = stretch(layer.rank, layer.rank + added)
        A = draw_A(added, layer.in_features, generator).to(layer.lora_A)
        B = layer.lora_B.new_zeros(layer.out_features, added)
        layer.resize(torch.cat([c * layer.lora_A, A]), torch.cat([c * layer.lora_B, B], dim=1))


def _generous(model: nn.Module, targets: Sequence[str]) -> list[str]:
    """Where ranks are found: the targets, or all linear layers of a family that is known."""
    known = find_targets(model, targets)  # refuses others
    return known if targets else find_targets(model, ["all-linear"])


def _not_whole(paths: Sequence[str], whole: Sequence[str]) -> list[str]:
    """Those outside modules that are trained whole (BERT's pooler where it is new)."""
    return [path for path in paths if not any(path == w or path.startswith(f"{w}.") for w in whole)]


def scale(rank: int, alpha: float | None, rslora: bool) -> float:
    """s = alpha/r, or alpha/√r (rank-stabilised); alpha is 2·rank where it isn't given."""
    alpha = 2.0 * rank if alpha is None else alpha
    return alpha / rank**0.5 if rslora else alpha / rank


def insert(
    model: nn.Module, ranks: dict[str, int], scaling: dict[str, float], *, dropout: float = 0.0, seed: int = 0
) -> None:
    """Replaces the linear layers at the paths of `ranks` by LoRA layers of that rank, and freezes everything else."""
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for path, rank in ranks.items():
        parent, name = _parent(model, path)
        base = getattr(parent, name)
        try:
            layer = LoRALinear(
                base,
                rank,
                scaling=scaling[path],
                fan_in_fan_out=isinstance(base, Conv1D),
                dropout=dropout,
                generator=generator,
            )
        except ValueError as error:
            raise RankwiseError(f"{path}: {error}.") from None
        layer.train(base.training)
        setattr(parent, name, layer)


def train_beside(model: nn.Module, paths: Iterable[str]) -> None:
    """Makes whole modules trainable beside the adapters, in float32 whatever the base's dtype.

    Their input is cast to their own dtype on the way in, so that a float32 head stands on a bfloat16 body.
    """
    for path in dict.fromkeys(paths):
        module = model.get_submodule(path)
        for parameter in module.parameters():
            parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))
            parameter.requires_grad_(True)
        module.register_forward_pre_hook(_cast_input)


def _cast_input(module: nn.Module, args: tuple[object, ...]) -> tuple[object, ...]:
    dtype = next(module.parameters()).dtype
    return tuple(a.to(dtype) if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in args)


def trained_beside(model: nn.Module) -> list[str]:
    """Paths of the smallest set of modules that hold every trained parameter outside the LoRA layers."""
    adapters = lora_layers(model)
    trained = [
        name
        for name, p in model.named_parameters()
        if p.requires_grad and name.rsplit(".", 1)[0] not in adapters
    ]
    heads = body_and_heads(model)[1]
    paths = []
    for name in trained:
        whole = next((h for h in heads if name.startswith(f"{h}.")), name.rsplit(".", 1)[0])
        paths.append(whole)
    return list(dict.fromkeys(paths))


def _parent(model: nn.Module, path: str) -> tuple[nn.Module, str]:
    parent, _, name = path.rpartition(".")
    return model.get_submodule(parent), name
