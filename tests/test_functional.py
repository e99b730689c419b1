"""``autogemm.linear`` computes what torch's does, by gemm exactly where that wins."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import invented
import pytest
import torch
from routed import every_product_tuned
from torch._dynamo.backends.common import aot_autograd
from torch.nn import functional as F

import autogemm
from autogemm import InvalidProblem, routing
from autogemm.grading import oracle as reference
from autogemm.precision import Tolerance

W, BIAS = torch.randn(32, 40), torch.randn(32)
SHAPES = [(40,), (1, 40), (24, 40), (2, 3, 40), (2, 3, 4, 40), (0, 40), (2, 0, 40)]


@pytest.fixture
def served() -> Iterator[list[torch.Size]]:
    with every_product_tuned() as shapes:
        yield shapes


@pytest.mark.parametrize("bias", [BIAS, None], ids=["bias", "no bias"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_any_leading_dimensions_give_what_torch_gives(
    shape: tuple[int, ...], bias: torch.Tensor | None, served: list[torch.Size]
) -> None:
    x = torch.randn(shape)
    expected = F.linear(x, W, bias)
    found = autogemm.linear(x, W, bias)
    torch.testing.assert_close(found, expected)
    assert found.stride() == expected.stride()
    assert found._is_view() == expected._is_view()
    assert bool(served) == (x.ndim > 1 and x.numel() > 0)


def test_the_result_keeps_the_contract(served: list[torch.Size]) -> None:
    x = torch.randn(24, 40)
    found = autogemm.linear(x, W, BIAS)
    assert served
    reference.check(found, 1.0, x, W.t(), 1.0, BIAS.expand(24, 32), Tolerance("highest"))


def test_an_untuned_call_is_torchs_own_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOGEMM_TUNING_DB", str(tmp_path))  # an empty one; others are far
    autogemm.reload_tables()
    monkeypatch.setattr(autogemm.functional, "gemm", None)  # calling it would fail
    monkeypatch.setattr(routing, "_is_tuned", lambda problem, device: False)
    for shape in SHAPES:
        x = torch.randn(shape)
        assert torch.equal(autogemm.linear(x, W, BIAS), F.linear(x, W, BIAS))
    monkeypatch.undo()
    autogemm.reload_tables()


def test_a_table_written_while_the_program_runs_is_followed_after_reload_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, w = torch.randn(24, 41), torch.randn(33, 41)
    A, B, C = routing_operands(x, w)
    problem = autogemm.problem.problem_of(A, B, C, None, False)
    monkeypatch.setenv("AUTOGEMM_TUNING_DB", str(tmp_path))
    autogemm.reload_tables()
    form = autogemm.functional._linear_form
    before = routing.wins(form, x, w, torch.zeros(33))
    for candidate in (invented.AXPBY, invented.FULL):
        invented.write_for_this_cpu(tmp_path, invented.always(candidate, problem))
        assert routing.wins(form, x, w, torch.zeros(33)) == before
        autogemm.reload_tables()
        before = routing.wins(form, x, w, torch.zeros(33))
        assert before == (candidate == invented.AXPBY)
    monkeypatch.undo()
    autogemm.reload_tables()


def routing_operands(
    x: torch.Tensor, w: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return x, w.t(), torch.zeros(w.shape[0]).expand(x.shape[0], w.shape[0])


def test_a_product_that_only_the_backward_wins_goes_to_gemm(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[int, int, int]] = []

    def tuned(problem: autogemm.problem.Problem, device: torch.device) -> bool:
        asked.append((problem.m, problem.n, problem.k))
        return (problem.m, problem.n, problem.k) == (40, 32, 24)

    monkeypatch.setattr(routing, "_is_tuned", tuned)
    autogemm.reload_tables()
    form = autogemm.functional._linear_form
    x = torch.randn(24, 40)
    assert not routing.wins(form, x, W)
    assert asked == [(24, 32, 40)]
    asked.clear()
    assert not routing.wins(form, x.requires_grad_(), W)
    assert asked == [(24, 32, 40), (24, 40, 32)]
    assert routing.wins(form, x, W.clone().requires_grad_())
    with torch.no_grad():
        assert not routing.wins(form, x, W.clone().requires_grad_())
    autogemm.reload_tables()


def test_gradients_and_gradients_of_gradients_are_torchs(served: list[torch.Size]) -> None:
    def function(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return autogemm.linear(x, w, b)

    made = {"dtype": torch.float64, "requires_grad": True}
    operands = (torch.randn(2, 3, 4, **made), torch.randn(5, 4, **made), torch.randn(5, **made))
    assert torch.autograd.gradcheck(function, operands)
    assert torch.autograd.gradgradcheck(function, operands)
    assert served


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("types", ["fff", "hff", "fhf", "dff", "fdf", "fff no bias"])
def test_autocast_casts_as_torch_does(
    dtype: torch.dtype, types: str, served: list[torch.Size]
) -> None:
    letters = {"f": torch.float32, "h": torch.bfloat16, "d": torch.float64}
    kinds = [letters[letter] for letter in types[:3]]
    operands = [
        torch.randn(shape, dtype=kind)
        for shape, kind in zip([(2, 3, 40), (32, 40), (32,)], kinds, strict=True)
    ]
    if "no bias" in types:
        operands.pop()
    for x in operands:
        x.requires_grad_()

    def run(function: object) -> tuple[object, ...]:
        with torch.autocast("cpu", dtype=dtype):
            try:
                y = function(*operands)  # type: ignore[operator]
            except RuntimeError as error:
                return (str(error),)
        return (y, *torch.autograd.grad(y.float().sum(), operands))

    expected, found = run(F.linear), run(autogemm.linear)
    assert bool(served) == ("d" not in types)
    if isinstance(expected[0], str):
        assert found == expected
        return
    for f, e in zip(found, expected, strict=True):
        torch.testing.assert_close(f, e, rtol=2e-2, atol=2e-2)
    with torch.autocast("cpu", enabled=False):
        if types.startswith("fff"):
            assert autogemm.linear(*operands).dtype == torch.float32


@pytest.mark.parametrize(
    "operands",
    [
        (torch.randn(3, 40), torch.randn(40)),
        (torch.randn(3, 40), W, torch.randn(())),
        (torch.randn(3, 40), W, torch.randn(1)),
        (torch.randn(3, 40), W, torch.randn(3, 32)),
        (torch.randn(3, 40, 2).transpose(1, 2), W),
        (torch.randn(3, 40).to_sparse(), W),
        (torch.ones(3, 40, dtype=torch.int64), torch.ones(32, 40, dtype=torch.int64)),
        (torch.randn(3, 40, device="meta"), W.to("meta"), BIAS.to("meta")),
    ],
    ids=["vector weight", "scalar bias", "short bias", "2-D bias", "no view", "sparse", "integers",
         "meta"],
)  # fmt: skip
def test_what_gemm_does_not_serve_stays_torchs(
    operands: tuple[torch.Tensor, ...], served: list[torch.Size]
) -> None:
    expected = F.linear(*operands)
    torch.testing.assert_close(autogemm.linear(*operands), expected)
    assert not served


@pytest.mark.parametrize(
    "operands",
    [
        (torch.randn(3, 41), W),
        (torch.randn(3, 40, dtype=torch.float64), W),
        (torch.randn(3, 40), W, torch.randn(33)),
        (torch.randn(3, 40), torch.randn(2, 32, 40)),
        (torch.randn(3, 40), W, torch.randn(32, dtype=torch.float64)),
    ],
    ids=["inner size", "mixed types", "bias size", "3-D weight", "bias type"],
)
def test_torchs_errors_are_kept(
    operands: tuple[torch.Tensor, ...], served: list[torch.Size]
) -> None:
    with pytest.raises(RuntimeError) as expected:
        F.linear(*operands)
    with pytest.raises(RuntimeError) as found:
        autogemm.linear(*operands)
    assert str(found.value) == str(expected.value)


class Noted(torch.Tensor):
    """A subclass that torch asks, as a distributed or quantized tensor would be."""


def test_a_tensor_subclass_stays_torchs(served: list[torch.Size]) -> None:
    found = autogemm.linear(torch.randn(3, 40).as_subclass(Noted), W, BIAS)
    assert type(found) is Noted
    assert not served


def test_transforms_follow_a_tuned_call(served: list[torch.Size]) -> None:
    x = torch.randn(5, 24, 40)
    mapped = torch.func.vmap(lambda x: autogemm.linear(x, W, BIAS))(x)
    torch.testing.assert_close(mapped, F.linear(x, W, BIAS))
    found = torch.func.grad(lambda w: autogemm.linear(x[0], w, BIAS).square().sum())(W)
    expected = torch.func.grad(lambda w: F.linear(x[0], w, BIAS).square().sum())(W)
    torch.testing.assert_close(found, expected)
    _, tangent = torch.func.jvp(lambda x: autogemm.linear(x, W, BIAS), (x[0],), (x[1],))
    torch.testing.assert_close(tangent, x[1] @ W.t())
    layer = autogemm.nn.Linear(40, 32)
    result = torch.func.functional_call(layer, {"weight": W, "bias": BIAS}, (x,))
    torch.testing.assert_close(result, F.linear(x, W, BIAS))
    assert served  # by the last, which is no transform


def test_inference_mode_serves_and_its_tensors_do(served: list[torch.Size]) -> None:
    with torch.inference_mode():
        x = torch.randn(24, 40)
        torch.testing.assert_close(autogemm.linear(x, W, BIAS), F.linear(x, W, BIAS))
    torch.testing.assert_close(autogemm.linear(x, W, BIAS), F.linear(x, W, BIAS))
    assert len(served) == 2


def test_the_compiler_traces_it_without_a_break(served: list[torch.Size]) -> None:
    compiled = torch.compile(
        lambda x: autogemm.linear(x, W, BIAS).relu(), fullgraph=True, backend="eager"
    )
    x = torch.randn(24, 40)
    torch.testing.assert_close(compiled(x), F.linear(x, W, BIAS).relu())


def test_tracers_and_dispatch_modes_see_torchs_own_call(served: list[torch.Size]) -> None:
    from torch.fx import symbolic_trace
    from torch.utils.flop_counter import FlopCounterMode

    x = torch.randn(24, 40)
    with FlopCounterMode(display=False) as counter:
        autogemm.linear(x, W, BIAS)
    assert counter.get_total_flops() == 2 * 24 * 32 * 40
    graph = symbolic_trace(autogemm.nn.Linear(40, 32))
    assert F.linear in {node.target for node in graph.graph.nodes}
    assert not served


def test_a_precision_always_goes_to_gemm(served: list[torch.Size]) -> None:
    for shape in SHAPES:
        x = torch.randn(shape)
        for bias in (BIAS, None):
            found = autogemm.linear(x, W, bias, precision="highest")
            torch.testing.assert_close(found, F.linear(x, W, bias))
    assert len(served) == 2 * len(SHAPES)
    with torch.autocast("cpu", dtype=torch.bfloat16):  # a stated precision is a promise
        narrow = autogemm.linear(x.bfloat16(), W, BIAS, precision="highest")
    torch.testing.assert_close(narrow, F.linear(x.bfloat16().float(), W, BIAS))


def test_what_precision_cannot_be_kept_for_is_refused() -> None:
    with pytest.raises(InvalidProblem, match="precision is 'exact'"):
        autogemm.linear(torch.randn(3, 40), W, precision="exact")
    with pytest.raises(InvalidProblem, match="dtype"):
        autogemm.linear(torch.ones(3, 4).int(), torch.ones(2, 4).int(), precision="highest")


def test_verdicts_are_bounded(served: list[torch.Size], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routing, "_MAX_VERDICTS", 4)
    for m in range(1, 12):
        autogemm.linear(torch.randn(m, 40), W, BIAS)
    assert len(routing._verdicts) <= 4
    assert len(served) == 11


class Graphs:
    """A backend that runs what it is given and keeps the operators."""

    def __init__(self) -> None:
        self.operators: set[str] = set()

    def __call__(self, module: torch.fx.GraphModule, inputs: object) -> object:
        self.operators |= {str(node.target) for node in module.graph.nodes if node.op[:4] == "call"}
        return module.forward


@pytest.mark.parametrize("bias", [BIAS, None], ids=["bias", "no bias"])
@pytest.mark.parametrize("wins", [True, False])
def test_a_compiled_call_becomes_the_operator_where_that_wins(
    bias: torch.Tensor | None, wins: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routing, "_is_tuned", lambda problem, device: wins)
    for x in (torch.randn(24, 40), torch.randn(2, 3, 40)):
        torch._dynamo.reset()
        graphs = Graphs()
        backend = aot_autograd(fw_compiler=graphs, bw_compiler=graphs)
        weight = W.clone().requires_grad_()
        compiled = torch.compile(autogemm.linear, backend=backend, fullgraph=True)
        found = compiled(x, weight, bias)
        torch.testing.assert_close(found, F.linear(x, W, bias))
        found.sum().backward()
        rows = x.flatten(0, -2)
        torch.testing.assert_close(weight.grad, torch.ones(len(rows), 32).t() @ rows)
        torchs = {"aten.addmm.default", "aten.mm.default"} & graphs.operators
        assert ("autogemm.gemm.default" in graphs.operators) == wins
        assert bool(torchs) != wins


def test_a_compiled_call_with_changing_sizes_and_autocast_is_right() -> None:
    with every_product_tuned():
        torch._dynamo.reset()
        compiled = torch.compile(autogemm.linear, backend="aot_eager", fullgraph=True)
        for rows in (24, 25, 26):
            x = torch.randn(rows, 40)
            torch.testing.assert_close(compiled(x, W, BIAS), F.linear(x, W, BIAS))

        @torch.compile(backend="aot_eager", fullgraph=True)
        def under_autocast(x: torch.Tensor) -> torch.Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return autogemm.linear(x, W, BIAS)

        found = under_autocast(x)
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found.float(), F.linear(x, W, BIAS), rtol=2e-2, atol=1e-1)
    torch._dynamo.reset()


def test_a_tuned_layer_is_compiled_inside_transforms() -> None:
    x = torch.randn(24, 40)
    with every_product_tuned():
        for transform in (
            lambda f: lambda x: torch.func.jvp(f, (x,), (x,))[1],
            lambda f: torch.func.grad(lambda x: f(x).sum()),
            torch.vmap,
        ):
            torch._dynamo.reset()
            ours, torchs = (
                torch.compile(
                    transform(lambda x, f=f: f(x, W, BIAS)), backend="aot_eager", fullgraph=True
                )(x)
                for f in (autogemm.linear, F.linear)
            )
            torch.testing.assert_close(ours, torchs)
    torch._dynamo.reset()
