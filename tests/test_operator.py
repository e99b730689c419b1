"""torch.compile, torch.export, fake tensors and modes: gemm as one operator of torch."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch._dynamo import config as dynamo_config
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim, export
from torch.fx.experimental.proxy_tensor import make_fx
from torch.library import opcheck
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import autogemm
from autogemm import InvalidProblem, gemm, gemm_

GEMM = torch.ops.autogemm.gemm.default
GEMM_OUT = torch.ops.autogemm.gemm_out.default


def seeded(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(*shape, dtype=dtype, generator=generator) for shape in shapes]


A, B, C = seeded((6, 9), (9, 5), (6, 5))


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Graphs:
    """A backend that runs what it is given and keeps the graphs."""

    def __init__(self) -> None:
        self.all: list[torch.fx.GraphModule] = []

    def __call__(self, module: torch.fx.GraphModule, inputs: object) -> Callable[..., object]:
        self.all.append(module)
        return module.forward

    @property
    def operators(self) -> list[object]:
        return [node.target for g in self.all for node in g.graph.nodes if node.op[:4] == "call"]


# -------------------------------------------------------------------------------- compiling


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_a_compiled_call_is_the_eager_one(backend: str) -> None:
    def step(A: torch.Tensor, B: torch.Tensor, C: torch.Tensor) -> torch.Tensor:
        return gemm(1.5, A, B, -0.5, C).relu() + gemm(2, A, B, precision="highest")

    compiled = torch.compile(step, backend=backend, fullgraph=True)
    torch.testing.assert_close(compiled(A, B, C), step(A, B, C))


def test_what_is_traced_is_one_operator() -> None:
    graphs = Graphs()
    torch.compile(lambda: gemm(1.5, A, B, -0.5, C), backend=graphs, fullgraph=True)()
    assert [str(op) for op in graphs.operators] == ["autogemm.gemm"]


def test_shapes_and_factors_may_be_dynamic() -> None:
    graphs = Graphs()
    step = torch.compile(lambda a, A, B: gemm(a, A, B), backend=graphs, fullgraph=True)
    for alpha, m in ((1.5, 6), (2.5, 7), (3.5, 11), (0.0, 12), (-1.0, 13)):
        X = torch.ones(m, 9)
        torch.testing.assert_close(step(alpha, X, B), alpha * X @ B)
    assert len(graphs.all) <= 3  # specialised once, then dynamic; 0 and 1 are special to torch


@dynamo_config.patch(capture_scalar_outputs=True)  # the default since torch 2.10
def test_a_factor_may_be_a_tensor() -> None:
    step = torch.compile(lambda a, b: gemm(a, A, B, b, C), backend="aot_eager", fullgraph=True)
    for alpha, beta in ((2.0, 0.5), (3.0, -1.0)):
        found = step(torch.tensor(alpha), torch.tensor(beta))
        torch.testing.assert_close(found, alpha * A @ B + beta * C)


@pytest.mark.parametrize("shapes", [
    ((6, 9), (9, 5)), ((2, 6, 9), (9, 5)), ((6, 9), (2, 9, 5)), ((2, 3, 6, 9), (2, 3, 9, 5)),
])  # fmt: skip
def test_compiled_gradients_are_the_eager_ones(shapes: tuple[tuple[int, ...], ...]) -> None:
    inputs = seeded(*shapes)
    inputs.append(torch.randn(torch.matmul(*inputs).shape))

    def loss(A: torch.Tensor, B: torch.Tensor, C: torch.Tensor) -> torch.Tensor:
        return gemm(1.5, A, B, -0.5, C).tanh().sum()

    found = []
    for step in (loss, torch.compile(loss, backend="aot_eager", fullgraph=True)):
        leaves = [x.clone().requires_grad_() for x in inputs]
        step(*leaves).backward()
        found.append([x.grad for x in leaves])
    for eager, compiled in zip(*found, strict=True):
        torch.testing.assert_close(compiled, eager)


def test_updates_in_place_and_into_out_are_compiled_too() -> None:
    expected = 1.5 * A @ B - 0.5 * C
    for _ in range(2):
        D = C.clone()
        updated = torch.compile(lambda D: gemm_(1.5, A, B, -0.5, D), backend="aot_eager",
                                fullgraph=True)(D)  # fmt: skip
        assert updated is D
        torch.testing.assert_close(D, expected)
    out = torch.empty(6, 5)
    torch.compile(lambda out: gemm(1.5, A, B, -0.5, C, out=out) * 2, backend="aot_eager",
                  fullgraph=True)(out)  # fmt: skip
    torch.testing.assert_close(out, expected)
    out = torch.full((6, 5), torch.nan)
    torch.compile(lambda out: gemm(1.5, A, B, 0.0, C, out=out), backend="aot_eager",
                  fullgraph=True)(out)  # fmt: skip
    torch.testing.assert_close(out, 1.5 * A @ B)


def test_autocast_is_traced_too() -> None:
    def step(A: torch.Tensor, B: torch.Tensor, C: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return gemm(1.0, A, B, 1.0, C)

    found = torch.compile(step, backend="aot_eager", fullgraph=True)(A, B, C)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, step(A, B, C))


def test_a_mapped_call_is_compiled_as_one_batch() -> None:
    graphs = Graphs()
    X = torch.randn(3, 6, 9)
    mapped = torch.compile(torch.vmap(lambda x: gemm(1.5, x, B)), backend=graphs, fullgraph=True)
    torch.testing.assert_close(mapped(X), 1.5 * X @ B)


def test_a_compiled_model_trains_as_an_eager_one() -> None:
    losses = []
    for compiled in (False, True):
        torch.manual_seed(0)
        W = torch.randn(9, 5, requires_grad=True)

        def loss(W: torch.Tensor) -> torch.Tensor:
            return gemm(1.0, A, W, 1.0, C).square().mean()

        step = torch.compile(loss, backend="aot_eager", fullgraph=True) if compiled else loss
        optimizer = torch.optim.SGD([W], lr=0.1)
        for _ in range(5):
            optimizer.zero_grad()
            step(W).backward()
            optimizer.step()
        losses.append(loss(W).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_extents_that_depend_on_data_are_compiled_with_their_gradients() -> None:
    def loss(W: torch.Tensor, x: torch.Tensor, chosen: torch.Tensor, column: bool) -> torch.Tensor:
        some = (W @ x[chosen].t()).contiguous()  # (8, u): its stride is a symbol, too
        return (gemm(1.0, some.t(), W) if column else gemm(1.0, W, some)).square().sum()

    W, x = seeded((8, 8), (16, 8))
    chosen = x[:, 0] > 0
    for column in (False, True):
        found = []
        for compiled in (False, True):
            leaf = x.clone().requires_grad_()
            with dynamo_config.patch(capture_dynamic_output_shape_ops=True):
                step = torch.compile(loss, backend="aot_eager", fullgraph=True)
                (step if compiled else loss)(W, leaf, chosen, column).backward()
            found.append(leaf.grad)
        torch.testing.assert_close(found[0], found[1])


def test_wrong_operands_are_named_while_tracing() -> None:
    for misuse, words in (
        (lambda: gemm(1.0, A, A), "must equal B's rows"),
        (lambda: gemm(1.0, A, B, precision="best"), "precision is 'best'"),
        (lambda: gemm(1.0, A, B, 1.0), "C is missing"),
        (lambda: gemm(1.0, A, B, out=torch.empty(3, 3)), "out is"),
    ):
        with pytest.raises(Exception, match=words):
            torch.compile(misuse, backend="eager", fullgraph=True)()
        with pytest.raises(InvalidProblem, match=words):
            torch.compile(misuse, backend="eager")()


# ---------------------------------------------------------------------------------- the operator

SAMPLES: dict[str, tuple[Any, ...]] = {
    "plain": (1.5, A, B, 0.5, C),
    "no C": (1.5, A, B, 0.0, None),
    "level": (1.5, A, B, 0.5, C, "high"),
    "budget": (1.5, A, B, 0.5, C, None, 1e-3),
    "transposed": (1.5, B.t(), A.t(), 0.5, C.t()),
    "bias": (1.5, A, B, 0.5, C[:1].expand(6, 5)),
    "batch": (1.5, *seeded((2, 6, 9), (2, 9, 5)), 0.5, *seeded((2, 6, 5))),
    "shared B": (1.5, *seeded((2, 6, 9), (9, 5)), 0.0, None),
    "shared A": (1.5, *seeded((6, 9), (2, 9, 5)), 0.0, None),
    "empty": (1.5, *seeded((0, 9), (9, 5)), 0.0, None),
    "complex": (1.5 + 1j, *(x.to(torch.complex64) for x in (A, B)), 0.0, None),
    "bfloat16": (1.5, *(x.bfloat16() for x in (A, B)), 0.0, None),
}


@pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES)
def test_torchs_own_checks_of_an_operator_pass(sample: tuple[Any, ...]) -> None:
    opcheck(GEMM, sample)
    needy = tuple(
        x.detach().clone().requires_grad_() if isinstance(x, torch.Tensor) else x for x in sample
    )
    opcheck(GEMM, needy)


def test_torchs_own_checks_of_the_writing_operator_pass() -> None:
    opcheck(GEMM_OUT, (1.5, A, B, 0.5, C, torch.empty(6, 5)))
    opcheck(GEMM_OUT, (1.5, A, B, 0.5, None, C.clone()))
    opcheck(GEMM_OUT, (1.5, A, B, 0.0, None, torch.empty(5, 6).t()))


def test_the_operator_can_be_called_by_name() -> None:
    torch.testing.assert_close(GEMM(1.5, A, B, 0.5, C), 1.5 * A @ B + 0.5 * C)
    D = C.clone()
    assert GEMM_OUT(1.5, A, B, 0.5, None, D) is None
    torch.testing.assert_close(D, 1.5 * A @ B + 0.5 * C)
    with pytest.raises(InvalidProblem, match="expected one of them"):
        GEMM(1.5, A, B, 0.5, C, "high", 1e-3)
    with pytest.raises(InvalidProblem, match="shares memory with A"):
        GEMM_OUT(1.0, C[:5], C[:5].clone(), 0.0, None, C[:5])


def test_an_exported_program_is_saved_loaded_and_run() -> None:
    class Layer(torch.nn.Module):
        def forward(self, A: torch.Tensor, B: torch.Tensor, C: torch.Tensor) -> torch.Tensor:
            return gemm(1.5, A, B, -0.5, C)

    m = Dim("m")
    program = export(Layer(), (A, B, C), dynamic_shapes={"A": {0: m}, "B": None, "C": {0: m}})
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    X, Y = seeded((11, 9), (11, 5))
    found = torch.export.load(file).module()(X, B, Y)
    torch.testing.assert_close(found, 1.5 * X @ B - 0.5 * Y)


# ----------------------------------------------------------------------------- fakes and modes


def test_fake_tensors_give_a_shape_without_computing() -> None:
    with FakeTensorMode():
        X, Y = torch.empty(2, 6, 9), torch.empty(9, 5)
        result = gemm(1.5, X, Y)
        assert (tuple(result.shape), result.stride()) == ((2, 6, 5), (30, 5, 1))
        out = torch.empty(2, 6, 5)
        assert gemm(1.5, X, Y, out=out) is out
        with pytest.raises(InvalidProblem, match="out is"):
            gemm(1.5, X, Y, out=torch.empty(6, 5))
    assert gemm(1.5, A, B).shape == (6, 5)


def test_a_traced_function_holds_the_operator() -> None:
    traced = make_fx(lambda A, B: gemm(1.5, A, B))(A, B)
    assert GEMM in [node.target for node in traced.graph.nodes]
    torch.testing.assert_close(traced(A, B), 1.5 * A @ B)


class Watching(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[object] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.seen.append(func)
        return func(*args, **(kwargs or {}))


def test_a_dispatch_mode_sees_one_operator_for_one_product() -> None:
    gemm(1.5, A, B, 0.5, C)
    with Watching() as outer, Watching() as inner:
        result = gemm(1.5, A, B, 0.5, C)
    assert inner.seen == outer.seen == [GEMM]
    torch.testing.assert_close(result, 1.5 * A @ B + 0.5 * C)
    D = C.clone()
    with Watching() as mode:
        gemm_(1.5, A, B, 0.5, D)
    assert mode.seen == [GEMM_OUT]
    torch.testing.assert_close(D, result)


def test_a_dispatch_mode_sees_the_backward_products() -> None:
    X, Y = (x.clone().requires_grad_() for x in (A, B))
    with Watching() as mode:
        gemm(1.5, X, Y).sum().backward()
    assert mode.seen.count(GEMM) == 3
    torch.testing.assert_close(X.grad, 1.5 * torch.ones(6, 5) @ B.t())


def test_a_function_mode_sees_nothing_of_the_inside() -> None:
    class Listening(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            seen.append(func)
            return func(*args, **(kwargs or {}))

    seen: list[object] = []
    with Listening():
        for _ in ("cold", "warm"):
            result = gemm(1.5, A, B, 0.5, C)
    assert seen == []
    torch.testing.assert_close(result, 1.5 * A @ B + 0.5 * C)


def test_a_default_device_does_not_matter() -> None:
    with torch.device("meta"):
        result = gemm(1.5, A, B)
    assert result.device.type == "cpu"
    torch.testing.assert_close(result, 1.5 * A @ B)


def test_a_subclass_of_tensor_stays_one() -> None:
    class Named(torch.Tensor):
        pass

    X = A.as_subclass(Named)
    for _ in ("cold", "warm"):
        result = gemm(1.5, X, B)
        assert isinstance(result, Named)
        torch.testing.assert_close(result.as_subclass(torch.Tensor), 1.5 * A @ B)


def test_deterministic_mode_changes_no_result() -> None:
    expected = gemm(1.5, A, B, 0.5, C)
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.equal(gemm(1.5, A, B, 0.5, C), expected)
    finally:
        torch.use_deterministic_algorithms(False)


def test_eager_calls_do_not_pass_through_the_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise AssertionError("the operator was called")

    monkeypatch.setattr("autogemm.operator.call", fail)
    autogemm.reload_tables()
    for _ in ("cold", "warm"):
        gemm(1.5, A, B, 0.5, C)
        X = A.clone().requires_grad_()
        gemm(1.5, X, B, 0.5, C).sum().backward()
        torch.vmap(lambda b: gemm(1.5, A, b))(torch.stack([B, B]))


# ------------------------------------------------------------------------ what reviews found


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_transforms_are_compiled_with_the_right_derivatives(backend: str) -> None:
    def product(a: torch.Tensor) -> torch.Tensor:
        return gemm(1.5, a, B, -0.5, C)

    def loss(a: torch.Tensor) -> torch.Tensor:
        return product(a).tanh().sum()

    for transform in (
        lambda a: torch.func.jvp(product, (a,), (a,))[1],
        torch.func.jacfwd(product),
        torch.func.jacrev(product),
        torch.func.grad(loss),
        torch.func.hessian(loss),
        torch.vmap(lambda row: gemm(1.5, row[None], B)),
    ):
        torch._dynamo.reset()
        compiled = torch.compile(transform, backend=backend, fullgraph=True)
        torch.testing.assert_close(compiled(A), transform(A))


def test_a_compiled_transform_refuses_a_precision_it_could_not_keep() -> None:
    compiled = torch.compile(
        torch.func.grad(lambda a: gemm(1.5, a, B, precision="highest").sum()),
        backend="eager",
        fullgraph=True,
    )
    with pytest.raises(Exception, match="precision is given inside a"):
        compiled(A)


def test_the_operator_has_gradients_and_refuses_to_write_where_it_could_not() -> None:
    leaves = [x.clone().requires_grad_() for x in (A, B, C)]
    GEMM(1.5, leaves[0], leaves[1], 0.5, leaves[2]).sum().backward()
    torch.testing.assert_close(leaves[0].grad, 1.5 * torch.ones(6, 5) @ B.t())
    torch.testing.assert_close(leaves[2].grad, torch.full((6, 5), 0.5))
    with pytest.raises(InvalidProblem, match="requires grad"):
        GEMM_OUT(1.5, leaves[0], B, 0.0, None, torch.empty(6, 5))


def test_what_autograd_has_kept_is_known_to_be_stale_after_an_update() -> None:
    for call in (
        lambda c: GEMM_OUT(1.0, A, B, 1.0, None, c),
        lambda c: gemm_(1.0, A, B, 1.0, c),
        lambda c: watched(gemm_, 1.0, A, B, 1.0, c),
    ):
        w, c = torch.ones(6, 5, requires_grad=True), C.clone()
        y = w * c
        call(c)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


def watched(call: Callable[..., torch.Tensor], *inputs: object) -> torch.Tensor:
    with Watching():
        return call(*inputs)


def test_a_disabled_mode_is_no_mode() -> None:
    with Watching() as mode, torch._C._DisableTorchDispatch():
        result = gemm(1.5, A, B, 0.5, C)
    assert mode.seen == []
    torch.testing.assert_close(result, 1.5 * A @ B + 0.5 * C)


def test_under_autocast_the_operator_computes_what_its_shape_function_says() -> None:
    class Layer(torch.nn.Module):
        def forward(self, A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
            return gemm(1.5, A, B)

    program = export(Layer(), (A, B)).module()
    X = A.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = program(X, B)
    assert result.dtype == torch.float32
    result.sum().backward()
    torch.testing.assert_close(X.grad, 1.5 * torch.ones(6, 5) @ B.t())


def test_a_jit_trace_holds_the_operator() -> None:
    traced = torch.jit.trace(lambda A, B: gemm(1.5, A, B), (A, B))
    assert "autogemm::gemm" in str(traced.graph)
    torch.testing.assert_close(traced(A[:3], B), 1.5 * A[:3] @ B)


def test_a_compiled_transform_rounds_once_and_reads_what_it_should() -> None:
    def compiled(function: Callable[..., torch.Tensor]) -> Callable[..., Any]:
        torch._dynamo.reset()
        return torch.compile(
            lambda x: torch.func.jvp(function, (x,), (x,))[0], backend="aot_eager", fullgraph=True
        )

    h = torch.full((2, 64), 40.0).half()
    assert compiled(lambda a: gemm(0.01, a, h.t().contiguous()))(h).isfinite().all()
    batch = torch.full((3, 2, 64), 40.0).half()
    for right in (h.t().contiguous(), h.t().expand(3, 64, 2)):
        found = compiled(lambda a, right=right: gemm(0.01, a, right))(batch)
        torch.testing.assert_close(found, gemm(0.01, batch, right))
    nan = torch.full((6, 9), torch.nan)
    assert torch.equal(compiled(lambda a: gemm(0.0, a, B, 2.0, C))(nan), 2 * C)
