"""The fused kernels on a GPU, in bfloat16, against float64 and against plain operations."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gatelab.kernels import gated_attention
from gatelab.kernels.attention import BACKENDS, Case

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]

SHAPES = {"elementwise": (8, 128), "headwise": (8, 1), "shared": (1, 128)}


def leaves(seed: int, length: int, kind: str, spread: float = 1.0) -> tuple[list[Tensor], Tensor]:
    """q, k, v and gate in bfloat16 with grouped queries, and the gradient of the output."""
    generator = torch.Generator("cuda").manual_seed(seed)
    shapes = [(8, 128), (2, 128), (2, 128), SHAPES[kind], (8, 128)]
    *inputs, dy = (torch.randn(2, length, *s, device="cuda", generator=generator) for s in shapes)
    inputs[3] = inputs[3] * spread
    return [t.bfloat16().requires_grad_() for t in inputs], dy.bfloat16()


def eager(q: Tensor, k: Tensor, v: Tensor, gate: Tensor) -> Tensor:
    """Explicit softmax and gate, every step in the dtype of the inputs."""
    k, v = (t.repeat_interleave(q.shape[2] // t.shape[2], 2).transpose(1, 2) for t in (k, v))
    logits = q.transpose(1, 2) @ k.mT * q.shape[-1] ** -0.5
    hidden = torch.ones(q.shape[1], q.shape[1], dtype=torch.bool, device=q.device).triu(1)
    weights = logits.masked_fill(hidden, float("-inf")).softmax(-1)
    return (weights @ v).transpose(1, 2) * torch.sigmoid(gate)


def relative(got: Tensor, want: Tensor) -> float:
    return ((got.double() - want).norm() / want.norm()).item()


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name not in ("reference", "chunked")])
@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("length", [129, 1024])
def test_bfloat16_is_as_accurate_as_plain_operations(backend: str, kind: str, length: int) -> None:
    """Relative L2 error at most 1.5 times that of plain bfloat16, and an absolute bar where that is wrong (dgate)."""
    capability = torch.cuda.get_device_capability()
    if reason := BACKENDS[backend].refusal(
        Case("cuda", torch.bfloat16, 2, length, length, 8, 2, 128, capability=capability)
    ):
        pytest.skip(reason)
    inputs, dy = leaves(1, length, kind)
    wide = [t.detach().double().requires_grad_() for t in inputs]
    truth = gated_attention(*wide, backend="reference")
    truths = [truth, *torch.autograd.grad(truth, wide, dy.double())]
    ours, plain = (
        [out, *torch.autograd.grad(out, inputs, dy)]
        for out in (gated_attention(*inputs, backend=backend), eager(*inputs))
    )
    for name, got, peer, want in zip(("y", "dq", "dk", "dv"), ours, plain, truths, strict=False):
        assert relative(got, want) <= 1.5 * relative(peer, want), name
    assert relative(ours[4], truths[4]) <= 5e-3


@pytest.mark.parametrize("band", [(-80.0, -20.0), (4.0, 8.0), (12.0, 16.0)])
def test_saturated_gates_have_their_true_gradient(band: tuple[float, float]) -> None:
    """In bfloat16 the gradient of an open gate is otherwise zero, and the gate can never close again."""
    inputs, dy = leaves(2, 256, "elementwise")
    low, high = band
    gate = (torch.rand(inputs[3].shape, device="cuda") * (high - low) + low).bfloat16().requires_grad_()
    wide = [t.detach().double().requires_grad_() for t in (*inputs[:3], gate)]
    (want,) = torch.autograd.grad(gated_attention(*wide, backend="reference"), wide[3], dy.double())
    (got,) = torch.autograd.grad(gated_attention(*inputs[:3], gate, backend="triton"), gate, dy)
    assert relative(got, want) <= 5e-3


@pytest.mark.parametrize("kind", SHAPES)
def test_two_runs_have_the_same_bits(kind: str) -> None:
    """No atomics: a trial that is repeated on the same GPU repeats."""
    inputs, dy = leaves(3, 1000, kind)
    runs = []
    for _ in range(2):
        out = gated_attention(*inputs, backend="triton")
        runs.append([out, *torch.autograd.grad(out, inputs, dy)])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_a_layer_keeps_one_activation_less() -> None:
    """A sigmoid gate keeps Y alone, where separate operations keep the ungated output, the score and Y."""
    inputs, _ = leaves(4, 4096, "elementwise")

    def kept(attention: str) -> int:
        before = torch.cuda.memory_allocated()
        if attention == "triton":
            out = gated_attention(*inputs, backend="triton")
        else:
            q, k, v = (t.transpose(1, 2) for t in inputs[:3])
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2)
            out = out * torch.sigmoid(inputs[3])
        found = torch.cuda.memory_allocated() - before
        del out
        return found

    activation = inputs[0].numel() * inputs[0].element_size()
    assert kept("triton") <= kept("separate") - activation
