"""Checks rankwise's annotations while tests run: shapes of arrays at every call, all other types at the first calls.

jaxtyping's own import hook checks everything at every call. Training loops then take twice as long and every process starts
seconds later, for types that the type checker has seen already.
"""

import dataclasses
import functools
import inspect
import sys
import types
import typing
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any

from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeDecorHintPep673Exception
from jaxtyping import AbstractArray, jaxtyped
from torch.compiler import is_compiling

FIRST_CALLS = 20

_beartype = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a float (PEP 484)


def install(package: str) -> None:
    """Check every module of a package that is imported from now on."""
    sys.meta_path.insert(0, _Finder(package))


class _Finder(MetaPathFinder):
    def __init__(self, package: str) -> None:
        self.package = package

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if fullname.partition(".")[0] != self.package:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def run_and_check(module: types.ModuleType) -> None:
                run(module)
                _check_module(module)

            spec.loader.exec_module = run_and_check  # pyright: ignore[reportAttributeAccessIssue]
        return spec


def _check_module(module: types.ModuleType) -> None:
    own = [value for value in vars(module).values() if getattr(value, "__module__", "") == module.__name__]
    for owner in (module, *filter(inspect.isclass, own)):
        for name, value in list(vars(owner).items()):
            if isinstance(value, staticmethod | classmethod):
                setattr(owner, name, type(value)(_checked(value.__func__, module)))
            elif isinstance(value, property) and value.fget:
                setattr(owner, name, property(_checked(value.fget, module), value.fset, value.fdel))
            elif inspect.isfunction(value):
                setattr(owner, name, _checked(value, module))
    for owner in filter(inspect.isclass, own):
        if dataclasses.is_dataclass(owner) and any(map(_has_shape, owner.__annotations__.values())):
            jaxtyped(owner, typechecker=_beartype)


def _checked(function: Callable[..., Any], module: types.ModuleType) -> Callable[..., Any]:
    decorated_generator = hasattr(function, "__wrapped__") and inspect.isgeneratorfunction(
        inspect.unwrap(function)
    )
    if (
        function.__module__ != module.__name__ or decorated_generator
    ):  # a context manager isn't what it is annotated with
        return function
    try:
        annotations = typing.get_type_hints(function).values()
    except NameError:  # it names what is imported for the type checker alone
        return function
    if any(map(_has_shape, annotations)):
        return _unless_compiled(function, jaxtyped(function, typechecker=_beartype))
    return _unless_compiled(function, _at_first_calls(function)) if annotations else function


def _unless_compiled(function: Callable[..., Any], checked: Callable[..., Any]) -> Callable[..., Any]:
    """Return the checked function; where torch.compile traces it, whose tensors aren't real, call the plain one."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return (function if is_compiling() else checked)(*args, **kwargs)

    return call


def _has_shape(annotation: Any) -> bool:
    if inspect.isclass(annotation) and issubclass(annotation, AbstractArray):
        return True
    return any(map(_has_shape, typing.get_args(annotation)))


def _at_first_calls(function: Callable[..., Any]) -> Callable[..., Any]:
    left, checked = FIRST_CALLS, None

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal left, checked
        if not left:
            return function(*args, **kwargs)
        left -= 1
        if checked is None:
            try:
                typing.get_type_hints(function)
                checked = _beartype(function)
            except (BeartypeDecorHintPep673Exception, NameError):
                checked = function  # `Self` means nothing to a method on its own, nor does what only type checkers import
        return checked(*args, **kwargs)

    return call
