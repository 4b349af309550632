"""Optimizer and learning-rate schedule, from torch; biases and norms are never decayed.

Adapters are hundreds of small matrices. Updating them one by one takes longer to start than to compute. So they live in flat buffers:

    values     [ A₀ │ B₀ │ A₁ │ B₁ │ … │ biases ]      each nn.Parameter is a view of its section, and stays the same object
    gradients  [ …                              ]      likewise each parameter's .grad
    moments    [ …                              ]      the optimizer's own, which sees one buffer for matrices and one for vectors

At the learning rates that adapters take, the update of each parameter is clipped, too. When a training leaves its first plateau,
gradients grow several times within about ten steps, and Adam's second moments still remember the small ones. Steps are then too
large, and can leave a training at chance for good (docs/method.md).
Source: Adafactor's update clipping (Shazeer & Stern 2018, section 6) in AdamW (Wortsman et al. 2023, algorithm 2).
"""

import math
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Adam, AdamW, Optimizer

from rankwise.lora.low_rank import replace_value

Schedule = Literal["linear", "cosine", "constant", "two-phase"]
FIRST_PHASE, LR_AFTER_FIRST_PHASE = 0.8, 0.5
"""`two-phase`: the share of the steps after warm-up that the first phase has, and the share of the peak learning rate left after it."""
Kind = Literal["adamw", "adam"]
BETA2 = 0.999
"""Decay of the second moments in Kingma & Ba 2015, and torch's default."""
ALIGNED = 16
"""Sections of a flat buffer are rounded up to so many numbers, so that each begins on a cache line."""


class Update:
    """Gradients and optimizer of everything that is trained: add gradients up, clip, step.

    Args:
        parameters: what is trained.
        kind: AdamW (decoupled decay, Loshchilov & Hutter 2019) or Adam.
        lr: peak learning rate.
        weight_decay: of matrices; vectors aren't decayed.
        beta2: decay of the second moments.
        flat: keep values, gradients and moments in flat buffers. For adapters; the gradients of a whole model would be copied
            once more.
        clipping: limit the update of each parameter in a flat buffer to a root mean square of the learning rate.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        kind: Kind,
        lr: float,
        weight_decay: float,
        *,
        beta2: float = BETA2,
        flat: bool = False,
        clipping: bool = True,
    ) -> None:
        self.parameters, self.flat, self.clipping = list(parameters), flat, clipping
        self._buffers: list[FlatBuffer] = []
        self.kept: dict[nn.Parameter, Tensor] = {}
        """Memory of gradients, kept between steps: allocating it anew costs more than adding to it."""
        self._divisor: Tensor | None = None
        groups: list[dict[str, object]] = []
        for matrices, decay in ((True, weight_decay), (False, 0.0)):
            some = [p for p in self.parameters if (p.ndim >= 2) == matrices]
            if some and flat:
                self._buffers.append(FlatBuffer(some))
                some = [self._buffers[-1].values]
            if some:
                groups.append({"params": some, "weight_decay": decay})
        self.optimizer: Optimizer = {"adamw": AdamW, "adam": Adam}[kind](
            groups, lr=lr, betas=(0.9, beta2), fused=True
        )

    @property
    def holders(self) -> list[nn.Parameter]:
        """What the optimizer updates, and whose `.grad` hold all gradients: the flat buffers, or the parameters."""
        return [buffer.values for buffer in self._buffers] or self.parameters

    @torch.no_grad()
    def add(self, gradients: Sequence[Tensor | None]) -> None:
        """Add gradients to those since the last step.

        Args:
            gradients: one a parameter, or None; dense or sparse, in the parameter's dtype or one of lower precision.
        """
        there: list[tuple[Tensor, Tensor]] = []
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            if gradient is None:
                continue
            if parameter.grad is not None:
                if gradient.is_sparse:
                    parameter.grad.add_(gradient)
                else:
                    there.append((parameter.grad, gradient))
                continue
            if parameter not in self.kept:
                self.kept[parameter] = torch.empty_like(parameter)
            parameter.grad = self.kept[parameter]
            if gradient.is_sparse:
                parameter.grad.zero_().add_(gradient)
            else:
                parameter.grad.copy_(gradient)
        if there:  # on a GPU one kernel
            torch._foreach_add_(*map(list, zip(*there, strict=True)))

    def clip(
        self,
        largest: float,
        parts: Container[nn.Parameter] = (),
        over_all: Callable[[Tensor], Tensor] = lambda number: number,
    ) -> float:
        """Have the next step scale all gradients down to the norm `largest`, and return the norm they have.

        Args:
            largest: Euclidean norm over everything that is trained; 0 leaves the gradients as they are.
            parts: parameters of which other processes hold the rest.
            over_all: adds up a number over the processes.
        """
        gradients = [(p in parts, p.grad) for p in self.holders if p.grad is not None]
        norm = _norm([gradient for part, gradient in gradients if not part])
        if parts:
            shared = _norm([gradient for part, gradient in gradients if part])
            norm = torch.hypot(norm, over_all(shared.square()).sqrt())
        self._divisor = torch.clamp((norm + 1e-6) / largest, min=1.0).float() if largest > 0 else None
        return float(norm)

    def step(self, lr: float, then: Callable[[], None] | None = None) -> None:
        """Update everything by the gradients added up, call `then`, and forget the gradients.

        Args:
            lr: learning rate of this step.
            then: called while the gradients are still in place.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        shares = [(b, b.values.detach().clone(), self._shares(b)) for b in self._buffers]
        # Fused Adam divides gradients by this on its way, so clipping takes no pass of its own.
        fused: Any = self.optimizer
        fused.grad_scale, self._divisor = self._divisor, None
        self.optimizer.step()
        for buffer, before, share in shares:
            if share is not None:
                buffer.values.data.copy_(torch.lerp(before, buffer.values.data, buffer.spread(share)))
        if then is not None:
            then()
        self.forget()

    def _shares(self, buffer: "FlatBuffer") -> Float[Tensor, " parameters"] | None:
        """Return the share of its step that each parameter takes: 1 / max(1, RMS(g / √v̂)).

        v̂ are the unbiased second moments with this step's gradient g in them. None leaves all steps whole.
        """
        state = self.optimizer.state[buffer.values]
        if not self.clipping or not state or buffer.values.grad is None:
            return None  # in the first step v̂ is g²
        group = next(g for g in self.optimizer.param_groups if g["params"][0] is buffer.values)
        beta2, eps = group["betas"][1], group["eps"]
        g = buffer.values.grad if self._divisor is None else buffer.values.grad / self._divisor
        if not group["decoupled_weight_decay"]:
            g = g.add(buffer.values.detach(), alpha=group["weight_decay"])
        v = (state["exp_avg_sq"] * beta2).addcmul_(g, g, value=1.0 - beta2)
        moves = g / v.sqrt_().clamp_min_(eps)
        unbiased = (1.0 - beta2 ** (state["step"] + 1.0)).sqrt()
        rms = buffer.norms(moves) * (unbiased / buffer.numbers.clamp_min(1.0).sqrt())
        return 1.0 / rms.clamp_min(1.0)

    def forget(self) -> None:
        """Forget the gradients."""
        self.optimizer.zero_grad(set_to_none=not self._buffers)

    def state(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """Return the optimizer's state of a parameter: moments in its shape, and the steps taken."""
        for buffer in self._buffers:
            if parameter in buffer.place:
                whole = self.optimizer.state[buffer.values]
                return {k: buffer.view(v, parameter) if v.ndim else v for k, v in whole.items()}
        return self.optimizer.state.get(parameter, {})

    @torch.no_grad()
    def load_state(self, parameter: nn.Parameter, state: dict[str, Tensor]) -> None:
        """Set the optimizer's state of a parameter to what `state` returned."""
        buffer = next((b for b in self._buffers if parameter in b.place), None)
        if buffer is None:
            self.optimizer.state[parameter] = {
                k: v.to(parameter.device) if v.ndim else v for k, v in state.items()
            }
            return
        whole = self.optimizer.state[buffer.values]
        for key, value in state.items():
            if value.ndim:
                target = whole.setdefault(key, torch.zeros_like(buffer.values))
                buffer.view(target, parameter).copy_(value)
            else:
                whole[key] = value

    @torch.no_grad()
    def resize(self, new: Mapping[nn.Parameter, tuple[Tensor, dict[str, Tensor]]]) -> None:
        """Give parameters new values, of any shape, and their optimizer state; forget the gradients.

        The parameters stay the same objects. Flat buffers are made anew around them.

        Args:
            new: parameter → its values, and the state as `state` returns it.
        """
        states = {p: new[p][1] if p in new else self._copy_state(p) for p in self.parameters}
        for parameter, (value, _) in new.items():
            replace_value(parameter, value)
        for i, buffer in enumerate(self._buffers):
            self.optimizer.state.pop(buffer.values, None)
            self._buffers[i] = FlatBuffer(list(buffer.place))
            self.optimizer.param_groups[i]["params"] = [self._buffers[i].values]
        for parameter, state in states.items():
            self.load_state(parameter, state)

    def _copy_state(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        return {key: value.clone() for key, value in self.state(parameter).items()}


def add_up(tensors: Iterable[Tensor], gradients: Sequence[Tensor | None]) -> None:
    """Add gradients, one a tensor or None, to what each tensor has in `.grad`."""
    for tensor, gradient in zip(tensors, gradients, strict=True):
        if gradient is None:
            continue
        if tensor.grad is None:
            tensor.grad = gradient
        else:
            tensor.grad.add_(gradient)


def _norm(gradients: Sequence[Tensor]) -> Tensor:
    """Return the Euclidean norm of all gradients together.

    It is computed by rows of at most 1024 numbers, so that all cores take part and float32 sums stay exact.
    """
    rows = [row for g in gradients for row in _rows(g.reshape(-1))]
    if not rows:
        return torch.zeros(())
    return torch.linalg.vector_norm(torch.cat([torch.linalg.vector_norm(r, dim=-1) for r in rows]))


def _rows(x: Tensor) -> list[Tensor]:
    whole = x.numel() // 1024 * 1024
    return [part for part in (x[:whole].view(-1, 1024), x[whole:].view(1, -1)) if part.numel()]


class FlatBuffer:
    """Parameters in one block of memory: `values` are all of them, and `values.grad` all of their gradients.

    Args:
        parameters: of one dtype and device; they become views of the buffer.
    """

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.place: dict[nn.Parameter, int] = {}
        """Parameter → where its section begins."""
        size = 0
        for parameter in parameters:
            self.place[parameter] = size
            size += -(-parameter.numel() // ALIGNED) * ALIGNED
        like = parameters[0]
        self.values = nn.Parameter(torch.zeros(size, dtype=like.dtype, device=like.device))
        self.values.grad = torch.zeros_like(self.values)
        for parameter in parameters:
            view = self.view(self.values.data, parameter)
            parameter.data = view.copy_(parameter.data)
            parameter.grad = self.view(self.values.grad, parameter)
        self.numbers = torch.tensor([float(p.numel()) for p in parameters], device=like.device)
        ends = torch.tensor([*list(self.place.values())[1:], size], device=like.device)
        self._sections = torch.diff(ends, prepend=ends.new_zeros(1))

    def norms(self, whole: Tensor) -> Float[Tensor, " parameters"]:
        """Return the Euclidean norm of each parameter's section of a tensor as long as the buffer."""
        return torch.stack(torch._foreach_norm([self.view(whole, p) for p in self.place]))

    def spread(self, one_each: Float[Tensor, " parameters"]) -> Tensor:
        """Repeat one number for each parameter over its section."""
        return one_each.repeat_interleave(self._sections, output_size=self.values.numel())

    def view(self, whole: Tensor, parameter: nn.Parameter) -> Tensor:
        """Return a parameter's section of a tensor as long as the buffer, in the parameter's shape."""
        start = self.place[parameter]
        return whole[start : start + parameter.numel()].view(parameter.shape)


def schedule_factor(
    schedule: Schedule, steps: int, warmup: float, warmup_steps: int = 0
) -> Callable[[int], float]:
    """Return step (from 0) → learning rate as a share of its peak.

    It rises in a line, then falls to zero: in a line, in a cosine, or in two lines, first slowly and then fast.

    Args:
        schedule: linear, cosine, two-phase, or constant, which doesn't fall.
        steps: optimizer steps of the whole run.
        warmup: share of the steps that the rise takes.
        warmup_steps: steps that it takes at least, but never more than a quarter of all.
    """
    rise = max(math.ceil(steps * warmup), min(warmup_steps, steps // 4))

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        done = min(1.0, (step - rise) / max(1, steps - rise))
        if schedule == "linear":
            return 1.0 - done
        if schedule == "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * done))
        if schedule == "two-phase":
            if done <= FIRST_PHASE:
                return 1.0 + (LR_AFTER_FIRST_PHASE - 1.0) * done / FIRST_PHASE
            return LR_AFTER_FIRST_PHASE - LR_AFTER_FIRST_PHASE * (done - FIRST_PHASE) / (1.0 - FIRST_PHASE)
        return 1.0

    return factor
