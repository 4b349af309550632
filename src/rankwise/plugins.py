"""Plug-ins: modules of other packages that add to rankwise's tables when they are imported.

A package names its module in an entry point of the group `rankwise.plugins`:

    [project.entry-points."rankwise.plugins"]
    my-method = "my_package.rankwise_method"

The module adds entries to the tables, for instance with `rankwise.runs.methods.register` and `rankwise.tasks.registry.register`. Every
function that looks a name up calls `load` first, in the command as well as in each process of a grid.
"""

from importlib.metadata import entry_points

from rankwise.errors import RankwiseError

GROUP = "rankwise.plugins"
_looked = False


def load() -> None:
    """Import every plug-in; later calls do nothing.

    Raises:
        RankwiseError: a plug-in can't be imported.
    """
    global _looked
    if _looked:
        return
    _looked = True  # first: a plug-in that looks a name up while it is imported comes here again
    for entry in entry_points(group=GROUP):
        try:
            entry.load()
        except (Exception, SystemExit) as error:
            _looked = False  # whoever asks again is told again
            what = f"{type(error).__name__}: {error}".splitlines()[0].removesuffix(": ")
            raise RankwiseError(
                f"The plug-in {entry.name} ({entry.value}) can't be imported: {what}. Repair or uninstall it."
            ) from error
