"""How the kernels join PyTorch: compiler, checkpointing, autocast, sharding, counters, and what they keep in memory."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts
from torch.utils.flop_counter import FlopCounterMode

from gatelab.kernels import apply_gate, chunked, fused, gated_attention, modulation, requirements
from gatelab.kernels.gate import keeps_output

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
GPU = "cuda" if torch.cuda.is_available() else "cpu"
OURS = {"chunked": "cpu", "triton": GPU}  # backends that are operators of this project, and where they are tested
ATTENTION = [pytest.param("chunked"), pytest.param("triton", marks=needs_triton)]
BATCH, LENGTH, HEADS, KV_HEADS, WIDTH = 1, 9, 2, 1, 8


def tensors(
    seed: int, *shapes: tuple[int, ...], device: str = "cpu", dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """Normal values, the same for each seed."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(s, generator=generator).to(device, dtype) for s in shapes]


def problem(seed: int, device: str, gate: tuple[int, int] = (HEADS, WIDTH), length: int = LENGTH) -> list[Tensor]:
    """Queries, keys, values and a gate with those heads and channels."""
    rows, kv = (BATCH, length), (BATCH, length, KV_HEADS, WIDTH)
    return tensors(seed, (*rows, HEADS, WIDTH), kv, kv, (*rows, *gate), device=device)


def leaves(tensors: list[Tensor]) -> list[Tensor]:
    return [x.detach().clone().requires_grad_() for x in tensors]


FORMS: dict[str, dict[str, Any]] = {
    "ungated": {"gate": None, "combine": "none"},
    "output-dropped": {"gate": (HEADS, WIDTH)},
    "output-kept": {"gate": (HEADS, WIDTH), "activation": "silu"},
    "headwise": {"gate": (HEADS, 1)},
    "shared": {"gate": (1, WIDTH), "activation": "softplus"},
    "added": {"gate": (HEADS, 1), "activation": "tanh", "combine": "add"},
    "packed": {"gate": (HEADS, WIDTH), "bounds": [0, 4, 4, 9]},
    "no-mask": {"gate": (HEADS, WIDTH), "causal": False},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("backend", ATTENTION)
def test_attention_operators_keep_their_contract(backend: str, form: str) -> None:
    """Schema, shapes under tracing and gradients under the compiler are what the operators do when they run."""
    entry = FORMS[form]
    device, module = OURS[backend], fused if backend == "triton" else chunked
    q, k, v, gate = leaves(problem(1, device, entry["gate"] or (1, 1)))
    bounds = torch.tensor(entry["bounds"], dtype=torch.int32, device=device) if "bounds" in entry else None
    options = (entry.get("activation", "sigmoid"), entry.get("combine", "multiply"), entry.get("causal", True), 0.3)
    keep = (True,) if backend == "chunked" else ()
    inputs = (q, k, v, None if entry["gate"] is None else gate, bounds)
    torch.library.opcheck(module._attention, (*inputs, *options, *keep))
    constants = tuple(x.detach() if isinstance(x, Tensor) else x for x in inputs)
    y, o, kept = module._attention(*constants, *options, *keep)
    kept_o = entry["gate"] is not None and keeps_output(options[0], options[1], q.dtype)
    assert o.numel() == (q.numel() if kept_o else 0)
    (dy,) = tensors(2, tuple(q.shape), device=device)
    torch.library.opcheck(module._attention_backward, (dy, *constants[:4], y, o, kept, bounds, *options))


@pytest.mark.parametrize("combine", ["multiply", "add"])
@pytest.mark.parametrize("gate", [(HEADS, WIDTH), (HEADS, 1), (1, WIDTH), (1, 1)], ids=str)
def test_gate_operators_keep_their_contract(gate: tuple[int, int], combine: str) -> None:
    """As for attention: a gate on any tensor is an operator with a backward of its own."""
    x, logits = leaves([t for i, t in enumerate(problem(3, GPU, gate)) if i in (0, 3)])
    torch.library.opcheck(modulation._modulate, (x, logits, "silu", combine))
    strided = x.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
    torch.library.opcheck(modulation._modulate, (strided, logits, "sigmoid", combine))
    (dy,) = tensors(4, tuple(x.shape), device=GPU)
    torch.library.opcheck(modulation._modulate_backward, (dy, x.detach(), logits.detach(), "silu", combine))


COMPILED = [
    pytest.param("auto", "aot_eager"),
    pytest.param("auto", "inductor"),
    pytest.param("chunked", "aot_eager"),
    pytest.param("sdpa", "aot_eager"),
    pytest.param("reference", "aot_eager"),
    pytest.param("triton", "aot_eager", marks=needs_triton),
]


@pytest.fixture
def compiler() -> Iterator[Callable[[str], CompileCounterWithBackend]]:
    """A counter of the graphs that a compiler backend makes, starting from none."""
    torch._dynamo.reset()
    yield CompileCounterWithBackend
    torch._dynamo.reset()


@pytest.mark.parametrize(("backend", "compiled_by"), COMPILED)
def test_a_compiled_model_is_one_graph_and_equals_the_eager_one(
    backend: str, compiled_by: str, compiler: Callable[[str], CompileCounterWithBackend]
) -> None:
    """Compiling a model breaks no graph at attention or gate, and other values make no new one."""
    device = OURS.get(backend, "cpu")
    counter = compiler(compiled_by)

    def block(x: Tensor, k: Tensor, v: Tensor, gate: Tensor) -> Tensor:
        q = apply_gate(x * 1.5, gate, activation="tanh", combine="add")
        return gated_attention(q, k, v, gate, backend=backend) * 2

    compiled = torch.compile(block, fullgraph=True, backend=counter)
    for seed in (1, 2):
        first, second = (leaves(problem(seed, device)) for _ in range(2))
        (direction,) = tensors(5, tuple(first[0].shape), device=device)
        want, got = block(*first), compiled(*second)
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
        for a, b in zip(
            *(torch.autograd.grad(y, x, direction) for y, x in ((got, second), (want, first))), strict=True
        ):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=2e-6)
    assert counter.frame_count == 1


@pytest.mark.parametrize("backend", ATTENTION)
def test_packed_sequences_of_other_lengths_reuse_the_compiled_graph(
    backend: str, compiler: Callable[[str], CompileCounterWithBackend]
) -> None:
    """Each batch packs other documents: their lengths are data, never part of the graph."""
    counter = compiler("aot_eager")
    call = partial(gated_attention, backend=backend)
    compiled = torch.compile(call, fullgraph=True, backend=counter)
    inputs = problem(1, OURS[backend])
    for bounds in ([0, 4, 9], [0, 0, 9], [0, 8, 9]):
        cu_seqlens = torch.tensor(bounds, dtype=torch.int32, device=OURS[backend])
        torch.testing.assert_close(compiled(*inputs, cu_seqlens=cu_seqlens), call(*inputs, cu_seqlens=cu_seqlens))
    assert counter.frame_count == 1


def around_chunks(call: Callable[..., Tensor], dtype: torch.dtype, *, mark: bool, gradients: bool) -> None:
    """Compare compiled attention with eager attention, at lengths for which `auto` has different backends."""
    compiled_for = torch.compile(gated_attention, fullgraph=True, backend=call)
    for length in (300, 310, 1100, 20, 256):
        given = leaves([x.to(dtype) for x in problem(1, "cpu", length=length)])
        if mark:
            for x in given:
                torch._dynamo.mark_dynamic(x, 1)
        got, want = compiled_for(*given), gated_attention(*given)
        close = {"rtol": 2e-2, "atol": 2e-2} if dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-5}
        torch.testing.assert_close(got, want, **close)
        if gradients:
            for a, b in zip(*(torch.autograd.grad(y.sum(), given) for y in (got, want)), strict=True):
                torch.testing.assert_close(a, b, **close)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("mark", [False, True], ids=["found-out", "marked"])
def test_auto_compiles_no_graph_for_each_length(
    mark: bool, dtype: torch.dtype, compiler: Callable[[str], CompileCounterWithBackend]
) -> None:
    """A graph of chunks would be compiled anew for every length until the compiler gives up."""
    counter = compiler("aot_eager")
    around_chunks(counter, dtype, mark=mark, gradients=dtype == torch.float32)
    assert counter.frame_count == (1 if mark else 2)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    ("options", "dtype"),
    [({}, torch.float32), ({"causal": False, "scale": 0.0}, torch.bfloat16)],
    ids=["float32", "bfloat16-uniform"],
)
def test_an_exported_model_serves_any_length(options: dict[str, Any], dtype: torch.dtype, strict: bool) -> None:
    """torch.export with a dynamic length: one program, from one token to more than it was traced with."""

    class Gated(nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor, gate: Tensor) -> Tensor:
            return gated_attention(apply_gate(q, gate), k, v, gate, **options)

    def inputs(length: int) -> tuple[Tensor, ...]:
        return tuple(x.to(dtype) for x in problem(1, "cpu", length=length))

    length = {1: torch.export.Dim("length", min=2, max=4096)}
    program = torch.export.export(Gated(), inputs(300), dynamic_shapes=(length,) * 4, strict=strict).module()
    for other in (2, 77, 300, 1100):
        tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-5
        torch.testing.assert_close(program(*inputs(other)), Gated()(*inputs(other)), rtol=tolerance, atol=tolerance)


def test_a_scale_may_be_left_open_by_a_graph(compiler: Callable[[str], CompileCounterWithBackend]) -> None:
    """A scale that changes from call to call is a number in eager code and in compiled code."""
    counter = compiler("aot_eager")
    compiled = torch.compile(gated_attention, fullgraph=True, dynamic=True, backend=counter)
    inputs = problem(1, "cpu")
    for scale in (0.1, 0.2, -0.3):
        want = gated_attention(*inputs, scale=scale)
        torch.testing.assert_close(compiled(*inputs, scale=scale), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.parametrize("backend", ["sdpa", "reference", pytest.param("triton", marks=needs_triton)])
def test_other_lengths_share_a_compiled_graph(
    backend: str, dynamic: bool | None, compiler: Callable[[str], CompileCounterWithBackend]
) -> None:
    """Text comes in many lengths: one graph serves them all, after at most one that was made for the first."""
    counter = compiler("aot_eager")
    call = partial(gated_attention, backend=backend)
    compiled = torch.compile(call, fullgraph=True, dynamic=dynamic, backend=counter)
    for length in (5, 9, 12, 20):
        inputs = problem(1, OURS.get(backend, "cpu"), length=length)
        torch.testing.assert_close(compiled(*inputs), call(*inputs), rtol=1e-5, atol=1e-6)
    assert counter.frame_count == (1 if dynamic else 2)


class Calls(TorchDispatchMode):
    """How often an operator runs."""

    def __init__(self, operator: Any) -> None:
        super().__init__()
        self.operator, self.count = operator, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is self.operator
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("backend", ATTENTION)
def test_selective_checkpointing_can_keep_attention_and_recompute_the_rest(backend: str) -> None:
    """Recomputing attention doubles its cost: a policy that names the operator saves its outputs instead."""
    name = "attention" if backend == "triton" else "chunked_attention"
    operator = getattr(torch.ops.gatelab, name).default

    def policy(_: Any, func: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        return CheckpointPolicy.MUST_SAVE if func is operator else CheckpointPolicy.PREFER_RECOMPUTE

    def block(*inputs: Tensor) -> Tensor:
        return gated_attention(*inputs, backend=backend).sin()

    inputs = problem(1, OURS[backend])
    runs = {}
    for kind, options in {
        "none": None,
        "plain": {},
        "selective": {"context_fn": partial(create_selective_checkpoint_contexts, policy)},
    }.items():
        given = leaves(inputs)
        with Calls(operator) as calls:
            y = block(*given) if options is None else checkpoint(block, *given, use_reentrant=False, **options)
            gradients = torch.autograd.grad(y.sum(), given)
        runs[kind] = calls.count, gradients
    assert {kind: count for kind, (count, _) in runs.items()} == {"none": 1, "plain": 2, "selective": 1}
    for kind in ("plain", "selective"):
        assert all(torch.equal(a, b) for a, b in zip(runs[kind][1], runs["none"][1], strict=True))


@pytest.mark.parametrize("backend", ["chunked", "sdpa", "reference"])
def test_autocast_rounds_attention_but_not_its_gate(backend: str) -> None:
    """Mixed precision keeps parameters and their gradients in float32; the gate's digits are not thrown away."""
    given = leaves(problem(1, "cpu"))
    with torch.autocast("cpu", torch.bfloat16):
        y = gated_attention(*given, backend=backend)
    assert y.dtype == torch.bfloat16
    *rounded, gate = given
    want = gated_attention(*(x.bfloat16() for x in rounded), gate, backend=backend)
    assert torch.equal(y, want)
    assert not torch.equal(y, gated_attention(*(x.bfloat16() for x in given), backend=backend))
    (direction,) = tensors(6, tuple(y.shape), dtype=torch.bfloat16)
    got, explicit = (torch.autograd.grad(out, given, direction) for out in (y, want))
    assert [x.dtype for x in got] == [torch.float32] * 4
    assert all(torch.equal(a, b) for a, b in zip(got, explicit, strict=True))


@pytest.mark.parametrize(
    ("backend", "backward"),
    [pytest.param("chunked", 2.0), pytest.param("triton", 2.5, marks=needs_triton)],
)
@pytest.mark.parametrize("causal", [True, False])
def test_operations_are_counted_as_pytorch_counts_attention(backend: str, backward: float, causal: bool) -> None:
    """Utilisation is reported from this count: two products forward; four with the probabilities kept, five without."""
    given = leaves(problem(1, OURS[backend]))
    with FlopCounterMode(display=False) as counter:
        y = gated_attention(*given, causal=causal, backend=backend)
        forward = counter.get_total_flops()
        y.sum().backward()
    assert forward == 4 * BATCH * HEADS * LENGTH * LENGTH * WIDTH
    assert counter.get_total_flops() == forward * (1 + backward)


@pytest.mark.parametrize("backend", ATTENTION)
def test_a_second_derivative_is_refused_by_kernels_and_given_by_the_reference(backend: str) -> None:
    """A gradient penalty gets an error that says what to do, instead of a penalty without its gradient."""
    given = leaves(problem(1, OURS[backend]))
    (gradient,) = torch.autograd.grad(gated_attention(*given, backend=backend).sum(), given[0], create_graph=True)
    with pytest.raises(NotImplementedError, match="backend='reference'"):
        gradient.square().sum().backward()
    (gradient,) = torch.autograd.grad(gated_attention(*given, backend="reference").sum(), given[0], create_graph=True)
    gradient.square().sum().backward()
    assert all(x.grad is not None and x.grad.isfinite().all() and x.grad.any() for x in given)


def test_a_second_derivative_of_a_gate_is_refused() -> None:
    """As for attention."""
    x, _, _, logits = leaves(problem(1, GPU))
    (gradient,) = torch.autograd.grad(apply_gate(x, logits).sum(), logits, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        gradient.square().sum().backward()


class Block(nn.Module):
    """A gated attention layer."""

    def __init__(self) -> None:
        super().__init__()
        self.projection = nn.Linear(16, 4 * 16, bias=False)
        self.output = nn.Linear(16, 16, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v, gate = self.projection(x).unflatten(-1, (4, HEADS, WIDTH)).unbind(2)
        return self.output(gated_attention(q, k, v, gate).flatten(2))


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_a_sharded_model_trains_as_an_unsharded_one(one_process: None) -> None:
    """Parameters of a sharded model are assembled for each use: the operators must take and differentiate those."""
    torch.manual_seed(0)
    plain, sharded = Block(), Block()
    sharded.load_state_dict(plain.state_dict())
    fully_shard(sharded, mesh=init_device_mesh("cpu", (1,)))
    (x,) = tensors(7, (2, LENGTH, 16))
    losses = []
    for model in (plain, sharded):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    for a, b in zip(plain.parameters(), sharded.parameters(), strict=True):
        torch.testing.assert_close(b.full_tensor(), a)
        torch.testing.assert_close(b.grad.full_tensor(), a.grad)
        assert a.grad.any()


def saved(call: Callable[[], Tensor]) -> dict[tuple[int, int], Tensor]:
    """What a call keeps for its backward: tensors by address and size."""
    seen: dict[tuple[int, int], Tensor] = {}

    def pack(x: Tensor) -> Tensor:
        seen[x.data_ptr(), x.numel()] = x
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        call()
    return seen


@needs_triton
@pytest.mark.parametrize(
    ("activation", "combine", "dtype", "count"),
    [
        ("sigmoid", "multiply", torch.bfloat16, 5),
        ("softplus", "multiply", torch.bfloat16, 5),
        ("ns_sigmoid", "multiply", torch.float32, 5),
        ("sigmoid", "multiply", torch.float16, 6),
        ("silu", "multiply", torch.bfloat16, 6),
        ("sigmoid", "add", torch.bfloat16, 6),
    ],
)
def test_a_positive_gate_saves_one_activation(activation: str, combine: str, dtype: torch.dtype, count: int) -> None:
    """Of [B, T, H, D] the kernels keep q, k, v, the gate and the output; the output before the gate where they must."""
    shape = (1, 20, 2, 16)
    given = leaves(tensors(8, shape, shape, shape, shape, device=GPU, dtype=dtype))
    kept = saved(lambda: gated_attention(*given, activation=activation, combine=combine, backend="triton"))
    wide = [x for x in kept.values() if x.shape == shape]
    others = [x for x in kept.values() if x.shape != shape and x.numel()]
    assert len(wide) == count
    assert [(x.shape, x.dtype) for x in others] == [((1, 2, 20), torch.float32)]  # the softmax's normaliser
    assert {x.dtype for x in wide} == {dtype}


@needs_triton
def test_kernels_keep_less_than_separate_operations() -> None:
    """The reason to fuse: in front of an output projection, the gate costs one kept activation instead of two."""
    shape = (1, 20, 2, 16)
    *given, weight = leaves(tensors(9, *[shape] * 4, (16, 16), device=GPU, dtype=torch.bfloat16))
    ungated, fused_gate, apart = (
        sum(x.numel() == given[0].numel() for x in saved(call).values())
        for call in (
            lambda: gated_attention(*given[:3], backend="triton") @ weight,
            lambda: gated_attention(*given, backend="triton") @ weight,
            lambda: (gated_attention(*given[:3], backend="triton") * given[3].sigmoid()) @ weight,
        )
    )
    assert (ungated, fused_gate, apart) == (4, 5, 6)


def test_kernels_need_none_of_the_study_packages(tmp_path: Path) -> None:
    """The kernels can be used alone: in a training code that has PyTorch and no scheduler, tracker or command line."""
    script = """
import sys
for name in ("ray", "mlflow", "pydantic", "pyarrow", "typer", "rich", "matplotlib", "scipy", "tokenizers"):
    sys.modules[name] = None
import torch
from gatelab.kernels import apply_gate, gated_attention
x = torch.ones(1, 3, 2, 4, requires_grad=True)
y = gated_attention(x, x, x, torch.zeros(1, 3, 2, 1))
apply_gate(y, x).sum().backward()
assert torch.equal(y, torch.full_like(y, 0.5)), y
print("computed")
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.stdout == "computed\n", result.stderr


def test_the_table_of_activations_is_read_without_torch() -> None:
    """A configuration is checked in no time: names of gates do not load PyTorch."""
    script = "import sys\nfrom gatelab.kernels.gate import ACTIVATIONS, COMBINATIONS\nprint('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.stdout == "False\n", result.stderr


def test_what_holds_for_the_whole_process_is_marked_as_torch_marks_it() -> None:
    """Without an import of the compiler, and so by an attribute of its own: another release may name it otherwise."""

    def function() -> None: ...

    marked = torch.compiler.assume_constant_result(function)
    assert vars(marked) == vars(requirements.interpreted) != {}
