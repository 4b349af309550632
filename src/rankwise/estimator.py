"""A classifier of texts with scikit-learn's interface: `fit`, `predict`, `predict_proba`, `score`, for its pipelines and searches.

It is imported when `rankwise.TextClassifier` is first used: `import rankwise` imports no scikit-learn.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Self, cast

import numpy as np
import torch
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_consistent_length, check_is_fitted, column_or_1d
from transformers import PreTrainedModel

from rankwise import api, hardware
from rankwise.adapters.load import name_outputs
from rankwise.config import ModelOptions, RunConfig, TrainOptions
from rankwise.models import families, loading
from rankwise.runs import methods, prepare, recipes
from rankwise.tasks.labels import default_names


class TextClassifier(ClassifierMixin, BaseEstimator):
    """A pretrained model that is fine-tuned to tell classes of texts apart.

    Args:
        model: `minilm`, a Hugging Face name, or a folder.
        method: `adaptive` (each layer's rank is found in training), `lora`, `lora:rank=4,targets=all-linear`, `full`, `head` or `bitfit`.
        epochs: passes over the training rows. Default for this and the next two: the recipe's.
        batch_size: rows in each optimizer step.
        lr: peak learning rate.
        class_weight: `balanced`, or class → its weight in the training loss.
        max_length: tokens a text is truncated to. Default: the model's own limit, 512 at most.
        device: `auto`, `cpu`, `cuda` …
        threads: CPU threads of this process. Default: PyTorch's own number.
        random_state: seed of the new head, the adapter, the order of rows, and dropout.

    Attributes:
        classes_: of `y`, sorted.
        model_: the trained Transformers model; `rankwise.save(self.model_, folder, tokenizer=self.tokenizer_)` keeps its adapter.
        tokenizer_: the model's.
        result_: what `rankwise.fit` returned: steps, notes, rank decisions.
    """

    def __init__(
        self,
        model: str = "minilm",
        *,
        method: str = "adaptive",
        epochs: float | None = None,
        batch_size: int | None = None,
        lr: float | None = None,
        class_weight: str | Mapping[Any, float] | None = None,
        max_length: int | None = None,
        device: str = "auto",
        threads: int | None = None,
        random_state: int = 0,
    ) -> None:
        self.model = model
        self.method = method
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.class_weight = class_weight
        self.max_length = max_length
        self.device = device
        self.threads = threads
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> Self:
        """Fine-tune the model.

        Args:
            X: texts, one a row.
            y: their classes, two or more.

        Raises:
            ValueError: X holds something else than texts, or y something else than classes.
            RankwiseError: the model can't be loaded, a setting is out of range, or training fails.
        """
        texts, y = _texts(X), column_or_1d(_not_missing(y), warn=True)
        check_consistent_length(texts, y)
        check_classification_targets(y)
        self.classes_, ids = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"y has 1 class ({self.classes_[0]!r}); a classifier takes 2 classes or more.")
        name, config = prepare.resolve(self._config())
        method = methods.named(name)
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        device = hardware.choose_device(self.device)
        dtype = hardware.choose_dtype("auto", device)[0] if method.frozen_base else torch.float32
        source = loading.locate(self.model, self.max_length)
        names = default_names(len(self.classes_))
        model, found = loading.load(source, names, dtype=dtype, seed=self.random_state)
        if method.prepare(model, config, list(found.modules), None) is not None:
            raise ValueError(f"method={self.method!r} is one of PEFT's; they are for `rankwise train`.")
        cast(Any, model).to(device)
        lr = recipes.resolve_lr(config, name, families.width(source.config)).value
        self.result_ = api.fit(
            model,
            source.tokenizer,
            [{"text": text, "label": int(i)} for text, i in zip(texts, ids, strict=True)],
            options=replace(config.train, lr=lr),
            seed=self.random_state,
            max_length=source.max_length,
        )
        name_outputs(model, [str(one) for one in self.classes_])
        self.model_: PreTrainedModel = model
        self.tokenizer_, self._max_length = source.tokenizer, source.max_length
        return self

    def _config(self) -> RunConfig:
        train = TrainOptions(
            epochs=self.epochs, batch_size=self.batch_size, lr=self.lr, class_weights=self._weights()
        )
        model = ModelOptions(device=self.device, threads=self.threads)
        return RunConfig(method=self.method, seed=self.random_state, train=train, model=model)

    def _weights(self) -> str | None:
        """Return the class weights as `TrainOptions` takes them, by the outputs' names in training."""
        if self.class_weight is None or isinstance(self.class_weight, str):
            return self.class_weight
        known = dict(self.class_weight)
        unknown = [one for one in known if one not in self.classes_]
        if unknown:
            raise ValueError(f"class_weight has {unknown[0]!r}, which isn't among the classes of y.")
        weights = enumerate(known.get(one, 1.0) for one in self.classes_.tolist())
        return ",".join(f"LABEL_{i}={weight}" for i, weight in weights)

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the probability of each class, [rows, classes], in the order of `classes_`."""
        check_is_fitted(self)
        rows = [{"text": text} for text in _texts(X)]
        logits = api.predict(self.model_, self.tokenizer_, rows, max_length=self._max_length)
        return softmax(logits, axis=1)

    def predict(self, X: Any) -> np.ndarray:
        """Return the likeliest class of each text."""
        likeliest = self.predict_proba(X).argmax(axis=1)
        return self.classes_[likeliest]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string, tags.input_tags.one_d_array, tags.input_tags.two_d_array = True, True, False
        return tags


def _texts(X: Any) -> list[str]:
    """Return texts as a list.

    Raises:
        ValueError: something else than a sequence of them.
    """
    if isinstance(X, str):
        raise ValueError("X is one text. Give a list of texts.")
    if getattr(X, "ndim", 1) == 2 and X.shape[1] == 1:
        X = np.asarray(X)[:, 0]
    if getattr(X, "ndim", 1) != 1:
        raise ValueError(f"X has {X.ndim} dimensions (shape {tuple(X.shape)}); it must be texts, one a row.")
    texts: Sequence[Any] = list(X)
    if not texts:
        raise ValueError("Found array with 0 sample(s): X holds no text.")
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"X holds {text!r:.40} in row {row}, not a text.")
    return [str(text) for text in texts]


def _not_missing(y: Any) -> Any:
    """Return y.

    Raises:
        ValueError: it isn't there, or a class is missing.
    """
    if y is None:
        raise ValueError("requires y to be passed, but the target y is None: give the classes of the texts.")
    values = np.asarray(y, dtype=object).ravel()
    odd = next(
        (i for i, one in enumerate(values) if one is None or one != one or one in (np.inf, -np.inf)), None
    )
    if odd is not None:
        raise ValueError(
            f"Input y contains {'infinity' if values[odd] in (np.inf, -np.inf) else 'NaN'}: row {odd} has no class."
        )
    return y
