"""Wrappers around a model or around modules inside it: which are seen through, and which are refused.

torch.compile, activation checkpointing      seen through wherever they stand; paths are those of the plain model
DistributedDataParallel, DataParallel        seen through by `save`; refused where layers are to be put in or resized, because
                                             they know the parameters that a model had when it was wrapped
FSDP, DeepSpeed                              refused: they hold the weights in another form; but for the frozen weights that
                                             `rankwise train` shares out itself
PEFT                                         seen by a `RankController` (`lora/peft_layer.py`), refused elsewhere
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

from torch import nn

from rankwise.errors import RankwiseError

TRANSPARENT = ("_orig_mod", "_checkpoint_wrapped_module")
"""Names under which `torch.compile` and activation checkpointing keep the module that they wrap."""
PARALLEL = ("DistributedDataParallel", "DataParallel")
FSDP2 = "FSDPModule"
SHARDED = ("FullyShardedDataParallel", FSDP2, "DeepSpeedEngine")
PEFTS = ("PeftModel", "BaseTunerLayer")


def inside(module: nn.Module) -> nn.Module:
    """Return the module inside wrappers that don't change what it computes."""
    while name := next((name for name in TRANSPARENT if name in module._modules), None):
        module = module.get_submodule(name)
    return module


@contextmanager
def bare(
    model: nn.Module, *, parallel: bool = False, peft: bool = False, shards: bool = False
) -> Iterator[nn.Module]:
    """Yield a model without the wrappers around it and inside it; those inside are put back afterwards.

    Args:
        model: may be wrapped.
        parallel: see through data-parallel wrappers around the whole model, too.
        peft: leave PEFT's wrapper and layers where they are.
        shards: leave FSDP2's modules, too, whose adapters may be whole.

    Raises:
        RankwiseError: there is a wrapper that can't be seen through.
    """
    plain = inside(model)
    while parallel and _is(plain, PARALLEL):
        plain = inside(plain.get_submodule("module"))
    wrapped: list[tuple[nn.Module, str, nn.Module]] = []
    try:
        for path, module in list(plain.named_modules()):
            refused = (
                *PARALLEL,
                *(() if peft else PEFTS),
                *(s for s in SHARDED if not (shards and s == FSDP2)),
            )
            if kind := _is(module, refused):
                where = f"{path} is" if path else "This model is"
                raise RankwiseError(
                    f"{where} wrapped by {kind}. Give the model itself: rankwise.adapt(model) first, then {kind}; "
                    "`rankwise.save` and `RankController` take the model inside."
                )
            for name, child in module._modules.items():
                if child is not None and inside(child) is not child:
                    wrapped.append((module, name, child))
        for parent, name, child in wrapped:
            parent._modules[name] = inside(child)
        yield plain
    finally:
        for parent, name, child in wrapped:
            if parent._modules.get(name) is inside(child):
                parent._modules[name] = child


Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def sees_through(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Give a function, whose first argument is called `model`, that model without its wrappers; see `bare`."""

    @wraps(function)
    def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        named = inspect.signature(function).bind(*args, **kwargs)
        with bare(named.arguments["model"]) as plain:
            named.arguments["model"] = plain
            return function(*named.args, **named.kwargs)

    call.__annotations__ = {**function.__annotations__, "model": nn.Module}
    return call


def _is(module: nn.Module, names: tuple[str, ...]) -> str:
    """Return the first of some class names that a module's class has or inherits from; empty where it has none."""
    kinds = {kind.__name__ for kind in type(module).__mro__}
    return next((name for name in names if name in kinds), "")
