"""Optimizer and learning-rate schedule, from torch; biases and norms are never decayed.

Adapters are hundreds of small matrices, whose updates one by one take longer to start than to compute. So they live in a slab:

    values     [ A₀ │ B₀ │ A₁ │ B₁ │ … │ biases ]      each nn.Parameter is a view of its stretch, and keeps its identity
    gradients  [ …                              ]      likewise each parameter's .grad
    moments    [ …                              ]      the optimizer's own, as it sees one matrix and one vector
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Adam, AdamW, Optimizer

from rankwise.lora.layer import replace_value

Schedule = Literal["linear", "cosine", "constant", "knee"]
KNEE, LEFT = 0.8, 0.5
"""`knee`: this share of the steps after the rise takes the learning rate down to this share of its peak, the others to zero."""
Kind = Literal["adamw", "adam"]
BETA2 = 0.999
"""Kingma & Ba 2015, and torch's own."""
ALIGNED = 16
"""Numbers a stretch of the slab is rounded up to, so that every view begins on a cache line."""


class Update:
    """Gradients and optimizer of everything trained: add gradients up, clip, step. Adapters' steps are clipped, too (`_shares`).

    Args:
        parameters: what is trained.
        kind: AdamW (decoupled decay, Loshchilov & Hutter 2019) or Adam.
        lr: peak learning rate.
        weight_decay: of matrices; vectors aren't decayed.
        beta2: decay of the second moments.
        flat: keep values, gradients and moments in a slab each; for adapters, not for whole models, whose gradients would be
            copied once more.
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
        self._slabs: list[Slab] = []
        self.kept: dict[nn.Parameter, Tensor] = {}
        """Memory of gradients: to take it anew every step costs more than adding."""
        self._divisor: Tensor | None = None
        groups: list[dict[str, object]] = []
        for matrices, decay in ((True, weight_decay), (False, 0.0)):
            some = [p for p in self.parameters if (p.ndim >= 2) == matrices]
            if some and flat:
                self._slabs.append(Slab(some))
                some = [self._slabs[-1].values]
            if some:
                groups.append({"params": some, "weight_decay": decay})
        self.optimizer: Optimizer = {"adamw": AdamW, "adam": Adam}[kind](
            groups, lr=lr, betas=(0.9, beta2), fused=True
        )

    @torch.no_grad()
    def add(self, gradients: Sequence[Tensor | None]) -> None:
        """Adds gradients, one a parameter, to those since the last step; dense or sparse, of the parameter's dtype or a lesser one."""
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

    def clip(self, largest: float) -> float:
        """Has the next step scale the gradients down to the norm `largest` (0: leave them), and returns the norm they have."""
        whole = [s.values for s in self._slabs] or self.parameters
        norm = _norm([p.grad for p in whole if p.grad is not None])
        self._divisor = torch.clamp((norm + 1e-6) / largest, min=1.0).float() if largest > 0 else None
        return float(norm)

    def step(self, lr: float, then: Callable[[], None] | None = None) -> None:
        """One update with the gradients added up, which are forgotten after `then` has looked at them."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        shares = [(slab, slab.values.detach().clone(), self._shares(slab)) for slab in self._slabs]
        # fused Adam divides gradients by this on its way: clipping takes no pass over them of its own
        fused: Any = self.optimizer
        fused.grad_scale, self._divisor = self._divisor, None
        self.optimizer.step()
        for slab, before, share in shares:
            if share is not None:
                slab.values.data.copy_(torch.lerp(before, slab.values.data, slab.spread(share)))
        if then is not None:
            then()
        self.forget()

    def _shares(self, slab: "Slab") -> Float[Tensor, " parameters"] | None:
        """The share of its step that each parameter of a slab takes: 1 / max(1, RMS(g / √v̂)), v̂ with this step's gradient in it.

        When a training leaves its first plateau, gradients grow several times within some ten steps, and Adam's second moments still
        remember the small ones: at the rates that adapters take, steps are then too large, and can end it at chance for good
        (docs/method.md).
        Source: Adafactor's update clipping (Shazeer & Stern 2018, section 6) in AdamW (Wortsman et al. 2023, algorithm 2).
        """
        state = self.optimizer.state[slab.values]
        if not self.clipping or not state or slab.values.grad is None:
            return None  # in the first step v̂ is g²
        group = next(g for g in self.optimizer.param_groups if g["params"][0] is slab.values)
        beta2, eps = group["betas"][1], group["eps"]
        g = slab.values.grad if self._divisor is None else slab.values.grad / self._divisor
        if not group["decoupled_weight_decay"]:
            g = g.add(slab.values.detach(), alpha=group["weight_decay"])
        v = (state["exp_avg_sq"] * beta2).addcmul_(g, g, value=1.0 - beta2)
        moves = g / v.sqrt_().clamp_min_(eps)
        unbiased = (1.0 - beta2 ** (state["step"] + 1.0)).sqrt()
        rms = slab.norms(moves) * (unbiased / slab.numbers.clamp_min(1.0).sqrt())
        return 1.0 / rms.clamp_min(1.0)

    def forget(self) -> None:
        """Forgets the gradients."""
        self.optimizer.zero_grad(set_to_none=not self._slabs)

    def state(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """The optimizer's state of a parameter: moments in its shape, and the steps taken."""
        for slab in self._slabs:
            if parameter in slab.place:
                whole = self.optimizer.state[slab.values]
                return {k: slab.view(v, parameter) if v.ndim else v for k, v in whole.items()}
        return self.optimizer.state[parameter]

    @torch.no_grad()
    def load_state(self, parameter: nn.Parameter, state: dict[str, Tensor]) -> None:
        """Sets what `state` gave."""
        slab = next((s for s in self._slabs if parameter in s.place), None)
        if slab is None:
            self.optimizer.state[parameter] = {
                k: v.to(parameter.device) if v.ndim else v for k, v in state.items()
            }
            return
        whole = self.optimizer.state[slab.values]
        for key, value in state.items():
            if value.ndim:
                target = whole.setdefault(key, torch.zeros_like(slab.values))
                slab.view(target, parameter).copy_(value)
            else:
                whole[key] = value

    @torch.no_grad()
    def resize(self, new: Mapping[nn.Parameter, tuple[Tensor, dict[str, Tensor]]]) -> None:
        """Gives parameters other values, of any shape, and the optimizer state that goes with them; gradients are forgotten.

        The parameters stay the ones they are; a slab is made anew around them.
        """
        states = {p: new[p][1] if p in new else self._copy_state(p) for p in self.parameters}
        for parameter, (value, _) in new.items():
            replace_value(parameter, value)
        for i, slab in enumerate(self._slabs):
            self.optimizer.state.pop(slab.values, None)
            self._slabs[i] = Slab(list(slab.place))
            self.optimizer.param_groups[i]["params"] = [self._slabs[i].values]
        for parameter, state in states.items():
            self.load_state(parameter, state)

    def _copy_state(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        return {key: value.clone() for key, value in self.state(parameter).items()}


def add_up(tensors: Iterable[Tensor], gradients: Sequence[Tensor | None]) -> None:
    """Adds gradients, one a tensor, to what each has in `.grad`."""
    for tensor, gradient in zip(tensors, gradients, strict=True):
        if gradient is None:
            continue
        if tensor.grad is None:
            tensor.grad = gradient
        else:
            tensor.grad.add_(gradient)


def _norm(gradients: Sequence[Tensor]) -> Tensor:
    """Euclidean norm of all together, by rows of 1024 at most: all cores take part, and float32 sums don't grow too long to be exact."""
    rows = [row for g in gradients for row in _rows(g.reshape(-1))]
    return torch.linalg.vector_norm(torch.cat([torch.linalg.vector_norm(r, dim=-1) for r in rows]))


def _rows(x: Tensor) -> list[Tensor]:
    whole = x.numel() // 1024 * 1024
    return [part for part in (x[:whole].view(-1, 1024), x[whole:].view(1, -1)) if part.numel()]


class Slab:
    """Parameters in one stretch of memory: `values` is the whole of it, with `values.grad` the whole of their gradients."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.place: dict[nn.Parameter, int] = {}
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
        self._stretches = torch.diff(ends, prepend=ends.new_zeros(1))

    def norms(self, whole: Tensor) -> Float[Tensor, " parameters"]:
        """Euclidean norm of each parameter's stretch."""
        return torch.stack(torch._foreach_norm([self.view(whole, p) for p in self.place]))

    def spread(self, one_each: Float[Tensor, " parameters"]) -> Tensor:
        """A number for each parameter, over its stretch."""
        return one_each.repeat_interleave(self._stretches, output_size=self.values.numel())

    def view(self, whole: Tensor, parameter: nn.Parameter) -> Tensor:
        """The stretch of a parameter, in its shape."""
        start = self.place[parameter]
        return whole[start : start + parameter.numel()].view(parameter.shape)


def schedule_factor(
    schedule: Schedule, steps: int, warmup: float, warmup_steps: int = 0
) -> Callable[[int], float]:
    """The learning rate of step i (from 0) as a share of its peak: a linear rise, then decay to zero: linear, in a cosine, or slow and
    then fast, in two straight lines that meet at `KNEE`.

    Args:
        schedule: linear, cosine, knee, or constant, which doesn't decay.
        steps: optimizer steps of the whole run.
        warmup: share of the steps spent rising.
        warmup_steps: steps that it takes at least, though never more than a quarter of all.
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
        if schedule == "knee":
            slow = 1.0 + (LEFT - 1.0) * done / KNEE
            return slow if done <= KNEE else LEFT - LEFT * (done - KNEE) / (1.0 - KNEE)
        return 1.0

    return factor
