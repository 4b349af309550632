"""An adapter as an ordinary Transformers pipeline: merged into its base, then loaded like any model.

python examples/pipeline.py my-adapter merged-model
"""

import sys

from transformers import pipeline

import rankwise

adapter, merged = sys.argv[1:3]
base = sys.argv[3] if len(sys.argv) > 3 else None
rankwise.merge(adapter, merged, base=base)
classify = pipeline("text-classification", model=merged)
for text in ("a fine film", "a dull plot"):
    answer = classify(text)[0]
    print(f"{text}: {answer['label']} {answer['score']:.2f}")
