"""How the project's operators join PyTorch: differentiable once, opaque to the compiler, countable."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.library import CustomOpDef  # type: ignore[attr-defined]


class Call(NamedTuple):
    """What one call of `gated_attention` asks of a backend, beside its tensors."""

    activation: str
    combine: str
    causal: bool
    scale: float
    cu_seqlens: Tensor | None


FORWARD_MODE, TRANSFORM = "forward-mode derivative", "rule for torch.func"


def beyond_backward(*tensors: Tensor | None) -> str | None:
    """Say what PyTorch asks of these tensors' operators beyond a backward: FORWARD_MODE, a TRANSFORM, or nothing.

    An operator that has no such rule would drop a forward derivative without a word.
    """
    transform = torch._C._are_functorch_transforms_active()
    if forward_ad._current_level >= 0 and (
        transform  # other levels may hide the tangent
        or any(x is not None and forward_ad.unpack_dual(x).tangent is not None for x in tensors)  # type: ignore[no-untyped-call]
    ):
        return FORWARD_MODE
    return TRANSFORM if transform else None


def symbolic(length: int) -> bool:
    """Return whether a graph leaves a length open: `torch.compile` and `torch.export` with dynamic shapes."""
    if not torch.compiler.is_compiling():
        return isinstance(length, torch.SymInt)
    from torch.fx.experimental.symbolic_shapes import has_static_value

    return not has_static_value(length)


def differentiable_once(
    forward: CustomOpDef,
    backward: CustomOpDef,
    setup: Callable[[Any, tuple[Any, ...], Any], None],
    gradients: Callable[..., Any],
) -> None:
    """Make `gradients`, which calls `backward`, the derivative of `forward`; a derivative of that is an error."""

    def refuse(ctx: Any, *_: Any) -> Any:
        raise NotImplementedError(
            f"{forward._qualname} has no second derivative; call gated_attention(..., backend='reference'), which has"
        )

    forward.register_autograd(gradients, setup_context=setup)
    backward.register_autograd(refuse)


def fake_gradients(
    dy: Tensor, q: Tensor, k: Tensor, v: Tensor, gate: Tensor | None, *_: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the shapes and dtypes of (dQ, dK, dV, dG), contiguous; dG is empty without a gate."""
    dg = q.new_empty(0) if gate is None else gate.new_empty(gate.shape)
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), dg


def attention_flops(q: Sequence[int], k: Sequence[int], products: int) -> int:
    """Count the operations of `products` matrix products of all queries and all keys, as PyTorch counts its own.

    `q [B, T, Hq, D]`, `k [B, S, Hkv, D]`. A causal mask is not subtracted.
    """
    batch, length, heads, width = q
    return products * 2 * batch * heads * length * k[1] * width
