"""Gated attention: the reference against a loop, the other backends against the reference, and what is refused."""

import math
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from itertools import product, repeat
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gatelab.kernels import apply_gate, composite, gated_attention
from gatelab.kernels.attention import Case, choose_backend
from gatelab.kernels.gate import ACTIVATIONS, COMBINATIONS
from gatelab.kernels.reference import attention_weights

FAST = ["chunked", "sdpa"]  # those that run on any machine; Triton's is in test_triton.py
EXACT = {"rtol": 1e-9, "atol": 1e-11}  # float64, a different order of summation
SINGLE = {"rtol": 1e-4, "atol": 2e-5}  # float32 against float64; a gradient of q or k is a difference of larger terms


def tensors(seed: int, *shapes: tuple[int, ...]) -> list[Tensor]:
    """Normal float64 values, the same for each seed."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


@st.composite
def problems(draw: st.DrawFn, square: bool = False) -> dict[str, Any]:
    """Shapes, a seed and options of one call; with `square`, as many queries as keys wherever it is causal."""
    batch, kv_heads, group = draw(st.integers(1, 2)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    width, length = draw(st.sampled_from([1, 2, 3, 8, 16])), draw(st.sampled_from([1, 2, 3, 5, 7, 17, 33]))
    causal, heads = draw(st.booleans()), kv_heads * group
    keys = length if causal and square else length + draw(st.sampled_from([0, 1, 4, 32]))
    gate = (batch, length, draw(st.sampled_from([1, heads])), draw(st.sampled_from([1, width])))
    shapes = (batch, length, heads, width), (batch, keys, kv_heads, width), (batch, keys, kv_heads, width), gate
    scale = draw(st.sampled_from([None, 0.3, 2.0, 0.0, -0.7]))
    return {"tensors": tensors(draw(st.integers(0, 99)), *shapes), "causal": causal, "scale": scale}


def brute_force(
    q: Tensor, k: Tensor, v: Tensor, gate: Tensor | None, *, add_silu: bool, causal: bool, scale: float | None
) -> Tensor:
    """Attention in Python numbers, one output channel at a time; a sigmoid gate, or an additive SiLU one."""
    (batch, length, heads, width), (keys, kv_heads) = q.shape, k.shape[1:3]
    scale = 1 / math.sqrt(width) if scale is None else scale
    out = torch.empty_like(q)
    for b, t, h in product(range(batch), range(length), range(heads)):
        shared = h * kv_heads // heads  # the first Hq / Hkv query heads use the first key head, and so on
        seen = range(t + 1 + keys - length) if causal else range(keys)
        exponentials = [
            math.exp(scale * sum(a * c for a, c in zip(q[b, t, h].tolist(), k[b, s, shared].tolist(), strict=True)))
            for s in seen
        ]
        for d in range(width):
            y = sum(e * v[b, s, shared, d].item() for e, s in zip(exponentials, seen, strict=True)) / sum(exponentials)
            if gate is not None:
                x = gate[b, t, h % gate.shape[2], d % gate.shape[3]].item()
                sigmoid = 1 / (1 + math.exp(-x))
                y = y + x * sigmoid if add_silu else y * sigmoid
            out[b, t, h, d] = y
    return out


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_reference_is_attention_as_written_in_the_paper(data: st.DataObject) -> None:
    """Everything is tested against the reference, so it must itself agree with the plain definition (eq. 1-5)."""
    group, kv_heads, length = (data.draw(st.integers(1, n)) for n in (3, 2, 4))
    keys, width = length + data.draw(st.integers(0, 3)), data.draw(st.integers(1, 3))
    heads, add_silu = kv_heads * group, data.draw(st.booleans())
    gate_shape = (2, length, data.draw(st.sampled_from([1, heads])), data.draw(st.sampled_from([1, width])))
    kv_shape = (2, keys, kv_heads, width)
    q, k, v, gate = tensors(data.draw(st.integers(0, 99)), (2, length, heads, width), kv_shape, kv_shape, gate_shape)
    options = {"causal": data.draw(st.booleans()), "scale": data.draw(st.sampled_from([None, 0.7, 0.0, -0.7]))}
    scores = data.draw(st.sampled_from([gate, None]))
    names = {"activation": "silu", "combine": "add"} if add_silu else {}
    got = gated_attention(q, k, v, scores, **names, **options, backend="reference")
    torch.testing.assert_close(got, brute_force(q, k, v, scores, add_silu=add_silu, **options), **EXACT)


@settings(max_examples=25, deadline=None)
@given(problems())
def test_attention_weights_are_a_causal_distribution(problem: dict[str, Any]) -> None:
    """Sinks and maps are read from these weights: rows are probabilities, and the last query sees every key."""
    q, k = problem["tensors"][:2]
    weights = attention_weights(q, k, causal=problem["causal"], scale=problem["scale"])
    length, keys = q.shape[1], k.shape[1]
    assert weights.shape == (q.shape[0], q.shape[2], length, keys)
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]), **EXACT)
    for i, j in product(range(length), range(keys)):
        visible = not problem["causal"] or j <= i + keys - length
        assert ((weights[:, :, i, j] > 0) == visible).all()


@pytest.mark.parametrize("combine", COMBINATIONS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("backend", FAST)
@settings(max_examples=12, deadline=None)
@given(problem=problems(square=True))
def test_backend_equals_reference_with_every_gradient(
    backend: str, activation: str, combine: str, problem: dict[str, Any]
) -> None:
    """Which backend a machine has must not change a result: output and gradients of q, k, v and gate agree."""
    options = {"activation": activation, "combine": combine, "causal": problem["causal"], "scale": problem["scale"]}
    (direction,) = tensors(7, problem["tensors"][0].shape)

    def outputs(name: str, dtype: torch.dtype) -> list[Tensor]:
        inputs = [t.to(dtype).requires_grad_() for t in problem["tensors"]]
        out = gated_attention(*inputs, **options, backend=name)
        assert out.dtype == dtype
        gradients = torch.autograd.grad(out, inputs, direction.to(dtype))
        return [t.detach().double() for t in (out, *gradients)]

    truth = outputs("reference", torch.float64)
    for got, want in zip(outputs(backend, torch.float64), truth, strict=True):
        torch.testing.assert_close(got, want, **EXACT)
    for got, want in zip(outputs(backend, torch.float32), truth, strict=True):
        torch.testing.assert_close(got, want, **SINGLE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_sdpa_is_as_accurate_as_plain_torch(dtype: torch.dtype) -> None:
    """Over blocks and odd ends, its error is at most twice that of the plain version in the same dtype."""
    inputs = [t.to(dtype) for t in tensors(3, (2, 67, 6, 16), (2, 67, 2, 16), (2, 67, 2, 16), (2, 67, 6, 16))]
    truth = gated_attention(*(t.double() for t in inputs), backend="reference")
    ours, plain = (
        (gated_attention(*inputs, backend=name).double() - truth).square().mean().sqrt()
        for name in ("sdpa", "reference")
    )
    assert ours <= 2 * plain


def test_auto_takes_the_fast_backend_and_falls_back_where_it_cannot() -> None:
    """With more keys than queries (a cache), `auto` still answers, aligned to the last key."""
    q, k, v = tensors(2, (1, 3, 2, 4), (1, 8, 2, 4), (1, 8, 2, 4))
    case = Case("cpu", torch.float32, 1, 512, 512, 2, 2, 4)
    assert choose_backend(case).name == "chunked"
    full = gated_attention(torch.cat([torch.zeros(1, 5, 2, 4), q], 1), k, v, backend="reference")
    torch.testing.assert_close(gated_attention(q, k, v), full[:, 5:], **EXACT)


def shaped(*shape: int) -> Tensor:
    """Zeros: only their shape matters here."""
    return torch.zeros(shape)


def bounds(*values: int, dtype: torch.dtype = torch.int32) -> Tensor:
    """Where packed sequences begin and end."""
    return torch.tensor(values, dtype=dtype)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(
            {"k": shaped(2, 5, 3, 8), "v": shaped(2, 5, 3, 8)}, r"must divide Hq .*k \[2, 5, 3, 8\]", id="gqa"
        ),
        pytest.param({"v": shaped(2, 4, 2, 8)}, r"k and v must be .*v \[2, 4, 2, 8\]", id="v-unlike-k"),
        pytest.param({"k": shaped(1, 5, 2, 8), "v": shaped(1, 5, 2, 8)}, "with q's B and D", id="batch"),
        pytest.param({"k": shaped(2, 5, 2, 6), "v": shaped(2, 5, 2, 6)}, "with q's B and D", id="width"),
        pytest.param(
            {"gate": shaped(2, 5, 32)}, r"gate must be \[B, T, H or 1, D or 1\] \(got \[2, 5, 32\]", id="flat"
        ),
        pytest.param({"gate": shaped(2, 5, 2, 8)}, r"got \[2, 5, 2, 8\] for .* \[2, 5, 4, 8\]", id="gate-of-kv-heads"),
        pytest.param({"gate": shaped(2, 5, 4, 2)}, "gate must be", id="gate-width"),
        pytest.param({"gate": shaped(2, 1, 4, 8)}, "gate must be", id="gate-length"),
        pytest.param({"gate": shaped(1, 5, 4, 8)}, "gate must be", id="gate-batch"),
        pytest.param({"activation": "sigmod"}, "activation must be one of sigmoid, silu, .*'sigmod'", id="activation"),
        pytest.param({"combine": "divide"}, "combine must be one of multiply, add .*'divide'", id="combine"),
        pytest.param({"backend": "warp"}, "backend must be one of auto, triton, .*, reference .*'warp'", id="backend"),
        pytest.param(
            {"k": shaped(2, 9, 2, 8), "v": shaped(2, 9, 2, 8), "backend": "sdpa"},
            "'sdpa' cannot .* aligned to the first key, so it needs as many queries as keys .got 5 and 9",
            id="sdpa-needs-square",
        ),
        pytest.param(
            {"k": shaped(2, 4, 2, 8), "v": shaped(2, 4, 2, 8)}, r"at least as many keys .*S=4, T=5", id="keys"
        ),
        pytest.param({"k": shaped(5, 2, 8), "v": shaped(5, 2, 8)}, r"k \[5, 2, 8\]", id="no-batch"),
        pytest.param({"v": shaped(2, 5, 2, 8).half()}, "one floating dtype .*float32, .*float16", id="dtypes"),
        pytest.param(
            {name: shaped(2, 5, 4, 8).int() for name in "qkv"}, "one floating dtype .*int32", id="integer-inputs"
        ),
        pytest.param(
            {name: shaped(2, 5, 4, 8).to(torch.float8_e4m3fn) for name in "qkv"},
            "one floating dtype of 16 bits or more .*float8_e4m3fn",
            id="float8",
        ),
        pytest.param({name: shaped(2, 5, 4, 8) * 1j for name in "qkv"}, "one floating dtype .*complex64", id="complex"),
        pytest.param({"gate": shaped(2, 5, 4, 8) * 1j}, "floating dtypes .*complex64 for .*float32", id="complex-gate"),
        pytest.param({"gate": shaped(2, 5, 4, 8).int()}, "floating dtypes .*int32 for .*float32", id="integer-gate"),
        pytest.param({"gate": shaped(2, 5, 4, 8).to("meta")}, "on the device .*got meta for cpu", id="gate-device"),
        pytest.param({"k": shaped(2, 5, 2, 8).to("meta")}, "on one device .*cpu, meta, cpu", id="device"),
        pytest.param({"v": shaped(2, 5, 2, 8).to_sparse()}, "neither sparse nor nested", id="sparse"),
        pytest.param(
            {"q": torch.nested.as_nested_tensor([shaped(5, 4, 8)] * 2, layout=torch.jagged)},
            "neither sparse nor nested .for packed sequences: cu_seqlens",
            id="nested",
        ),
        pytest.param(
            {"scale": torch.tensor(0.3, requires_grad=True)},
            "scale is a number .got Tensor; multiply q by one that is learned",
            id="learned-scale",
        ),
        pytest.param({"scale": np.array(0.3)}, "scale is a number .got ndarray", id="array-scale"),
        pytest.param({"scale": "0.3"}, "scale is a number .got str", id="text-scale"),
        pytest.param({"scale": True}, "scale is a number .got bool", id="bool-scale"),
        pytest.param({"scale": math.nan}, "scale is a finite number .got nan", id="nan-scale"),
        pytest.param({"scale": -math.inf}, "scale is a finite number .got -inf", id="infinite-scale"),
        pytest.param({"q": shaped(2, 0, 4, 8), "gate": None}, r"must be queries and keys \(got q \[2, 0", id="empty"),
        pytest.param(
            {"k": shaped(2, 0, 2, 8), "v": shaped(2, 0, 2, 8), "causal": False},
            "must be queries and keys",
            id="no-keys",
        ),
        pytest.param({"k": shaped(2, 5, 0, 8), "v": shaped(2, 5, 0, 8)}, "Hkv must divide Hq", id="no-kv-heads"),
        pytest.param({"backend": "flash"}, "'flash' cannot .* needs a CUDA device", id="flash"),
        pytest.param({"backend": "cudnn"}, "'cudnn' cannot .* needs a CUDA device", id="cudnn"),
        pytest.param({"cu_seqlens": bounds(0, 5)}, r"must be \[1, T, …\] .*q \[2, 5, 4, 8\]", id="packed-batch"),
    ],
)
def test_refusals_name_what_was_wrong_and_what_would_be_right(change: dict[str, Any], message: str) -> None:
    """A call that cannot be computed says why, instead of broadcasting into a wrong answer."""
    call = {"q": shaped(2, 5, 4, 8), "k": shaped(2, 5, 2, 8), "v": shaped(2, 5, 2, 8), "gate": shaped(2, 5, 4, 8)}
    gated_attention(**call)  # the call is right without the change
    with pytest.raises(ValueError, match=message):
        gated_attention(**{**call, **change})


@pytest.mark.parametrize("call", [gated_attention, apply_gate])
def test_a_gate_of_no_length_is_applied_to_no_tokens(call: Callable[..., Tensor]) -> None:
    """Attention over nothing has no answer; a gate on no tokens is no tokens."""
    x = shaped(2, 0, 4, 8)
    if call is apply_gate:
        assert apply_gate(x, x).shape == x.shape
    else:
        with pytest.raises(ValueError, match="must be queries and keys"):
            gated_attention(x, x, x, x)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("scale", [0, -0.0, -0.7, np.float32(-2), np.int64(0), np.float64(0.3)], ids=repr)
@pytest.mark.parametrize("backend", ["sdpa", "chunked", "auto"])
def test_a_scale_of_zero_or_below_is_a_number_like_any_other(backend: str, scale: float, causal: bool) -> None:
    """Uniform attention is scale 0: a mask of -inf times 0 must not make it NaN, in the output or a gradient."""
    inputs = [x.bfloat16().double() for x in tensors(5, *repeat((1, 77, 2, 8), 5))]  # exact in every dtype

    def everything(name: str, dtype: torch.dtype) -> list[Tensor]:
        *leaves, direction = [x.to(dtype).requires_grad_() for x in inputs]
        out = gated_attention(*leaves, scale=scale, causal=causal, backend=name)
        return [x.detach().double() for x in (out, *torch.autograd.grad(out, leaves, direction))]

    truth = everything("reference", torch.float64)
    for got, want in zip(everything(backend, torch.float32), truth, strict=True):
        torch.testing.assert_close(got, want, **SINGLE)
    for got, want in zip(everything(backend, torch.bfloat16), truth, strict=True):
        assert (got - want).norm() <= 2e-2 * want.norm()
    if scale == 0 and not causal:
        uniform = gated_attention(*inputs[:3], scale=scale, causal=False, backend=backend)
        torch.testing.assert_close(uniform, inputs[2].mean(1, keepdim=True).expand_as(uniform))


@pytest.mark.parametrize("shape", [(2, 20), (2, 300), (2, 5)], ids=["short", "long", "cached"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_tensors_without_values_have_the_shapes_of_those_with(shape: tuple[int, int], dtype: torch.dtype) -> None:
    """Models are planned on the meta device: shapes and dtypes of outputs and gradients, no arithmetic."""
    batch, length = shape
    keys = max(length, 20)
    shapes = (batch, length, 4, 8), (batch, keys, 2, 8), (batch, keys, 2, 8), (batch, length, 4, 1)
    leaves = [torch.empty(s, device="meta", dtype=dtype, requires_grad=True) for s in shapes]
    with torch.autocast("cpu", torch.float16):  # says nothing about them
        out = apply_gate(gated_attention(*leaves), leaves[3])
    assert (out.device.type, out.shape, out.dtype) == ("meta", shapes[0], dtype)
    for leaf, gradient in zip(leaves, torch.autograd.grad(out.sum(), leaves), strict=True):
        assert (gradient.device.type, gradient.shape, gradient.dtype) == ("meta", leaf.shape, dtype)


@pytest.mark.parametrize("backend", ["sdpa", "chunked", "reference"])
def test_strides_and_mixed_gates_change_nothing(backend: str) -> None:
    """Transposed, expanded and sliced tensors, and a gate of another dtype, are read by their values."""
    bases = tensors(8, (2, 2, 20, 8), (1, 20, 1, 8), (2, 20, 2, 16), (2, 1, 1, 1))
    for dtype, gate_dtype in ((torch.float32, torch.float16), (torch.bfloat16, torch.float32)):
        q, k, v, gate = (x.to(kind) for x, kind in zip(bases, (dtype, dtype, dtype, gate_dtype), strict=True))
        given = [q.transpose(1, 2), k.expand(2, 20, 2, 8), v[..., ::2], gate.expand(2, 20, 2, 8)]
        assert not any(x.is_contiguous() for x in given)
        runs = []
        for leaves in ([x.detach() for x in given], [x.contiguous() for x in given]):
            out = gated_attention(*(x.requires_grad_() for x in leaves), backend=backend)
            runs.append([out, *torch.autograd.grad(out.sum(), leaves)])
        assert [x.dtype for x in runs[0]] == [dtype] * 4 + [gate_dtype]
        for a, b in zip(*runs, strict=True):
            assert (a - b).norm() <= (1e-2 if dtype == torch.bfloat16 else 1e-5) * b.norm()


@pytest.mark.parametrize(
    ("cu_seqlens", "message"),
    [
        pytest.param(bounds(0, 5, dtype=torch.int64), r"\[n \+ 1\] int32 \(got \[2\] int64", id="int64"),
        pytest.param(bounds(0, 5)[None], r"\[n \+ 1\] int32 \(got \[1, 2\]", id="matrix"),
        pytest.param(bounds(0), r"\[n \+ 1\] int32 \(got \[1\]", id="no-sequence"),
        pytest.param(bounds(0, 4, 3, 5), r"must rise from 0 to T=5 \(got \[0, 4, 3, 5\]", id="falls"),
        pytest.param(bounds(1, 5), r"must rise from 0 to T=5 \(got \[1, 5\]", id="starts-late"),
        pytest.param(bounds(0, 3), r"must rise from 0 to T=5 \(got \[0, 3\]", id="ends-early"),
        pytest.param(bounds(0, 6), r"must rise from 0 to T=5 \(got \[0, 6\]", id="ends-late"),
    ],
)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_packing_that_does_not_fit_is_refused(cu_seqlens: Tensor, message: str, backend: str) -> None:
    """Boundaries that are off by one would let documents see each other, or leave tokens without an answer."""
    q, k = shaped(1, 5, 4, 8), shaped(1, 5, 2, 8)
    gated_attention(q, k, k, cu_seqlens=bounds(0, 2, 2, 5), backend=backend)
    with pytest.raises(ValueError, match=message):
        gated_attention(q, k, k, cu_seqlens=cu_seqlens, backend=backend)
    with pytest.raises(ValueError, match=r"must be \[1, T, …\] .*k \[1, 6, 2, 8\]"):
        gated_attention(q, shaped(1, 6, 2, 8), shaped(1, 6, 2, 8), cu_seqlens=bounds(0, 5), backend=backend)


CPU_CASE = Case("cpu", torch.float32, 1, 64, 64, 2, 2, 16)
GPU_CASE = replace(CPU_CASE, device="cuda", dtype=torch.bfloat16, capability=(9, 0))


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.parametrize(
    ("case", "message"),
    [
        (CPU_CASE, "needs a CUDA device"),
        (replace(GPU_CASE, dtype=torch.float64), "computes in bfloat16, float16 and float32 .got float64"),
        (replace(GPU_CASE, head_dim=300), "head dimension ends at 256 .got 300"),
        (replace(GPU_CASE, capability=(7, 5)), "needs compute capability 8.0 .this is 7.5"),
        (replace(GPU_CASE, activation="cube"), "'cube' is not written in Triton"),
    ],
)
def test_triton_says_what_it_cannot_compute(case: Case, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for by name, it refuses instead of falling back unseen; `auto` takes another."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match=f"backend 'triton' cannot compute this attention: .*{message}"):
        choose_backend(case, "triton")
    assert choose_backend(case).name in ("chunked", "cudnn", "flash", "sdpa")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": torch.float32}, "computes in bfloat16 and float16 .got float32"),
        ({"head_dim": 12}, "a multiple of 8 up to 128 .got 12"),
        ({"head_dim": 256}, "a multiple of 8 up to 128 .got 256"),
        ({"query_length": 32}, "as many queries as keys .got 32 and 64"),
        ({"capability": (7, 5)}, "needs compute capability 8.0 .this is 7.5"),
    ],
    ids=str,
)
def test_cudnn_says_what_it_cannot_compute(change: dict[str, Any], message: str) -> None:
    """Its limits are known before it is called, and named."""
    assert choose_backend(GPU_CASE, "cudnn").name == "cudnn"
    with pytest.raises(ValueError, match=f"backend 'cudnn' cannot compute this attention: .*{message}"):
        choose_backend(replace(GPU_CASE, **change), "cudnn")


def test_flash_without_a_package_and_chunked_on_a_gpu_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend that this machine lacks is refused when it is asked for, and passed over when it is not."""
    monkeypatch.setattr(composite, "flash_package", lambda capability: None)
    with pytest.raises(ValueError, match=r"no flash-attn package for compute capability 9\.0 is installed"):
        choose_backend(GPU_CASE, "flash")
    with pytest.raises(ValueError, match="made for the CPU"):
        choose_backend(GPU_CASE, "chunked")
    monkeypatch.setattr(composite, "flash_package", lambda capability: "flash_attn")
    assert choose_backend(GPU_CASE, "flash").name == "flash"
    with pytest.raises(ValueError, match=r"a multiple of 8 up to 256 \(got 260"):
        choose_backend(replace(GPU_CASE, head_dim=260), "flash")


def test_auto_answers_every_case() -> None:
    """Whatever the machine and the shapes, some backend computes it: the reference if no other."""
    dtypes = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
    for dtype, causal, queries, width, machine in product(
        dtypes, (True, False), (64, 32), (4, 16, 300), (("cpu", None), ("cuda", (9, 0)), ("cuda", (7, 5)))
    ):
        device, capability = machine
        case = replace(CPU_CASE, device=device, capability=capability, dtype=dtype, causal=causal, head_dim=width)
        chosen = choose_backend(replace(case, query_length=queries))
        assert chosen.refusal(replace(case, query_length=queries)) is None
        assert chosen.name != "reference" or (causal and queries == 32)
