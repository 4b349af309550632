"""Shapes and types in rankwise's annotations are checked wherever tests run them."""

from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeDecorHintPep673Exception
from jaxtyping import install_import_hook

# An int is a float wherever one is asked for (PEP 484).
checked = beartype(conf=BeartypeConf(is_pep484_tower=True))


def check_types(function):
    try:
        return checked(function)
    except BeartypeDecorHintPep673Exception:  # `Self` means nothing to a method on its own
        return function


install_import_hook("rankwise", "conftest.check_types")
