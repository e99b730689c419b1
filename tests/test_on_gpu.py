"""What only a GPU can show: graphs, streams, devices, compiled training. Skipped without one."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

import pytest
import torch
from calling import in_threads

import autogemm
from autogemm import explain, gemm, gemm_
from autogemm.device import device_of
from autogemm.precision import LEVELS, allowance, growth, underflow, unit_roundoff
from autogemm.problem import problem_of
from autogemm.strategies import BY_NAME

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

HALVES = (torch.float16, torch.bfloat16)
SHAPES = ((1024, 1024, 1024), (16, 4096, 4096), (256, 256, 65536), (1023, 777, 513))


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """No plan and no compiled code of another test."""
    torch._dynamo.reset()
    autogemm.reload_tables()
    yield
    autogemm.reload_tables()


def normal(*shape: int, dtype: torch.dtype = torch.float32, where: str = "cuda") -> torch.Tensor:
    return torch.randn(*shape, device=where).to(dtype)


def check(found, alpha, A, B, beta=0.0, C=None, level="highest") -> None:  # type: ignore[no-untyped-def]
    """The contract, on every element of up to 64 rows of each matrix."""
    rows = torch.randperm(A.shape[-2], device=A.device)[:64]
    a, b = A[..., rows, :].double(), B.double()
    exact, bound = alpha * (a @ b), abs(alpha) * (a.abs() @ b.abs())
    if C is not None:
        exact = exact + beta * C[..., rows, :].double()
        bound = bound + abs(beta) * C[..., rows, :].double().abs()
    k = A.shape[-1]
    u = 2.0**-53 if A.dtype == torch.float64 else 2.0**-24
    limit = (
        unit_roundoff(A.dtype) * exact.abs()
        + (allowance(level, A.dtype) + growth(A.dtype, k)) * u * bound
        + max(1.0, abs(alpha)) * underflow(A.dtype, k)
    )
    assert ((found[..., rows, :].double() - exact).abs() <= limit).all()


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("shape", [(33, 24, 80), (128, 128, 128), *SHAPES], ids=str)
def test_a_product_is_not_rounded_before_c_is_added(
    shape: tuple[int, int, int], dtype: torch.dtype
) -> None:
    m, n, k = shape
    A, B, C = normal(m, k, dtype=dtype), normal(k, n, dtype=dtype), 8 * normal(m, n, dtype=dtype)
    for alpha in (1.0, -0.5):
        check(gemm(alpha, A, B, 1.0, C, precision="highest"), alpha, A, B, 1.0, C)
        row = C[:1].expand(m, n)
        check(gemm(alpha, A, B, 1.0, row, precision="highest"), alpha, A, B, 1.0, row)
        held = C.clone()
        check(gemm_(alpha, A, B, 1.0, held, precision="highest"), alpha, A, B, 1.0, C)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALVES], ids=str)
def test_results_of_one_row_in_any_layout_are_served(dtype: torch.dtype) -> None:
    A, B, row = normal(1, 5, dtype=dtype), normal(5, 130, dtype=dtype), normal(1, 130, dtype=dtype)
    out = torch.empty_strided((1, 130), (1, 1), dtype=dtype, device="cuda")
    for level in LEVELS:
        gemm(1.0, A, B, 1.0, row, precision=level, out=out)
        check(out, 1.0, A, B, 1.0, row, level=level)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradients_keep_the_contract(shape: tuple[int, int, int], level: str) -> None:
    m, n, k = shape
    A, B, C = (x.requires_grad_() for x in (normal(m, k), normal(k, n), normal(m, n)))
    G = normal(m, n)
    result = gemm(1.5, A, B, 0.5, C, precision=level)
    result.backward(G)
    with torch.no_grad():
        check(result, 1.5, A, B, 0.5, C, level)
        check(A.grad, 1.5, G, B.t(), level=level)
        check(B.grad, 1.5, A.t(), G, level=level)
        assert torch.equal(C.grad, 0.5 * G)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALVES], ids=str)
@pytest.mark.parametrize("shared", ["neither", "A", "B"])
def test_batches_keep_the_contract(dtype: torch.dtype, shared: str) -> None:
    A = normal(*(() if shared == "A" else (12,)), 100, 64, dtype=dtype)
    B = normal(*(() if shared == "B" else (12,)), 72, 64, dtype=dtype).mT
    C = normal(12, 100, 72, dtype=dtype)
    heads = C.movedim(0, 1).contiguous().movedim(1, 0)
    check(gemm(1.5, A, B, precision="highest"), 1.5, A, B)
    for addend in (C, heads, C[:, :1].expand(12, 100, 72)):
        result = gemm(1.5, A, B, -0.5, addend, precision="highest")
        check(result, 1.5, A, B, -0.5, addend)
    for D in (C, heads):
        before = D.clone()
        gemm_(1.5, A, B, -0.5, D, precision="highest")
        check(D, 1.5, A, B, -0.5, before)


@pytest.mark.parametrize(
    ("batch", "m", "n", "k"),
    [(16, 512, 512, 512), (96, 1024, 1024, 64), (96, 1024, 64, 1024), (7, 130, 52, 36)],
)
def test_a_batch_of_float32_in_one_launch_keeps_the_contract(
    batch: int, m: int, n: int, k: int
) -> None:
    """Matrices behind each other, heads between each other, and one that is shared."""
    strategy, here = BY_NAME["emulated_fp32"], device_of(torch.device("cuda"))
    A, B, C = normal(batch, m, k), normal(batch, k, n), normal(batch, m, n)
    heads = A.movedim(0, 1).contiguous().movedim(1, 0)
    transposed = B.mT.contiguous().mT
    for a, b in ((A, B), (heads, transposed), (A, B[:1].expand(B.shape))):
        problem = problem_of(a, b, C, None, False)
        candidates = strategy.candidates(problem, here)
        assert candidates or here.capability < (9, 0)
        for params in (candidate.kwargs for candidate in candidates):
            if params["method"] == "fp16x3" and params["chunk"] in (32, 64):  # each tile once
                result = strategy.bind(problem, here, params)(1.5, a, b, -0.5, C, None)
                check(result, 1.5, a, b, -0.5, C)


@pytest.mark.parametrize("name", ["triton_gemm", "cute", "cublaslt", "short"])
@pytest.mark.parametrize(
    ("batch", "m", "n", "k"), [(96, 256, 256, 64), (32, 256, 64, 128), (7, 136, 56, 40)]
)
def test_every_way_to_compute_a_batch_keeps_the_contract(
    name: str, batch: int, m: int, n: int, k: int
) -> None:
    """Heads between each other, shared operands, C over all of a batch, results of any layout."""
    strategy, here = BY_NAME[name], device_of(torch.device("cuda"))
    ran = 0
    for dtype in strategy.dtypes & {torch.float32, torch.float64, *HALVES}:
        A, B = normal(batch, m, k, dtype=dtype), normal(batch, k, n, dtype=dtype)
        C = normal(batch, m, n, dtype=dtype)
        heads = [x.movedim(0, 1).contiguous().movedim(1, 0) for x in (A, B, C)]
        odd = C.new_empty(batch, m * n + 3)[:, 3:].view(batch, m, n).copy_(C)
        calls = [
            (A, B, None, None), (A, B.mT.contiguous().mT, C, None), (*heads, None),
            (A[:1].expand(A.shape), B, C[:1].expand(C.shape), None),
            (A, B[:1].expand(B.shape), C[:, :1].expand(C.shape), C.mT.contiguous().mT),
            (A, B, C[:1, :1].expand(C.shape), None), (A, B, odd, C.clone()), (A, B, odd, odd),
            (A[..., 1:], B[:, 1:], C, None), (A[..., 1:].contiguous(), heads[1][:, 1:], None, odd),
        ]  # fmt: skip
        for a, b, c, out in calls:
            beta, before = (0.0, None) if c is None else (-0.5, c.clone())
            problem = problem_of(a, b, c, out, c is None)
            for candidate in strategy.candidates(problem, here)[:3]:
                run = strategy.bind(problem, here, candidate.kwargs)
                check(run(1.5, a, b, beta, c, out), 1.5, a, b, beta, before)
                ran += 1
                if out is c and out is not None:
                    out.copy_(before)
    if not ran:
        pytest.skip(f"{name} has nothing for these here")


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_nothing_waits_for_the_device(shape: tuple[int, int, int]) -> None:
    m, n, k = shape
    A, B, C = normal(m, k), normal(k, n), normal(m, n)
    X = A.clone().requires_grad_()
    gemm(1.5, X, B, 0.5, C).sum().backward()  # compiles what there is to compile
    autogemm.reload_tables()
    torch.cuda.synchronize()
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in ("cold", "warm"):
            for level in LEVELS:
                gemm(1.5, A, B, 0.5, C, precision=level)
            gemm(1.5, X, B, 0.5, C).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode(mode)


@pytest.mark.parametrize("cache", ["cold", "warm"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_calls_are_captured_into_a_graph_and_replayed(
    shape: tuple[int, int, int], cache: str
) -> None:
    m, n, k = shape
    A, B, C, D = normal(m, k), normal(k, n), normal(m, n), normal(m, n)
    if cache == "warm":
        gemm(1.5, A, B, 0.5, C)
        gemm_(1.5, A, B, 0.5, D.clone())
    else:
        autogemm.reload_tables()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = [gemm(1.5, A, B, 0.5, C, precision=level) for level in LEVELS]
        gemm_(1.5, A, B, 0.5, D)
        assert explain(1.5, A, B, 0.5, C).plan.mode == "graph"
    for _ in range(3):
        for x in (A, B, C):
            x.normal_()
        D.copy_(C)
        graph.replay()
        for level, result in zip(LEVELS, results, strict=True):
            check(result, 1.5, A, B, 0.5, C, level)
        check(D, 1.5, A, B, 0.5, C)


def test_a_training_step_is_captured_whole() -> None:
    W = normal(512, 256).requires_grad_()
    x, y = normal(2048, 512), normal(2048, 256)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            W.grad = None
            (gemm(1.0, x, W) - y).square().mean().backward()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    W.grad = None
    with torch.cuda.graph(graph):
        loss = (gemm(1.0, x, W) - y).square().mean()
        loss.backward()
    x.normal_()
    graph.replay()
    V = W.detach().double().requires_grad_()
    (x.double() @ V - y.double()).square().mean().backward()
    torch.testing.assert_close(W.grad.double(), V.grad, rtol=1e-4, atol=1e-6)


def test_work_goes_to_the_current_stream() -> None:
    operands = [(normal(1024, 1024), normal(1024, 1024)) for _ in range(4)]
    streams = [torch.cuda.Stream() for _ in operands]
    torch.cuda.synchronize()
    results = []
    for stream, (A, B) in zip(streams, operands, strict=True):
        with torch.cuda.stream(stream):
            torch.cuda._sleep(1_000_000)
            A.mul_(2)  # a product that did not wait would read the old A
            results.append(gemm(1.5, A, B))
    torch.cuda.synchronize()
    for (A, B), result in zip(operands, results, strict=True):
        check(result, 1.5, A, B)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_operands_decide_the_device() -> None:
    for where in ("cuda:1", "cuda:0"):
        A, B = normal(1024, 1024, where=where), normal(1024, 1024, where=where)
        X = A.clone().requires_grad_()
        result = gemm(1.5, X, B)
        assert str(result.device) == where
        result.sum().backward()
        check(result.detach(), 1.5, A, B)
    with pytest.raises(autogemm.InvalidProblem, match="one device for all"):
        gemm(1.0, normal(8, 8, where="cuda:0"), normal(8, 8, where="cuda:1"))


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_training_is_eager_training(mode: str) -> None:
    x, y = normal(1024, 512), normal(1024, 256)
    losses = []
    for compiled in (False, True):
        torch.manual_seed(0)
        W, V = (normal(*s).div_(20).requires_grad_() for s in ((512, 1024), (1024, 256)))

        def loss(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return (gemm(1.0, gemm(1.0, x, W).relu(), V) - y).square().mean()  # noqa: B023

        step = torch.compile(loss, mode=mode, fullgraph=True) if compiled else loss
        optimizer = torch.optim.SGD([W, V], lr=0.1)
        for _ in range(6):
            optimizer.zero_grad()
            value = step(x, y)
            value.backward()
            optimizer.step()
        losses.append(value.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_autocast_casts_and_a_stated_precision_does_not() -> None:
    A, B = normal(512, 512).requires_grad_(), normal(512, 512)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        assert gemm(1.0, A, B).dtype == torch.bfloat16
        exact = gemm(1.0, A, B, precision="highest")
        gemm(1.0, A, B).float().sum().backward()
    assert A.grad.dtype == torch.float32
    check(exact.detach(), 1.0, A.detach(), B)


def test_vmap_and_per_sample_gradients_agree_with_torch() -> None:
    x, W = normal(16, 64, 128), normal(128, 32)
    check(torch.vmap(lambda x: gemm(1.0, x, W))(x), 1.0, x, W)

    def loss(multiply, W, x):  # type: ignore[no-untyped-def]
        return multiply(x, W).tanh().sum()

    ours, torchs = (
        torch.vmap(torch.func.grad(lambda W, x, f=f: loss(f, W, x)), (None, 0))(W, x)
        for f in (lambda a, b: gemm(1.0, a, b), torch.matmul)
    )
    torch.testing.assert_close(ours, torchs, rtol=1e-4, atol=1e-4)


def test_threads_of_training_steps_get_right_gradients() -> None:
    def work(seed: int) -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            for turn in range(10):
                A, B = normal(256 + 64 * seed, 512), normal(512, 384)
                X = A.clone().requires_grad_()
                G = normal(256 + 64 * seed, 384)
                result = gemm(1.5, X, B, precision="highest")
                result.backward(G)
                torch.cuda.current_stream().synchronize()
                check(result.detach(), 1.5, A, B)
                check(X.grad, 1.5, G, B.t())
                if turn % 5 == 4:
                    autogemm.reload_tables()

    in_threads(work)


HALF = {
    "bm": 64, "bn": 64, "bk": 64, "warps": 4, "stages": 3, "slices": 1, "group": 8,
    "persistent": False,
}  # fmt: skip
EMULATED = {
    "method": "fp16x3", "bm": 64, "bn": 64, "bk": 64, "warps": 4, "stages": 3, "chunk": 256,
    "slices": 1, "group": 8,
}  # fmt: skip
FORMS = {
    "half": ("triton_gemm", HALF), "half sliced": ("triton_gemm", {**HALF, "slices": 4}),
    "half unaligned": ("triton_gemm", HALF),
    "half direct": ("triton_gemm", {**HALF, "reads": "direct"}),
    "continuous": ("emulated_fp32", {**EMULATED, "form": "continuous"}),
    "continuous sliced": ("emulated_fp32", {**EMULATED, "form": "continuous", "slices": 3}),
    "split": ("emulated_fp32", {**EMULATED, "form": "split", "slices": 3}),
    "fused": ("emulated_fp32", {**EMULATED, "form": "fused", "stages": 2, "slices": 3}),
    "streamed": ("emulated_fp32", {
        **EMULATED, "form": "streamed", "bm": 128, "bn": 128, "bk": 32, "warps": 8, "slices": 2,
    }),
    "tandem": ("emulated_fp32", {
        **EMULATED, "form": "tandem", "bm": 128, "bn": 128, "bk": 32, "warps": 8, "stages": 2,
        "slices": 2,
    }),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_repeated_calls_compute_what_they_are_given(
    form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the third call on its launches are repeated: eager, on another stream, in a graph."""
    replay = importlib.import_module("autogemm.kernels.replay")
    name, params = FORMS[form]
    dtype = torch.bfloat16 if form.startswith("half") else torch.float32
    m, n, k = (192, 160, 2049) if form in ("half unaligned", "half direct") else (192, 160, 2048)

    def operands() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return tuple(normal(*x, dtype=dtype) for x in ((m, k), (k, n), (m, n)))  # type: ignore[return-value]

    problem, here = problem_of(*operands(), None, False), device_of(torch.device("cuda"))
    reasons = BY_NAME[name].reasons_not(problem, here, params)
    if reasons:
        pytest.skip("; ".join(reasons))
    repeated: list[object] = []
    real = replay.Replay.__call__
    monkeypatch.setattr(
        replay.Replay, "__call__", lambda *given: repeated.append(0) or real(*given)
    )
    run = BY_NAME[name].bind(problem, here, params)
    for i, (alpha, beta) in enumerate(((1.0, 1.0), (1.5, 0.5), (-2.0, 3.0), (0.5, -0.0))):
        A, B, C = operands()
        check(run(alpha, A, B, beta, C, None), alpha, A, B, beta, C)
        assert len(repeated) == max(0, i - 1)
    out = torch.empty_like(C)
    for _ in range(3):
        A, B, C = operands()
        check(run(1.5, A, B, 0.5, C, out), 1.5, A, B, 0.5, C)
        before = C.clone()
        check(run(1.5, A, B, 0.5, C, C), 1.5, A, B, 0.5, before)
    side, before = torch.cuda.Stream(), len(repeated)
    with torch.cuda.stream(side):
        A, B, C = operands()
        found = run(1.5, A, B, 0.5, C, None)
    torch.cuda.current_stream().wait_stream(side)
    check(found, 1.5, A, B, 0.5, C)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = run(1.5, A, B, 0.5, C, None)
    assert len(repeated) == before + 2
    for x in (A, B, C):
        x.copy_(torch.randn_like(x))
    graph.replay()
    check(found, 1.5, A, B, 0.5, C)
