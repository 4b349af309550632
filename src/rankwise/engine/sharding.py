"""Weights that the processes of a training share out: each holds a part of every layer (FSDP2, `torch.distributed.fsdp.fully_shard`).

    a layer's weights   [ part 0 │ part 1 │ … ]     one part in each process
    forward, backward   all parts are gathered before a layer is computed, and freed behind it
    its gradients       added up over the processes behind its backward; each keeps those of its part, and updates it

Where adapters are trained, the frozen weights are shared out, and the adapters stay whole. Full fine-tuning shares out all weights of the
layers, and so their gradients and moments. What is outside the layers stays whole in every process: embeddings and the head. Processes
gather together, so each of them has to run the model as often as the others (`Processes.most`).
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers.modeling_layers import GradientCheckpointingLayer

from rankwise.engine.measure import resized
from rankwise.engine.processes import Processes
from rankwise.errors import RankwiseError
from rankwise.models.families import task_type

METHODS = "lora", "adaptive", "full"
"""What trains a model whose weights are shared out."""


def shard(model: nn.Module, processes: Processes, device: torch.device) -> None:
    """Share out the weights of a model's layers over processes, and move the parts to the device.

    Args:
        model: a Transformers model, the same in all processes.
        processes: that train together.
        device: of the parts.

    Raises:
        RankwiseError: no layers are found, or the processes' weights differ.
    """
    from torch.distributed.device_mesh import init_device_mesh  # slow to import
    from torch.distributed.fsdp import fully_shard

    layers = shared_of_layers(model)
    if not layers:
        raise RankwiseError(f"The layers of {type(model).__name__} can't be told, which `shard=` needs.")
    processes.check_same("The weights", model.parameters())
    mesh = init_device_mesh(device.type, (processes.count,))
    inside = {p for shared in layers.values() for p in shared}
    whole = {p for p in model.parameters() if p not in inside}
    for layer in layers:
        sharded = fully_shard(layer, mesh=mesh, reshard_after_forward=True, ignored_params=whole)
        sharded.set_gradient_divide_factor(1.0)  # each process has its share of the mean loss: a sum, no mean
        sharded.set_force_sum_reduction_for_comms(True)
    hf = cast(Any, model)
    body = hf.get_decoder() if task_type(model) == "CAUSAL_LM" else hf.base_model
    fully_shard(body, mesh=mesh, ignored_params=whole)  # has no weights of its own: it orders the layers
    # poolers read one token of it, and nothing changes that in place
    warnings.filterwarnings("ignore", message=".*returned a view tensor", category=UserWarning)
    _follow(processes)


def shared_of_layers(model: nn.Module) -> dict[nn.Module, list[nn.Parameter]]:
    """Return the weights of each of a model's layers that `shard` shares out: the frozen ones, or all where none is frozen."""
    layers: list[nn.Module] = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    frozen = {layer: [p for p in layer.parameters() if not p.requires_grad] for layer in layers}
    return frozen if any(frozen.values()) else {layer: list(layer.parameters()) for layer in layers}


def part_bytes(parameter: nn.Parameter, count: int) -> int:
    """Return the bytes of the largest part of a weight that `count` processes share out by its first axis."""
    return -(-parameter.shape[0] // count) * (parameter.nbytes // parameter.shape[0])


def is_sharded(model: nn.Module) -> bool:
    """Return whether processes share out some of a model's weights."""
    return any(isinstance(p, DTensor) for p in model.parameters())


def own_parts(tensors: list[Tensor]) -> list[Tensor]:
    """Return tensors without those that are shared out."""
    return [t for t in tensors if not isinstance(t, DTensor)]


class Parts:
    """What this process holds of the trained weights that are shared out. Other trained weights are whole, and stand for themselves.

    Args:
        model: as `shard` left it.
    """

    def __init__(self, model: nn.Module) -> None:
        self._of: dict[nn.Parameter, nn.Parameter] = {
            p: nn.Parameter(p.to_local().detach())
            for p in model.parameters()
            if p.requires_grad and isinstance(p, DTensor)
        }
        self._parts = {*self._of.values()}

    def __bool__(self) -> bool:
        return bool(self._of)

    def __contains__(self, parameter: Any) -> bool:
        return parameter in self._parts

    @classmethod
    def imagined(cls, model: nn.Module) -> "Parts":
        """Return the parts of a model that isn't shared out, for a plan: each weight that `shard` would share out stands for its part."""
        parts = cls(model)
        shared = [p for some in shared_of_layers(model).values() for p in some if p.requires_grad]
        parts._of, parts._parts = {p: p for p in shared}, {*shared}
        return parts

    def own(self, parameter: nn.Parameter) -> nn.Parameter:
        """Return this process's part of a parameter, in the memory of the model."""
        part = self._of.get(parameter)
        if part is None or part is parameter:
            return parameter
        part.data = cast(DTensor, parameter).to_local().detach()  # before its first forward FSDP may move it
        return part

    def gradients(
        self, loss: Tensor, leaves: Sequence[nn.Parameter], processes: Processes
    ) -> tuple[Tensor | None, ...]:
        """Return the gradients of a loss: of parts added up over the processes, of what is whole this process's own.

        Args:
            loss: of a micro-batch; every process is at its own.
            leaves: what to ask gradients of.
            processes: that share the weights; the bytes that they send are counted.
        """
        kept = [leaf.grad for leaf in leaves]
        for leaf in leaves:
            leaf.grad = None
        try:
            loss.backward()
            found = [leaf.grad for leaf in leaves]
        finally:
            for leaf, gradient in zip(leaves, kept, strict=True):
                leaf.grad = gradient
        processes.bytes_gathered += sum(p.nbytes for p in self._of)
        return tuple(g.to_local() if isinstance(g, DTensor) else g for g in found)

    def whole(self, parameter: nn.Parameter, value: Tensor) -> Tensor:
        """Return what all processes have of a tensor like a parameter. All call it together.

        Args:
            parameter: of the model.
            value: this process's, in the shape of its part; returned as it is where the parameter is whole, or it is a number.
        """
        if parameter not in self._of or not value.ndim:
            return value
        like = cast(DTensor, parameter)
        value = value.to_local() if isinstance(value, DTensor) else value
        shape, stride = like.shape, like.stride()
        return DTensor.from_local(
            value, like.device_mesh, like.placements, run_check=False, shape=shape, stride=stride
        ).full_tensor()

    def cut(self, parameter: nn.Parameter, value: Tensor) -> Tensor:
        """Return this process's part of a tensor like a parameter, of which it has the whole."""
        if parameter not in self._of or not value.ndim:
            return value
        mesh = cast(DTensor, parameter).device_mesh
        rows = -(-value.shape[0] // mesh.size())
        return value[rows * mesh.get_local_rank() :][:rows].clone()


@contextlib.contextmanager
def whole(model: nn.Module, *, keep: bool) -> Iterator[None]:
    """Give a model all its weights and its own classes back inside a `with` block, on the CPU. All processes enter it together.

    Args:
        model: not to be run there.
        keep: whether this process wants them; the others help to gather.
    """
    places: list[tuple[nn.Module, str, nn.Parameter]] = []
    classes: list[tuple[nn.Module, type]] = []
    for module in model.modules():
        kind = type(module)
        if keep and kind.__name__ == f"FSDP{kind.__bases__[-1].__name__}":  # `fully_shard` made it
            classes.append((module, kind))
            module.__class__ = kind.__bases__[-1]
        for name, parameter in module._parameters.items():
            if isinstance(parameter, DTensor):
                value = parameter.full_tensor().detach().cpu()
                if keep:
                    places.append((module, name, cast(nn.Parameter, parameter)))
                    module._parameters[name] = nn.Parameter(value, parameter.requires_grad)
    try:
        yield
    finally:
        for module, name, parameter in places:
            module._parameters[name] = parameter
        for module, kind in classes:
            module.__class__ = kind


def _follow(processes: Processes) -> None:
    """Have `TensorMemory` told when gathered weights are allocated and freed, and their bytes counted in training.

    Their storage stays, and its size changes, which no operation tells.
    """
    from torch.distributed.fsdp._fully_shard import _fsdp_param, _fsdp_param_group

    for module in (_fsdp_param, _fsdp_param_group):
        for name in ("alloc_storage", "free_storage"):
            if (change := getattr(module, name, None)) is not None:
                setattr(module, name, _Followed(getattr(change, "change", change), name, processes))


class _Followed:
    """A function that changes the size of a storage, and tells it."""

    def __init__(self, change: Callable[[Tensor], None], name: str, processes: Processes) -> None:
        self.change, self.gathers, self.processes = change, name == "alloc_storage", processes

    def __call__(self, tensor: Tensor) -> None:
        self.change(tensor)
        resized("weights", tensor)
        if (
            self.gathers and torch._C._current_graph_task_id() != -1
        ):  # in a backward pass, before which forward gathered as much
            self.processes.bytes_gathered += 2 * tensor.nbytes
