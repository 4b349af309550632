"""Published scores of the tasks and models in a report, as data and as sentences."""

from collections.abc import Iterable, Mapping
from typing import Any

from rankwise.runs import recipes

TaskAndModel = tuple[str, str]


def tasks_and_models(results: Iterable[Mapping[str, Any]]) -> list[TaskAndModel]:
    """List each task with each model that was trained on it, once, in the order of the runs."""
    return list(dict.fromkeys((result["task"], result["model"]) for result in results))


def scores(pairs: Iterable[TaskAndModel]) -> list[dict[str, Any]]:
    """Look up published scores by the metric that runs are scored by: `task`, `method`, `settings`, `score`, `source`."""
    return [entry for entry in _entries(pairs) if entry.pop("metric") is None]


def _entries(pairs: Iterable[TaskAndModel]) -> list[dict[str, Any]]:
    return [{"task": task, **entry} for task, model in pairs for entry in recipes.published(task, model)]


def sentences(pairs: Iterable[TaskAndModel]) -> list[str]:
    """Write the scores and their notes as sentences, each once."""
    pairs = list(pairs)
    lines: dict[str, None] = {}
    for entry in _entries(pairs):
        name = f"{entry['method']} ({entry['settings']})" if entry["settings"] else entry["method"]
        score = " ".join(filter(None, [entry["metric"], f"{entry['score']:.4g}"]))
        line = f"{entry['task']}: {name} {score} (published, full task; {entry['source']})"
        lines[line] = None
    for task, model in pairs:
        for note in recipes.published_notes(task, model):
            lines[f"{task}: {note['text']} (published, full task; {note['source']})"] = None
    return list(lines)
