"""What the report's tests share: a planted grid, planted decisions, and what a pipe gets to read."""

from tempfile import TemporaryFile

from planted import decide, finished
from rankwise.report import collect, show
from rankwise.run_folder import RunFolder, write_grid

QUERY, VALUE = "roberta.encoder.layer.4.attention.self.query", "roberta.encoder.layer.4.attention.self.value"
START = {"step": 0, "kind": "start", "accepted": True, "ranks": {QUERY: 16, VALUE: 16}}
PRUNED = {
    "step": 820,
    "kind": "prune",
    "accepted": True,
    "ranks": {QUERY: 16, VALUE: 3},
    "changes": {VALUE: [16, 3]},
    "text": "step 820: value, layer 4: 16 → 3; held-out loss without the 13: +0.0004 ± 0.0011",
}
REJECTED = {
    "step": 900,
    "kind": "prune",
    "accepted": False,
    "ranks": {QUERY: 16, VALUE: 3},
    "changes": {QUERY: [16, 8]},
    "evidence": {"loss_increase": 0.01, "error": 0.002, "rows": 100},
}


def grid(out, *, seeds=3, tasks=("sst2", "rte"), n=200, better=0, worse=20, **entries):
    """Full is wrong on about 40 of 200 rows, `lora` on `worse` more, `lora:rank=2` on `better` fewer; a seed shifts all alike."""
    for task in tasks:
        for seed in range(seeds):
            for method, wrong in (("full", 40), ("lora", 40 + worse), ("lora:rank=2", 40 - better)):
                extra = (seed + 1) * (method == "lora")  # so that differences have a spread
                finished(out, task, method, seed, n=n, wrong=range(wrong + seed + extra), **entries)
    write_grid(out, {"tasks": list(tasks), "methods": ["full", "lora", "lora:rank=2"], "seeds": seeds})


def full_document(out):
    """A planted grid with curves, memory by kind and rank decisions."""
    kinds = {
        "weights": 90.0,
        "gradients": 20.0,
        "optimizer": 40.0,
        "activations": 30.0,
        "batch": 1.0,
        "workspace": 2.0,
    }
    grid(out, model="roberta-base", peak_memory_mb={"total": 183.0, **kinds})
    for folder in sorted(out.glob("*.lora.s?")):
        run = RunFolder(folder)
        run.append_steps([{"step": s, "loss": 1 / s, "validation": {"accuracy": 0.5}} for s in range(1, 20)])
        decide(run, START, PRUNED, REJECTED)
    return collect(out)


def row_of(document, method, task="sst2"):
    """The row of a task and method."""
    (row,) = [row for row in document.rows if (row.task, row.method) == (task, method)]
    return row


def shown(document) -> str:
    """What a file or a pipe gets to read."""
    with TemporaryFile("w+", encoding="utf-8") as stream:
        show(document, stream)
        stream.seek(0)
        return stream.read()
