"""Models that are compiled or wrapped, whole or in part."""

import pytest
import torch
import transformers as hf
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

import rankwise
import tiny
from rankwise.errors import RankwiseError
from rankwise.lora.layer import lora_layers
from rankwise.rank.controller import RankController

IDS = torch.tensor([[1, 4, 8, 6, 2], [1, 5, 9, 7, 2]])


def compiled(model):
    return torch.compile(model, backend="eager")


def encoder_compiled(model):
    model.bert.encoder = compiled(model.bert.encoder)
    return model


def head_compiled(model):
    model.classifier = compiled(model.classifier)
    return model


WRAPPERS = [compiled, encoder_compiled, head_compiled]


def trained(model):
    for layer in lora_layers(model).values():
        nn.init.normal_(layer.lora_B, std=0.1)
    return model.eval()


@pytest.mark.parametrize("first", ["wrap", "adapt"])
@pytest.mark.parametrize("wrap", [*WRAPPERS, nn.DataParallel])
def test_what_is_saved_of_a_wrapped_model_loads_in_peft(wrap, first, tmp_path):
    tiny.model_folder(tmp_path / "base")
    base = hf.AutoModelForSequenceClassification.from_pretrained
    model = base(tmp_path / "base", num_labels=2)
    if first == "wrap" and wrap is nn.DataParallel:
        with pytest.raises(RankwiseError, match="wrapped by DataParallel"):
            rankwise.adapt(wrap(model), 2)
        return
    plain = model
    model = rankwise.adapt(wrap(model), 2) if first == "wrap" else wrap(rankwise.adapt(model, 2))
    trained(plain)
    rankwise.save(model, tmp_path / "adapter")
    theirs = PeftModel.from_pretrained(base(tmp_path / "base", num_labels=2), tmp_path / "adapter").eval()
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        expected = plain(IDS).logits
        torch.testing.assert_close(theirs(IDS).logits, expected, atol=1e-5, rtol=1e-5)
    assert (type(plain.bert.encoder).__name__ == "OptimizedModule") == (wrap is encoder_compiled)


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_a_controller_names_the_layers_of_a_compiled_model_as_they_are(wrap):
    model = rankwise.adapt(tiny.classifier("bert"))
    expected = list(lora_layers(model))
    model = wrap(model)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    controller = RankController(model, lambda: torch.zeros(2), 10, optimizer)
    assert list(controller.layers) == expected
    controller.sort()


def test_a_controller_refuses_data_parallel_models():
    model = nn.DataParallel(rankwise.adapt(tiny.classifier("bert")))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(RankwiseError, match="wrapped by DataParallel"):
        RankController(model, lambda: torch.zeros(2), 10, optimizer)


def test_a_model_that_peft_has_wrapped_is_refused():
    model = get_peft_model(tiny.classifier("bert"), LoraConfig(target_modules=["query"]))
    with pytest.raises(RankwiseError, match="wrapped by PeftModel"):
        rankwise.adapt(model, 2)
