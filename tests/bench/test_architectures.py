"""Shipped architectures have the size of the published models."""

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from rankwise.bench import architectures
from rankwise.bench.config import BenchConfig


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("minilm", 22_713_216 + 2 * 385),
        ("bert-base-uncased", 109_483_778),
        ("roberta-base", 124_647_170),
        ("FacebookAI/roberta-large", 355_361_794),
        ("distilbert-base-uncased", 66_955_010),
        ("electra-base-discriminator", 109_483_778),
        ("deberta-v3-base", 184_423_682),
        ("modernbert-base", 149_606_402),
        ("gpt2", 124_439_808 + 2 * 768),
        ("opt-125m", 125_239_296 + 2 * 768),
        ("Qwen/Qwen2.5-0.5B", 494_032_768 + 2 * 896),
        ("smollm2", 134_515_008 + 2 * 576),
        ("meta-llama/Llama-3.1-8B", 8_030_261_248 - 128_256 * 4096 + 2 * 4096),
    ],
)
def test_shipped_architectures_have_the_published_number_of_parameters(name, parameters):
    config = architectures.model_config(BenchConfig(random_weights=name))
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config)
    assert sum(p.numel() for p in model.parameters()) == parameters
