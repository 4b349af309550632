"""`rankwise.TextClassifier` in scikit-learn: its own checks where they apply to texts, a pipeline, a search, a notebook."""

import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import estimator_checks as checks
from transformers import AutoTokenizer

import rankwise
import tiny
from rankwise import TextClassifier
from rankwise.cli import main

WORDS = np.array(tiny.WORDS)
ROWS = tiny.reviews(160)
X, Y = [row["text"] for row in ROWS], [row["label"] for row in ROWS]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    return str(tiny.model_folder(tmp_path_factory.mktemp("models") / "bert"))


@pytest.fixture(scope="module")
def fitted(base) -> TextClassifier:
    return TextClassifier(base, method="lora:targets=all-linear", lr=5e-3, epochs=8, batch_size=16).fit(X, Y)


def test_it_learns_and_its_probabilities_are_those_of_its_model(fitted):
    held_out = tiny.reviews(60, seed=1)
    texts, labels = [row["text"] for row in held_out], [row["label"] for row in held_out]
    assert fitted.score(texts, labels) > 0.9
    probabilities = fitted.predict_proba(texts)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)
    assert list(fitted.predict(texts)) == [fitted.classes_[i] for i in probabilities.argmax(axis=1)]
    logits = rankwise.predict(fitted.model_, fitted.tokenizer_, held_out)
    np.testing.assert_allclose(
        np.log(probabilities[:, 1] / probabilities[:, 0]), logits[:, 1] - logits[:, 0], atol=1e-4
    )


def test_what_it_learned_is_an_adapter_for_the_commands(fitted, base, tmp_path):
    rankwise.save(fitted.model_, tmp_path / "adapter", tokenizer=fitted.tokenizer_)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    arguments = ["predict", tmp_path / "adapter", tmp_path / "rows.jsonl", "--out", tmp_path / "p.jsonl"]
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    assert stopped.value.code == 0
    said = [json.loads(line)["label"] for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert said == list(fitted.predict(X))
    assert AutoTokenizer.from_pretrained(tmp_path / "adapter")(X[0]).input_ids


def test_a_pickle_answers_alike(fitted):
    again = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(again.predict_proba(X[:9]), fitted.predict_proba(X[:9]))


def test_a_notebook_shows_it(fitted):
    shown = fitted._repr_mimebundle_()["text/html"]
    assert "TextClassifier" in shown
    assert "lora:targets=all-linear" in shown


@pytest.mark.slow
def test_it_stands_in_pipelines_and_searches(base):
    lower = FunctionTransformer(lambda texts: [text.lower() for text in texts])
    pipe = make_pipeline(lower, TextClassifier(base, method="head", batch_size=16))
    search = GridSearchCV(pipe, {"textclassifier__epochs": [1, 2]}, cv=2).fit(
        [x.upper() for x in X[:40]], Y[:40]
    )
    assert len(search.cv_results_["mean_test_score"]) == 2
    assert set(search.predict(X[:5])) <= set(Y)


@pytest.mark.parametrize(
    "y", [[3, 10] * 10, ["x=1,y", "é"] * 10, [True, False] * 10], ids=["numbers", "odd names", "truth"]
)
def test_classes_of_any_type_come_back(base, y):
    weight = {y[0]: 50.0, y[1]: 0.02}
    classifier = TextClassifier(base, method="head", epochs=6, lr=0.05, class_weight=weight).fit(X[:20], y)
    assert list(classifier.classes_) == sorted(set(y))
    assert list(classifier.predict(X[:20])) == [y[0]] * 20  # by the weights alone


@pytest.mark.parametrize(
    ("x", "y", "says"),
    [
        ("a text", ["a"], "X is one text"),
        ([["a"], ["b"]], ["a", "b"], "X holds .'a'. in row 0, not a text"),
        (["a", 3], ["a", "b"], "X holds 3 in row 1"),
        ([], [], "0 sample"),
        (["a", "b"], ["a", "a"], "1 class"),
        (["a", "b"], ["a"], "inconsistent numbers of samples"),
        (["a", "b"], [0.5, 1.7], "Unknown label type"),
        (["a", "b"], ["a", None], "contains NaN"),
        (["a", "b"], None, "y to be passed"),
        (np.zeros((2, 2)), ["a", "b"], "2 dimensions"),
    ],
)
def test_what_is_no_text_and_no_class_is_refused(base, x, y, says):
    with pytest.raises(ValueError, match=says):
        TextClassifier(base).fit(x, y)


def test_importing_rankwise_imports_no_scikit_learn():
    code = "import sys, rankwise; rankwise.RankwiseError; print('sklearn' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# ── scikit-learn's own checks ─────────────────────────────────────────────────────────────────────


class OfNumbers(TextClassifier):
    """Reads scikit-learn's numbers as texts: a word for each column, by its value. Everything else is `TextClassifier`."""

    def fit(self, X, y):
        return super().fit(_spelled(X), y)

    def predict_proba(self, X):
        checks.check_is_fitted(self)
        return super().predict_proba(_spelled(X))

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array, tags.input_tags.one_d_array = True, False
        return tags


def _spelled(X):
    if isinstance(X, list):
        X = np.array(X)
    X = np.asarray(X)
    if X.ndim != 2 or X.dtype.kind not in "fiub":
        return X
    places = np.clip(np.nan_to_num(X) * 2 + 5, 0, len(WORDS) - 1).astype(int)
    return [" ".join(WORDS[row]) or "a" for row in places]


WITHOUT_DATA = [
    checks.check_estimator_cloneable,
    checks.check_estimator_tags_renamed,
    checks.check_valid_tag_types,
    checks.check_estimator_repr,
    checks.check_no_attributes_set_in_init,
    checks.check_get_params_invariance,
    checks.check_set_params,
    checks.check_parameters_default_constructible,
    checks.check_mixin_order,
    checks.check_fit_score_takes_y,
]
WITH_DATA = [
    checks.check_estimators_unfitted,
    checks.check_estimators_overwrite_params,
    checks.check_dont_overwrite_parameters,
    checks.check_estimators_fit_returns_self,
    checks.check_estimators_pickle,
    checks.check_estimators_dtypes,
    checks.check_pipeline_consistency,
    checks.check_classifiers_one_label,
    checks.check_classifiers_classes,
    checks.check_classifiers_regression_target,
    checks.check_supervised_y_no_nan,
    checks.check_supervised_y_2d,
    checks.check_dict_unchanged,
    checks.check_fit_idempotent,
    checks.check_fit_check_is_fitted,
    checks.check_requires_y_none,
    checks.check_methods_subset_invariance,
    checks.check_methods_sample_order_invariance,
]


@pytest.mark.parametrize("check", WITHOUT_DATA, ids=lambda check: check.__name__)
def test_checks_of_the_interface(check, base):
    check("TextClassifier", OfNumbers(base, method="head", epochs=1))


@pytest.mark.slow
@pytest.mark.parametrize("check", WITH_DATA, ids=lambda check: check.__name__)
@pytest.mark.filterwarnings("ignore:A column-vector y:sklearn.exceptions.DataConversionWarning")
def test_checks_with_data(check, base):
    check("TextClassifier", OfNumbers(base, method="lora", epochs=3, lr=5e-3, threads=1))
