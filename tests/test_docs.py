"""What the README says of stored results."""

import importlib.util
from pathlib import Path

import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def rank():
    spec = importlib.util.spec_from_file_location("docs_rank", ROOT / "docs" / "rank.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_readmes_table_is_what_is_stored(rank):
    readme = (ROOT / "README.md").read_text()
    assert rank.BEGIN in readme
    assert rank.with_table(readme, rank.stored()) == readme


def test_the_table_has_the_mean_of_adaptives_seeds(rank):
    stored = pq.read_table(ROOT / "studies" / "grid.parquet").to_pylist()
    scores = [row["score"] for row in stored if (row["method"], row["task"]) == ("adaptive", "mrpc")]
    line = next(line for line in rank.table(rank.stored()).splitlines() if line.startswith("| **adaptive**"))
    assert line.split("|")[2 + rank.ORDER.index("mrpc")].strip() == f"{100 * sum(scores) / len(scores):.1f}"
