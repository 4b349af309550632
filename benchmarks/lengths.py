"""Make src/rankwise/bench/lengths.json: for each task, the rows of its training split by their number of tokens.

    python benchmarks/lengths.py --data ../shared/data/glue
    python benchmarks/lengths.py --data ../shared/data --tasks e2e gsm8k

Tokens of classifiers' tasks are those of the embedded model's WordPiece tokenizer, special tokens included, truncated at 512. RoBERTa's
vocabulary gives slightly other counts, and two more special tokens in a pair. Tokens of language models' tasks are those of the embedded
language model's tokenizer, truncated at 1,024; the labels of the rows of each length are counted, too. Other tasks keep what is stored.
"""

import argparse
import json
from collections import Counter
from pathlib import Path

import numpy as np

from rankwise.config import DataOptions, RunConfig
from rankwise.models import loading
from rankwise.models.families import LONGER, SHORT
from rankwise.tasks.encoding import encode
from rankwise.tasks.load import load_dataset

ABOUT = (
    "Rows of each task's training split by their number of tokens. Classifiers' tasks: the embedded model's WordPiece tokenizer "
    "(uncased, 30,522 pieces), special tokens included, cut at 512; qnli, mnli and qqp are samples of GLUE's own. Language "
    "models' tasks: the tokenizer of SmolLM2 (49,152 pieces), cut at 1,024, and in labels the tokens to be learned in all rows "
    "of each length. Remade by: python benchmarks/lengths.py --data FOLDER"
)
TARGET = Path(__file__).parents[1] / "src/rankwise/bench/lengths.json"
CLASSIFIERS = ("sst2", "rte", "mrpc", "qnli", "mnli", "qqp", "movies")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with one sub-folder of Parquet files a task"
    )
    parser.add_argument("--tasks", nargs="+", default=CLASSIFIERS, help="that are counted [%(default)s]")
    asked = parser.parse_args()
    stored = json.loads(TARGET.read_text(encoding="utf-8")) if TARGET.exists() else {}
    counted, labels = stored.get("tasks", {}), stored.get("labels", {})
    for task in asked.tasks:
        rows = load_dataset(RunConfig(task=task, data=DataOptions(data=asked.data))).train
        writes = rows.learned is not None
        source = loading.locate("smollm2", task_type="CAUSAL_LM") if writes else loading.locate("minilm")
        encoded = encode(rows, source.tokenizer, LONGER if writes else SHORT, None)
        counts = Counter(encoded.lengths.tolist())
        counted[task] = {str(tokens): counts[tokens] for tokens in sorted(counts)}
        mean = encoded.lengths.mean()
        print(f"{task}: {len(encoded):,} rows, {mean:.1f} tokens a row", end="")
        if writes:
            learned = np.bincount(encoded.lengths, weights=encoded.labels_a_row)
            labels[task] = {tokens: int(learned[int(tokens)]) for tokens in counted[task]}
            print(f", {encoded.labels_a_row.mean():.1f} of them to be learned", end="")
        print()
    TARGET.write_text(
        f'{{\n  "about": {json.dumps(ABOUT)},\n  "tasks": {_lines(counted)},\n  "labels": {_lines(labels)}\n}}\n',
        encoding="utf-8",
    )


def _lines(counted: dict[str, dict[str, int]]) -> str:
    lines = ",\n".join(f"    {json.dumps(task)}: {json.dumps(counts)}" for task, counts in counted.items())
    return f"{{\n{lines}\n  }}"


if __name__ == "__main__":
    main()
