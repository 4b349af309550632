"""Put LoRA layers into a model, and find what is trained besides them: the classification head, and modules that are new.

Targets are named as PEFT names them: by the last part of a module's path (`query`), by a whole path, by a pattern
(`encoder.layer.[0-5].*.value`), or as `all-linear`. The last stands for every linear layer of the pretrained body, BERT's pooler
included. The head of a language model is pretrained, too: it stays frozen and gets no adapter, as in PEFT.
"""

from collections.abc import Iterable, Sequence
from typing import cast

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from rankwise.config import Preference
from rankwise.errors import RankwiseError, nearest
from rankwise.lora import names
from rankwise.lora.layer import LoRALinear, draw_A, lora_layers
from rankwise.lora.scaling import ALPHA, START_RANK, rank_change_factor, scale
from rankwise.lora.wrappers import bare
from rankwise.models.families import FAMILIES, body_and_heads, check_heads, language_head


def find_targets(model: nn.Module, targets: Sequence[str] = ()) -> list[str]:
    """Return the paths of the linear layers that `targets` name, in the model's order.

    Args:
        model: a Transformers model, or any module whose linear layers are named by `targets`.
        targets: names, paths, patterns or `all-linear`; empty for query and value of a known family.

    Raises:
        RankwiseError: the family is unknown and no targets are given, or a target names no linear layer.
    """
    heads = [*body_and_heads(model)[1], *filter(None, [language_head(model)])]
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
                f"Query and value of a {family} model are not known. Name the layers to adapt with targets=; "
                f"it has: {', '.join(sorted({name.rsplit('.', 1)[-1] for name in linear}))}."
            )
        targets = FAMILIES[family].query_value
    chosen: set[str] = set()
    for target in targets:
        found = [name for name in linear if target == "all-linear" or names.matches(target, name)]
        if not found:
            known = {name.rsplit(".", 1)[-1] for name in linear} | {"all-linear"}
            raise RankwiseError(
                f"No linear layer of this model is called {target!r}.{nearest(target, known)}"
            )
        chosen.update(found)
    return [name for name in linear if name in chosen]


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
    prefer: Preference = "accuracy",
) -> nn.Module:
    """Put LoRA layers into a model, in place; they, a classifier's head and `also_train` are trained, everything else is frozen.

    `print(rankwise.trained(model))` says what that is.

    Args:
        model: a Transformers model (or any module, with `targets`).
        rank: r of every adapted layer, which then stays. None: the rank of each layer is found in training, by `fit`, `RankCallback` or
            a `RankController`.
        alpha: s = alpha/r, or alpha/√r with `rslora`. Default: 2·rank, or `scaling.ALPHA` where ranks are found.
        rslora: scale by alpha/√r (Kalajdzievski 2023).
        dropout: probability on the adapters' input while training.
        targets: see `find_targets`. Default: query and value; all linear layers where ranks are found.
        also_train: paths of further modules trained and saved whole (BERT's pooler where it is new).
        seed: draws A.
        prefer: where ranks are found: `accuracy` prunes only what held-out rows don't miss, `size` until they do.

    Returns:
        The same model; a compiled one stays compiled.

    Raises:
        RankwiseError: the model has LoRA layers, a wrapper that can't be seen through, or a head that can't be told; a target isn't
            there; or a rank is larger than a layer.
    """
    with bare(model) as plain:
        if lora_layers(plain):
            raise RankwiseError(
                "This model has LoRA layers already. Load the base model again, or merge them first."
            )
        check_heads(plain)
        if rank is None:
            adapt_at_start_rank(
                plain,
                dropout=dropout,
                alpha=alpha,
                targets=targets,
                also_train=also_train,
                seed=seed,
                prefer=prefer,
            )
            return model
        paths = _outside(find_targets(plain, targets), also_train)
        ranks, scaling = dict.fromkeys(paths, rank), scale(rank, alpha, rslora)
        _check_ranks(plain, ranks)
        insert(plain, ranks, dict.fromkeys(paths, scaling), dropout=dropout, seed=seed)
        train_beside(plain, [*body_and_heads(plain)[1], *also_train])
    return model


def adapt_at_start_rank(
    model: nn.Module,
    start: int | None = None,
    *,
    alpha: float | None = None,
    dropout: float = 0.0,
    targets: Sequence[str] = (),
    also_train: Sequence[str] = (),
    seed: int = 0,
    prefer: Preference = "accuracy",
) -> nn.Module:
    """Put LoRA layers into a model whose ranks are to be found; they collect statistics from then on.

    Args:
        model: a Transformers model (or any module, with `targets`).
        start: rank of every layer at the start. Default: `scaling.START_RANK`, or the layer's smaller side where that is less.
        alpha: s = alpha/start. Default: `scaling.ALPHA`.
        dropout: probability on the adapters' input while training.
        targets: see `find_targets`. Default: all linear layers of the body.
        also_train: paths of further modules trained and saved whole.
        seed: draws A.
        prefer: see `adapt`.

    Returns:
        The same model.

    Raises:
        RankwiseError: a target isn't there, or `start` is larger than a layer.
    """
    paths = _outside(_adaptable(model, targets), also_train)
    most = {path: min(model.get_submodule(path).weight.shape) for path in paths}  # pyright: ignore[reportArgumentType]
    ranks = {path: min(START_RANK, most[path]) if start is None else start for path in paths}
    _check_ranks(model, ranks)
    start = START_RANK if start is None else start
    scaling = (ALPHA if alpha is None else alpha) / start
    insert(model, ranks, dict.fromkeys(paths, scaling), dropout=dropout, seed=seed)
    train_beside(model, [*body_and_heads(model)[1], *also_train])
    for layer in lora_layers(model).values():
        layer.prefer = prefer
        layer.collect_statistics()
    return model


@torch.no_grad()
def raise_to_start_rank(
    model: nn.Module, *, dropout: float = 0.0, targets: Sequence[str] = (), seed: int = 0
) -> None:
    """Bring the layers of a model that has adapters to the start rank again, in place; the function stays as it is.

    Layers below the start rank get components whose B is zero. Linear layers without an adapter get one. What is trained stays
    trained.

    Args:
        model: with LoRA layers.
        dropout: of the layers that are added.
        targets: where ranks are found; see `adapt_at_start_rank`.
        seed: draws A.
    """
    trained, adapted = [p for p in model.parameters() if p.requires_grad], lora_layers(model)
    paths = _outside(_adaptable(model, targets), trained_beside(model))
    most = {path: min(START_RANK, *model.get_submodule(path).weight.shape) for path in paths}  # pyright: ignore[reportGeneralTypeIssues]
    missing = {path: rank for path, rank in most.items() if path not in adapted}
    scaling = ALPHA / START_RANK
    insert(model, missing, dict.fromkeys(missing, scaling), dropout=dropout, seed=seed)
    for parameter in trained:
        parameter.requires_grad_(True)
    generator = torch.Generator().manual_seed(seed + 1)
    for path, layer in adapted.items():
        added = max(0, most.get(path, 0) - layer.rank)
        c = rank_change_factor(layer.rank, layer.rank + added)
        A = draw_A(added, layer.in_features, generator).to(layer.lora_A)
        B = layer.lora_B.new_zeros(layer.out_features, added)
        layer.resize(torch.cat([c * layer.lora_A, A]), torch.cat([c * layer.lora_B, B], dim=1))


def _adaptable(model: nn.Module, targets: Sequence[str]) -> list[str]:
    """Return where ranks are found: the targets, or all linear layers of a known family."""
    known = find_targets(model, targets)  # raises where the family is unknown
    return known if targets else find_targets(model, ["all-linear"])


def _check_ranks(model: nn.Module, ranks: dict[str, int]) -> None:
    """Refuse to train at ranks above a layer's smaller side, where more components don't make more updates possible."""
    for path, rank in ranks.items():
        d_in, d_out = _features(model.get_submodule(path))
        if not 1 <= rank <= min(d_in, d_out):
            raise RankwiseError(
                f"{path}: rank {rank} doesn't fit a layer of {d_in} × {d_out}: between 1 and {min(d_in, d_out)}."
            )


def _features(layer: nn.Module) -> tuple[int, int]:
    d_out, d_in = cast(torch.Tensor, layer.weight).shape
    return (d_out, d_in) if isinstance(layer, Conv1D) else (d_in, d_out)


def _outside(paths: Sequence[str], whole: Sequence[str]) -> list[str]:
    """Return the paths outside modules that are trained whole (BERT's pooler where it is new)."""
    return [path for path in paths if not any(path == w or path.startswith(f"{w}.") for w in whole)]


def insert(
    model: nn.Module, ranks: dict[str, int], scaling: dict[str, float], *, dropout: float = 0.0, seed: int = 0
) -> None:
    """Replace linear layers by LoRA layers, in place, and freeze everything else.

    Args:
        model: any module.
        ranks: path of a linear layer → its rank.
        scaling: path → s.
        dropout: probability on the adapters' input while training.
        seed: draws A, layer after layer.

    Raises:
        RankwiseError: a rank is below 1.
    """
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
    """Make whole modules trainable beside the adapters, in float32 whatever the base's dtype.

    Their input is cast to their dtype, so that a float32 head can stand on a bfloat16 body.
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


def whole_heads(model: nn.Module) -> list[str]:
    """Return the paths of the heads without LoRA layers in them."""
    adapted = lora_layers(model)
    return [
        head
        for head in body_and_heads(model)[1]
        if not any(path == head or path.startswith(f"{head}.") for path in adapted)
    ]


def trained_beside(model: nn.Module) -> list[str]:
    """Return the paths of the fewest modules that hold every trained parameter outside the LoRA layers."""
    adapters = lora_layers(model)
    trained = [
        name
        for name, p in model.named_parameters()
        if p.requires_grad and name.rsplit(".", 1)[0] not in adapters
    ]
    heads = whole_heads(model)
    paths = []
    for name in trained:
        whole = next((h for h in heads if name.startswith(f"{h}.")), name.rsplit(".", 1)[0])
        paths.append(whole)
    return list(dict.fromkeys(paths))


def trained(model: nn.Module) -> str:
    """Return what of a model is trained, in a sentence."""
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    layers = lora_layers(model).values()
    ranks = sorted({layer.rank for layer in layers})
    if not parameters:
        return "Nothing is trained."
    if not layers:
        return f"{parameters:,} of {sum(p.numel() for p in model.parameters()):,} parameters are trained."
    shown = f"{ranks[0]}" if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
    adapters = f"LoRA matrices of rank {shown} in {len(layers)} layer{'s' * (len(layers) > 1)}"
    whole = trained_beside(model)
    beside = f", and whole: {', '.join(whole)}" if whole else "; nothing else"
    return f"{parameters:,} parameters are trained: {adapters}{beside}."


def _parent(model: nn.Module, path: str) -> tuple[nn.Module, str]:
    parent, _, name = path.rpartition(".")
    return model.get_submodule(parent), name
