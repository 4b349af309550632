"""docs/reference/trainer.md is what happens."""

import pytest
import transformers

from rank import trainer_options


@pytest.mark.slow
@pytest.mark.skipif(
    not transformers.__version__.startswith("5.23."), reason="the page is about Transformers 5.23"
)
def test_the_page_on_trainers_options_is_what_happens(tmp_path):
    assert trainer_options.page(tmp_path) == trainer_options.PAGE.read_text()
