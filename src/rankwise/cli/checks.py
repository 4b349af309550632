"""What `train` and `compare` check before anything slow is started: names, the model, options that need a table."""

from collections.abc import Sequence
from dataclasses import fields

from rankwise.cli.parameters import flag
from rankwise.config import LoraOptions, RunConfig
from rankwise.errors import RankwiseError
from rankwise.runs.config import CompareConfig


def check_names(names: Sequence[str], methods: Sequence[str], recipe: str) -> None:
    """Refuse an unknown task, method or recipe before anything is written or loaded."""
    from rankwise.runs import methods as known_methods
    from rankwise.runs import recipes
    from rankwise.tasks import registry

    recipes.recipe(recipe)
    for name in names:
        registry.named(name)
    for spec in methods:
        known_methods.parse(spec, LoraOptions())


def refuse_table_options(config: RunConfig | CompareConfig, command: str) -> None:
    """Refuse options of a table where none is given."""
    given = [f.name for f in fields(config.table) if getattr(config.table, f.name) is not None]
    if given:
        option = flag(given[0])
        raise RankwiseError(
            f"{option} is for a table of your own, and no file is given: rankwise {command} reviews.csv {option} …"
        )


def find_model(config: CompareConfig | RunConfig) -> str | None:
    """Refuse a model that doesn't exist; return its name, or None if the adapter to start from names it."""
    from rankwise.models import hub
    from rankwise.runs import recipes

    if config.model.from_adapter is not None and config.model.model is None:
        return None
    name = config.model.model or recipes.default_model(config)
    if name not in hub.EMBEDDED:
        hub.find(name)
    return name
