"""Make src/rankwise/bench/lengths.json: for each task, the rows of its training split by their number of tokens.

    python benchmarks/lengths.py --data ../shared/data/glue

Tokens are those of the embedded model's WordPiece tokenizer, special tokens included, truncated at 512. RoBERTa's vocabulary
gives slightly other counts, and two more special tokens in a pair.
"""

import argparse
import json
from collections import Counter
from pathlib import Path

from rankwise.config import DataOptions, RunConfig
from rankwise.models import loading
from rankwise.tasks.encoding import encode
from rankwise.tasks.load import load_dataset

ABOUT = (
    "Rows of each task's training split by their number of tokens: the embedded model's WordPiece tokenizer (uncased, 30,522 "
    "pieces), special tokens included, cut at 512. qnli, mnli and qqp are samples of GLUE's own. Remade by: "
    "python benchmarks/lengths.py --data FOLDER"
)
TARGET = Path(__file__).parents[1] / "src/rankwise/bench/lengths.json"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with one sub-folder of Parquet files a task"
    )
    folder = parser.parse_args().data
    source = loading.locate("minilm")
    counted = {}
    for task in ("sst2", "rte", "mrpc", "qnli", "mnli", "qqp", "movies"):
        rows = load_dataset(RunConfig(task=task, data=DataOptions(data=folder))).train
        counts = Counter(encode(rows, source.tokenizer, 512, None).lengths.tolist())
        counted[task] = {str(tokens): counts[tokens] for tokens in sorted(counts)}
        print(
            f"{task}: {sum(counts.values()):,} rows, {sum(n * c for n, c in counts.items()) / len(rows.text):.1f} tokens a row"
        )
    lines = ",\n".join(f"    {json.dumps(task)}: {json.dumps(counts)}" for task, counts in counted.items())
    TARGET.write_text(
        f'{{\n  "about": {json.dumps(ABOUT)},\n  "tasks": {{\n{lines}\n  }}\n}}\n', encoding="utf-8"
    )


if __name__ == "__main__":
    main()
