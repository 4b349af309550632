"""Where a model is looked for, and what is said where there is none."""

import pytest

import tiny
from rankwise.errors import RankwiseError
from rankwise.models import hub


def test_a_folder_with_a_config_is_a_model(tmp_path):
    folder = tiny.model_folder(tmp_path / "model")
    assert hub.find(str(folder)) == str(folder)


def test_what_is_no_model_is_refused_with_what_is_there(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(RankwiseError, match=r"holds no Transformers model: .* it holds notes.txt"):
        hub.find(str(tmp_path))
    with pytest.raises(RankwiseError, match="is a file; a model is a folder"):
        hub.find(str(tmp_path / "notes.txt"))


def test_a_misspelt_name_gets_the_nearest():
    with pytest.raises(RankwiseError, match="no model 'scratch:smal'. Did you mean 'scratch:small'"):
        hub.find("scratch:smal")


def test_a_name_off_the_hub_gets_the_models_beside_it(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    folder = tiny.model_folder(tmp_path / "film-model")
    with pytest.raises(RankwiseError, match=f"no folder of that name, .* Did you mean '{folder}'"):
        hub.find(str(tmp_path / "film-modl"))
