"""What a model is trained for: tasks by name, or a table of one's own, as rows to train and to evaluate on."""

from rankwise.tasks.custom import load_dataset_split
from rankwise.tasks.load import load, load_split
from rankwise.tasks.registry import HUB, MOVIES, TASKS, Task, named
from rankwise.tasks.rows import all_integers, read_rows
from rankwise.tasks.splits import Dataset, stratified_split

__all__ = [
    "HUB",
    "MOVIES",
    "TASKS",
    "Dataset",
    "Task",
    "all_integers",
    "load",
    "load_dataset_split",
    "load_split",
    "named",
    "read_rows",
    "stratified_split",
]
