"""Frozen weights in 8 or 4 bits, by bitsandbytes, under LoRA layers that stay in float32 (QLoRA).

    W [d_out, d_in] ─► blocks of one scale each ─► 8-bit dynamic or 4-bit NormalFloat ─► W again, layer by layer, when it is read

A quantized weight is a tensor of W's shape that holds the packed form. A linear layer dequantizes it for its product and frees W at once,
in forward and again in backward. Any other operation sees the dequantized W; one that would
change it in place is refused. Source: Dettmers et al. 2022 (arXiv:2110.02861) for 8 bits,
Dettmers et al. 2023 (arXiv:2305.14314) for 4 bits.
"""

import copy
import logging
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from rankwise.errors import RankwiseError
from rankwise.lora.layer import LoRALinear
from rankwise.models.families import body_and_heads

BLOCK = {8: 256, 4: 64}
"""Bits → entries that share a scale."""
DEVICES = ("cpu", "cuda")


def check(device: torch.device) -> None:
    """Check that weights can be quantized on a device and in this environment.

    Raises:
        RankwiseError: the device has no such kernels, or bitsandbytes is missing.
    """
    if device.type not in DEVICES:
        raise RankwiseError(
            f"base_bits= works on {' and '.join(DEVICES)}, not on {device.type}. Leave it out."
        )
    _bitsandbytes()


def _bitsandbytes() -> Any:
    try:
        with _quiet():
            import bitsandbytes.functional  # pyright: ignore[reportMissingImports]  # an extra
    except ImportError:
        raise RankwiseError(
            "base_bits= needs bitsandbytes. Install it: pip install 'rankwise[quantized]'."
        ) from None
    return bitsandbytes.functional


def keep_gradients(model: nn.Module) -> None:
    """Have bitsandbytes' own 4-bit layers, as Transformers puts them in, keep their weights in the form whose products have gradients.

    On CPUs with AVX512-BF16 bitsandbytes packs a weight anew when its layer is first evaluated. From then on no gradient goes through the
    layer, in training either, and nothing says so (bitsandbytes 0.50, `Linear4bit.forward` and `matmul_4bit`).
    """
    for each in model.modules():
        module = cast(Any, each)
        if getattr(module, "support_avx512bf16_for_cpu", False):
            module.support_avx512bf16_for_cpu = False
            if getattr(getattr(module.weight, "quant_state", None), "packing_format_for_cpu", False):
                module.state_dict()  # unpacks the weight


@contextmanager
def _quiet():
    """Silence bitsandbytes' notes on faster kernels that could be fetched."""
    logger = logging.getLogger("bitsandbytes")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


class QuantizedWeight(Tensor):
    """A weight in packed form; its shape and dtype are the weight's.

    Attributes:
        packed: uint8.
        state: bitsandbytes' scales and code.
        bits: 8 or 4.
    """

    packed: Tensor
    state: Any
    bits: int

    @staticmethod
    def __new__(cls, packed: Tensor, state: Any, bits: int) -> "QuantizedWeight":
        made = Tensor._make_wrapper_subclass(  # pyright: ignore[reportAttributeAccessIssue]
            cls, state.shape, dtype=state.dtype, device=packed.device, storage_size=0
        )
        made.packed, made.state, made.bits = packed, state, bits
        return made

    @staticmethod
    def of(weight: Tensor, bits: int) -> "QuantizedWeight":
        """Quantize a weight [d_out, d_in], on its device."""
        library = _bitsandbytes()
        if bits == 4:
            packed, state = library.quantize_4bit(weight, quant_type="nf4", blocksize=BLOCK[4])
        else:
            code = library.create_dynamic_map().to(weight.device)
            packed, state = library.quantize_blockwise(weight, code=code, blocksize=BLOCK[8])
            state.shape = weight.shape
        return QuantizedWeight(packed, state, bits)

    def dequantize(self) -> Tensor:
        """Return the weight [d_out, d_in] that the packed form stands for."""
        library = _bitsandbytes()
        read = library.dequantize_4bit if self.bits == 4 else library.dequantize_blockwise
        return read(self.packed, self.state)

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.linear and isinstance(args[1], QuantizedWeight):
            return _FrozenLinear.apply(*args, *kwargs.values())
        if func is Tensor.to and any(isinstance(x, torch.dtype) for x in (*args, *kwargs.values())):
            return args[0].dequantize().to(*args[1:], **kwargs)
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return QuantizedWeight(args[0].packed, args[0].state, args[0].bits)
        if func is torch.ops.aten.clone.default:
            return QuantizedWeight(args[0].packed.clone(), copy.deepcopy(args[0].state), args[0].bits)
        changed = [x for i, x in enumerate(args) if func._schema.arguments[i].is_write]
        if any(isinstance(x, QuantizedWeight) for x in changed):
            raise RankwiseError(
                f"A weight in {changed[0].bits} bits can't be changed in place. Load the base without base_bits= to merge into it, "
                "or to load other weights."
            )
        args, kwargs = tree_map_only(QuantizedWeight, QuantizedWeight.dequantize, (args, kwargs or {}))
        return func(*args, **kwargs)


class _FrozenLinear(torch.autograd.Function):
    """Compute y = x·Wᵀ + b, and the gradient of x only; W is dequantized anew for each product."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, W: QuantizedWeight, bias: Tensor | None = None) -> Tensor:
        ctx.save_for_backward(W)
        return F.linear(x, W.dequantize(), bias)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (W,) = ctx.saved_tensors
        return grad_outputs[0] @ W.dequantize(), None, None


def quantize(model: nn.Module, bits: int) -> int:
    """Quantize the frozen linear layers of a classifier's body, in place, one after the other.

    Args:
        model: with its LoRA layers, on its device.
        bits: 8 or 4.

    Returns:
        How many layers.

    Raises:
        RankwiseError: no such layer (those of GPT-2 are `Conv1D`).
    """
    layers = [
        module
        for module in body_and_heads(model)[0].modules()
        if (isinstance(module, nn.Linear) or (isinstance(module, LoRALinear) and not module.fan_in_fan_out))
        and not cast(Tensor, module.weight).requires_grad
    ]
    if not layers:
        raise RankwiseError(
            f"{type(model).__name__} has no frozen linear layers to keep in {bits} bits. Leave base_bits= out."
        )
    for layer in layers:
        weight = QuantizedWeight.of(cast(Tensor, layer.weight).detach(), bits)
        layer.weight = nn.Parameter(weight, requires_grad=False)
        layer.register_buffer(
            "packed", weight.packed, persistent=False
        )  # so that memory counts them as weights
        layer.register_buffer("absmax", weight.state.absmax, persistent=False)
    return len(layers)
