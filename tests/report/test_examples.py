"""Rows on which methods disagree."""

import pyarrow as pa
import pyarrow.parquet as pq

from planted import N, finished, request
from rankwise.config import DataOptions
from rankwise.config_json import to_json
from rankwise.report import collect


def test_disagreements_come_hardest_first(tmp_path):
    """Row 7: only full is right. Row 3: all but one are right. Row 0: nobody is, so nobody disagrees."""
    for seed in range(2):
        finished(tmp_path, method="full", seed=seed, wrong=(0, 3))
        finished(tmp_path, method="lora", seed=seed, wrong=(0, 7))
        finished(tmp_path, method="lora:rank=2", seed=seed, wrong=(0, 7))
    first, second = collect(tmp_path).examples
    assert (first.idx, first.label, first.text) == (7, "positive", None)
    assert first.right == {"full": (2, 2), "lora": (0, 2), "lora:rank=2": (0, 2)}
    assert first.predicted == {"full": "positive", "lora": "negative", "lora:rank=2": "negative"}
    assert second.idx == 3


def test_texts_come_from_the_tasks_own_rows(tmp_path):
    (tmp_path / "glue" / "sst2").mkdir(parents=True)
    columns = {
        "sentence": [f"row {i}" for i in range(N)],
        "label": [i % 2 for i in range(N)],
        "idx": list(range(N)),
    }
    pq.write_table(pa.table(columns), tmp_path / "glue" / "sst2" / "validation.parquet")
    out = tmp_path / "out"
    for method, wrong in (("full", (5,)), ("lora", (6,))):
        folder = finished(out, method=method, wrong=wrong)
        resolved = to_json(request("sst2", method, 0)) | {
            "data": to_json(DataOptions(data=tmp_path / "glue"))
        }
        folder.update_run_json(resolved=resolved)
    assert {example.idx: example.text for example in collect(out).examples} == {5: ("row 5",), 6: ("row 6",)}


def test_a_row_whose_label_has_changed_has_no_text(tmp_path):
    """The data there now is not what the run was scored on."""
    (tmp_path / "glue" / "sst2").mkdir(parents=True)
    columns = {"sentence": ["x"] * N, "label": [1 - i % 2 for i in range(N)], "idx": list(range(N))}
    pq.write_table(pa.table(columns), tmp_path / "glue" / "sst2" / "validation.parquet")
    for method, wrong in (("full", (5,)), ("lora", ())):
        folder = finished(tmp_path / "out", method=method, wrong=wrong)
        resolved = to_json(request("sst2", method, 0)) | {
            "data": to_json(DataOptions(data=tmp_path / "glue"))
        }
        folder.update_run_json(resolved=resolved)
    (example,) = collect(tmp_path / "out").examples
    assert example.text is None
