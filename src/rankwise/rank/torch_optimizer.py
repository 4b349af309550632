"""Torch's optimizers as the controller sees them: what of their state follows a resize, what begins anew, and which are refused.

    exp_avg, momentum_buffer, grad_avg      sums of gradients: they change basis as gradients do
    exp_avg_sq, max_exp_avg_sq, square_avg, sum      sums of squared gradients
    numbers (step, mu_product, eta …)       stay
    anything else                           unknown: all state of that parameter is forgotten, the optimizer begins it anew

State of unknown meaning that is kept at the old rank crashes, or spoils the training in silence: 8-bit moments, row and column
statistics, copies of the weights, and products of updates all have names of their own.
"""

import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import GradScaler

from rankwise.errors import RankwiseError
from rankwise.lora.low_rank import LowRankLayer, replace_value
from rankwise.rank.components import SQUARES, OptimizerState

SUMS = ("exp_avg", "momentum_buffer", "grad_avg")
"""Torch's names for optimizer state that holds sums of gradients."""
REFUSED = {
    "LBFGS": "keeps one history for all parameters together, which can't follow a change of rank",
    "SparseAdam": "takes sparse gradients only, and those of LoRA layers are dense",
    "GrokAdamW": "keeps its state outside of `optimizer.state`",
    "Lomo": "updates parameters during the backward pass, before ranks can be decided",
    "AdaLomo": "updates parameters during the backward pass, before ranks can be decided",
    "LayerWiseDummyOptimizer": "updates parameters during the backward pass, before ranks can be decided",
}
"""Class name → why a controller can't work with such an optimizer."""


class TorchOptimizer:
    """`OptimizerState` of one of torch's optimizers, or of anything that subclasses `torch.optim.Optimizer`.

    Attributes:
        optimizer: without a wrapper such as Accelerate's.
        reset: whether state has been forgotten that couldn't follow a resize.

    Args:
        optimizer: may be wrapped.
        layers: by module path; their ranks change. State that doesn't fit a new shape, or belongs to weights that were replaced, is
            forgotten before the next step.

    Raises:
        RankwiseError: the optimizer is one of `REFUSED`, or doesn't train one of the matrices.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, layers: Mapping[str, LowRankLayer] | None = None
    ) -> None:
        self.optimizer, self.layers = _unwrapped(optimizer), dict(layers or {})
        self.reset = False
        self._scale: float | None = None
        self._state_was_loaded = False
        self._followed: dict[str, tuple[Tensor, Tensor]] = {}
        names = ("lora_A", "lora_B")
        parameters = {
            f"{path}.{name}": getattr(layer, name) for path, layer in self.layers.items() for name in names
        }
        self._check(parameters)
        self._shapes = {parameter: parameter.shape for parameter in parameters.values()}
        for parameter in self._shapes:
            state = self.optimizer.state.get(parameter, {})
            if state.keys() <= {*SUMS, *SQUARES, "step"} and not follows(state, parameter):
                self._forget(parameter)
        self.optimizer.register_step_pre_hook(self._before_step)
        self.optimizer.register_load_state_dict_post_hook(self._after_load)

    @property
    def name(self) -> str:
        return type(self.optimizer).__name__

    def state(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """Return the tensors of a parameter's state; none where the state can't follow a change of basis."""
        state = self.optimizer.state.get(parameter, {})
        if not follows(state, parameter):
            return {}
        return {name: value for name, value in state.items() if isinstance(value, Tensor)}

    @torch.no_grad()
    def resize(self, new: Mapping[nn.Parameter, tuple[Tensor, dict[str, Tensor]]]) -> None:
        """Give parameters other values, of any shape, and the state that goes with them; other state is forgotten."""
        for parameter, (value, state) in new.items():
            carried = follows(self.optimizer.state.get(parameter, {}), parameter)
            replace_value(parameter, value)
            if parameter in self._shapes:
                self._shapes[parameter] = parameter.shape
            if not carried:
                self._forget(parameter)
                self.reset = True
            elif state:
                self.optimizer.state[parameter].update(state)

    def follow_layers(self) -> None:
        """Forget the state of matrices that were replaced, unless state was loaded with them, and state of another shape."""
        for path, layer in self.layers.items():
            if layer.replaced is not None and layer.replaced is not self._followed.get(path):
                self._followed[path] = layer.replaced
                if not self._state_was_loaded:
                    self._forget(layer.lora_A)
                    self._forget(layer.lora_B)
        for parameter, shape in self._shapes.items():
            if parameter.shape != shape:
                self._shapes[parameter] = parameter.shape
                if not follows(self.optimizer.state.get(parameter, {}), parameter):
                    self._forget(parameter)

    def last_scale(self) -> float | None:
        """Return the factor on the loss of the step taken since this was last asked, a `GradScaler`'s or 1.

        None where the optimizer took no step, as a `GradScaler` has it after an overflow.
        """
        scale, self._scale = self._scale, None
        return scale

    def check_weights(self) -> None:
        """Check that the layers hold the weights that are kept.

        Raises:
            RankwiseError: the optimizer is one of the schedule-free, whose training weights they hold instead.
        """
        averaged = any("z" in self.optimizer.state.get(parameter, {}) for parameter in self._shapes)
        if averaged and any(group.get("train_mode") for group in self.optimizer.param_groups):
            raise RankwiseError(
                f"{self.name} averages weights, and the model holds those that are trained. Call the optimizer's eval() before sort()."
            )

    def _check(self, parameters: Mapping[str, nn.Parameter]) -> None:
        for kind in type(self.optimizer).__mro__:
            if kind.__name__ in REFUSED:
                raise RankwiseError(
                    f"Ranks can't be found with {kind.__name__}: it {REFUSED[kind.__name__]}. Take AdamW, for example."
                )
        trained = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        missing = [name for name, p in parameters.items() if p.requires_grad and id(p) not in trained]
        if missing:
            raise RankwiseError(
                f"The optimizer ({self.name}) doesn't train {missing[0]} ({len(missing)} of {len(parameters)} LoRA matrices are missing). "
                "Make the optimizer after the layers, from the model's own parameters."
            )

    def _forget(self, parameter: nn.Parameter) -> None:
        """Have the optimizer begin the state of a parameter anew."""
        state = self.optimizer.state.pop(parameter, None)
        if state and isinstance(self.optimizer, torch.optim.Adagrad):  # makes state in its constructor alone
            value = self.optimizer.defaults["initial_accumulator_value"]
            fresh = {"step": torch.zeros_like(state["step"]), "sum": torch.full_like(parameter, value)}
            self.optimizer.state[parameter] = fresh

    def _before_step(self, *_: Any) -> None:
        self.follow_layers()
        self._state_was_loaded = False
        self._scale = _gradient_scale()

    def _after_load(self, *_: Any) -> None:
        self._state_was_loaded = True


def _gradient_scale() -> float:
    """Return the factor on the gradients' loss where a `GradScaler` takes the step, 1 otherwise.

    A scaler tells most optimizers nothing about itself, so it is looked for among the callers.
    """
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code is GradScaler.step.__code__:
            return frame.f_locals["self"].get_scale()
        frame = frame.f_back
    return 1.0


def follows(state: Mapping[str, Any], parameter: Tensor) -> bool:
    """Return whether a parameter's optimizer state has its shape and is known to follow a change of basis."""
    if state.get("square_avg") is not None and state.get("momentum_buffer") is not None:
        return False  # RMSprop's momentum sums up updates, not gradients
    return all(_follows(name, value, parameter) for name, value in state.items())


def _follows(name: str, value: Any, parameter: Tensor) -> bool:
    if value is None or isinstance(value, int | float):
        return True
    if not isinstance(value, Tensor):
        return False
    if value.ndim == 0:
        return True
    plain = type(value) in (Tensor, nn.Parameter) and value.is_floating_point()
    return plain and name in (*SUMS, *SQUARES) and value.shape == parameter.shape


def _unwrapped(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Return the optimizer inside wrappers such as Accelerate's."""
    while isinstance(inner := getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
        optimizer = inner
    return optimizer


def optimizer_state(
    optimizer: torch.optim.Optimizer | OptimizerState, layers: Mapping[str, LowRankLayer]
) -> OptimizerState:
    """Return an optimizer as a controller of these layers uses it.

    Args:
        optimizer: one of torch's, or an `OptimizerState`, which is returned as it is.
        layers: by module path.

    Raises:
        RankwiseError: it is neither, or `TorchOptimizer` refuses it.
    """
    if isinstance(optimizer, torch.optim.Optimizer):
        return TorchOptimizer(optimizer, layers)
    if not isinstance(optimizer, OptimizerState):
        raise RankwiseError(
            f"Ranks can't be found with a {type(optimizer).__name__}: it is neither one of torch's optimizers nor an OptimizerState."
        )
    return optimizer
