"""Each objective against PyTorch, Transformers and scikit-learn."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.utils.class_weight import compute_class_weight

import tiny
from own_tables import write
from rankwise.errors import RankwiseError
from rankwise.tasks.objectives import OBJECTIVES, MultiLabel, Objective, Regression, named, of_config
from rankwise.tasks.rows import read_rows
from rankwise.tasks.task import Task

CLASSES, LABELS, NUMBERS = (OBJECTIVES[name] for name in ("classification", "multi-label", "regression"))


def test_each_objective_has_the_loss_of_pytorch():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(7, 3, generator=generator)
    classes, several, numbers = torch.randint(3, (7,)), torch.randint(2, (7, 3)).float(), torch.randn(7)
    assert CLASSES.example_losses(logits, classes).mean().item() == pytest.approx(
        F.cross_entropy(logits, classes).item()
    )
    assert LABELS.example_losses(logits, several).mean().item() == pytest.approx(
        torch.nn.BCEWithLogitsLoss()(logits, several).item()
    )
    assert NUMBERS.example_losses(logits[:, :1], numbers).mean().item() == pytest.approx(
        torch.nn.MSELoss()(logits[:, 0], numbers).item()
    )


@pytest.mark.parametrize(
    ("objective", "labels"),
    [
        (CLASSES, np.array([0, 1])),
        (LABELS, np.array([[0, 1]], np.float32)),
        (NUMBERS, np.array([0.5], np.float32)),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_transformers_infers_the_same_problem_and_loss(objective, labels):
    """Its models fill `config.problem_type` in when they are first given labels."""
    model = tiny.classifier("bert", num_labels=1 if objective is NUMBERS else 2)
    ids = torch.tensor([[1, 4, 2]] * len(labels))
    loss = model(input_ids=ids, labels=torch.from_numpy(labels)).loss
    assert model.config.problem_type == objective.problem_type
    assert of_config(model.config) is objective
    with torch.no_grad():
        ours = objective.example_losses(model(input_ids=ids).logits, torch.from_numpy(labels)).mean()
    assert ours.item() == pytest.approx(loss.item(), abs=1e-6)


def test_predictions_have_the_form_of_the_labels():
    logits = np.array([[0.1, 2.0], [0.5, -1.0]], dtype=np.float32)
    assert CLASSES.predict(logits).tolist() == [1, 0]
    assert LABELS.predict(logits).tolist() == [[1, 1], [1, 0]]
    assert NUMBERS.predict(logits[:, :1]).tolist() == pytest.approx([0.1, 0.5])


def test_balanced_class_weights_are_scikit_learns():
    labels = np.array([0] * 12 + [1] * 3 + [2] * 5)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    assert CLASSES.class_weights("balanced", ["a", "b", "c"], labels).tolist() == pytest.approx(
        expected.tolist()
    )


def test_balanced_multi_label_weights_make_both_sides_equal():
    labels = np.array([[1, 0], [0, 0], [0, 1], [0, 1]], dtype=np.float32)
    weights = LABELS.class_weights("balanced", ["a", "b"], labels)
    assert weights.tolist() == [3.0, 1.0]
    logits = torch.zeros(4, 2)
    side = F.binary_cross_entropy_with_logits(
        logits, torch.from_numpy(labels), pos_weight=weights, reduction="none"
    )
    assert side[labels == 1].sum().item() == pytest.approx(side[labels == 0].sum().item())


def test_weights_by_name_multiply_the_loss_of_a_class():
    labels = np.array([0, 1, 1])
    weights = CLASSES.class_weights("spam=2.5", ["ham", "spam"], labels)
    assert weights.tolist() == [1.0, 2.5]
    logits = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    plain, weighted = (CLASSES.example_losses(logits, torch.from_numpy(labels), w) for w in (None, weights))
    assert (weighted / plain).tolist() == pytest.approx([1.0, 2.5, 2.5])


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("spam", "takes balanced, or weights by name such as ham=2, not 'spam'"),
        ("spa=2", "there is no class 'spa'. Did you mean 'spam'?"),
        ("spam=-1", "the weight of spam must be a number above 0, 1e-9 to 1e9; it is '-1'"),
        ("spam=x", "it is 'x'"),
        ("spam=1e300", "1e-9 to 1e9; it is '1e300'"),
        ("spam=nan", "it is 'nan'"),
    ],
)
def test_malformed_class_weights_are_refused(spec, says):
    with pytest.raises(RankwiseError, match=says):
        CLASSES.class_weights(spec, ["ham", "spam"], np.array([0, 1]))


def test_class_weights_need_classes_with_rows():
    with pytest.raises(RankwiseError, match="this is regression"):
        NUMBERS.class_weights("balanced", ["price"], np.array([0.5], np.float32))
    with pytest.raises(RankwiseError, match="no weight for 'b': no training row has it"):
        CLASSES.class_weights("balanced", ["a", "b"], np.array([0, 0]))
    with pytest.raises(RankwiseError, match="no weight for 'a': every training row has it"):
        LABELS.class_weights("balanced", ["a", "b"], np.array([[1, 0], [1, 1]], np.float32))


class Unbalanced(MultiLabel):
    """An objective as somebody else might add it, which says nothing about balance."""

    name = "unbalanced"
    _balanced = Objective._balanced


def test_an_objective_without_balanced_weights_says_so():
    labels = np.array([[1, 0], [0, 1]], np.float32)
    with pytest.raises(RankwiseError, match="can't be balanced for unbalanced. Give weights by name"):
        Unbalanced().class_weights("balanced", ["a", "b"], labels)
    assert Unbalanced().class_weights("b=2", ["a", "b"], labels).tolist() == [1.0, 2.0]


class Ordinal(Regression):
    """Numbers whose prediction is a whole one: an objective as somebody else might add it."""

    name = "ordinal"

    def predict(self, logits):
        return logits[:, 0].round().astype(np.float32)


def test_an_objective_can_be_added(tmp_path, monkeypatch):
    monkeypatch.setitem(OBJECTIVES, "ordinal", Ordinal())
    file = write(tmp_path / "t.csv", "text,stars\na,1\nb,5\n")
    task = Task("t", "text", None, "stars", ("stars",), ("pearson",), "", problem="ordinal")
    rows, _ = read_rows(file, task)
    assert rows.labels.tolist() == [1, 5]
    assert OBJECTIVES["ordinal"].score(("pearson",), rows.labels, np.array([[1.4], [4.6]])) == {
        "pearson": 1.0
    }


def test_a_misspelt_problem_gets_the_nearest():
    with pytest.raises(RankwiseError, match="no problem 'regresion'. Did you mean 'regression'?"):
        named("regresion")
