"""Within ``override`` torch's products go through gemm where it wins, and mean what they meant."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from routed import every_product_tuned
from torch import nn
from torch.nn import functional as F

import autogemm
from autogemm import routing

Call = Callable[[], Any]


@pytest.fixture
def served() -> Iterator[list[torch.Size]]:
    with every_product_tuned() as shapes:
        yield shapes


A, B, C = torch.randn(5, 4), torch.randn(4, 3), torch.randn(5, 3)
ROW, COLUMN, SCALAR = torch.randn(3), torch.randn(5, 1), torch.randn(())
DEEP, DEEP_B, DEEP_C = torch.randn(2, 5, 4), torch.randn(2, 4, 3), torch.randn(2, 5, 3)
WIDE = torch.randn(5, 8)
CONJ = torch.randn(4, 5, dtype=torch.complex64).mH
HALF = A.bfloat16()


def at_equals() -> torch.Tensor:
    x = A.clone()
    x @= torch.ones(4, 4)
    return x


ROUTED: dict[str, Call] = {
    "mm": lambda: torch.mm(A, B),
    "mm by name": lambda: torch.mm(input=A, mat2=B),
    "mm as method": lambda: A.mm(B),
    "mm into out": lambda: torch.mm(A, B, out=torch.empty(5, 3)),
    "mm into a column-major out": lambda: torch.mm(A, B, out=torch.empty(3, 5).t()),
    "mm of transposes": lambda: torch.mm(B.t(), A.t()),
    "mm of a slice": lambda: torch.mm(WIDE[:, ::2], B),
    "mm of bfloat16": lambda: torch.mm(HALF, B.bfloat16()),
    "mm of complex": lambda: torch.mm(A.cfloat(), B.cfloat()),
    "mm of float64": lambda: torch.mm(A.double(), B.double()),
    "addmm": lambda: torch.addmm(C, A, B),
    "addmm of a row": lambda: torch.addmm(ROW, A, B),
    "addmm of a column": lambda: torch.addmm(COLUMN, A, B),
    "addmm as method": lambda: C.addmm(A, B, beta=0.5, alpha=2),
    "addmm that reads no input": lambda: torch.addmm(C * torch.nan, A, B, beta=0),
    "addmm into out": lambda: torch.addmm(C, A, B, out=torch.empty(5, 3)),
    "addmm_": lambda: C.clone().addmm_(A, B, beta=0.5),
    "addmm_ of a slice": lambda: torch.zeros(5, 8)[:, 1:4].addmm_(A, B),
    "matmul": lambda: torch.matmul(A, B),
    "matmul into out": lambda: torch.matmul(A, B, out=torch.empty(5, 3)),
    "linalg.matmul": lambda: torch.linalg.matmul(A, B),
    "@": lambda: A @ B,
    "@=": at_equals,
    "@ of 3-D and 2-D": lambda: DEEP @ B,
    "@ of 4-D and 2-D": lambda: DEEP[None] @ B,
    "@ of parameters": lambda: nn.Parameter(A) @ nn.Parameter(B),
    "linear": lambda: F.linear(DEEP, B.t(), ROW),
    "linear by name": lambda: F.linear(input=A, weight=B.t(), bias=None),
    "nn.Linear": lambda: nn.Linear(4, 3)(A) * 0,
    "attention": lambda: F.multi_head_attention_forward(
        DEEP, DEEP, DEEP, 4, 2, B.new_ones(12, 4), None, None, None, False, 0.0, A[:4], None
    )[0],
}

BATCHED: dict[str, Call] = {
    "bmm": lambda: torch.bmm(DEEP, DEEP_B),
    "bmm as method": lambda: DEEP.bmm(DEEP_B),
    "bmm into out": lambda: torch.bmm(DEEP, DEEP_B, out=torch.empty(2, 5, 3)),
    "baddbmm": lambda: torch.baddbmm(DEEP_C, DEEP, DEEP_B, beta=0.5, alpha=2),
    "baddbmm of a matrix": lambda: torch.baddbmm(C, DEEP, DEEP_B),
    "baddbmm_": lambda: DEEP_C.clone().baddbmm_(DEEP, DEEP_B),
    "@ of 3-D": lambda: DEEP @ DEEP_B,
    "@ of 4-D": lambda: DEEP[None] @ DEEP_B[None],
}

NOT_ROUTED: dict[str, Call] = {
    "matrix times vector": lambda: A @ B[:, 0],
    "vector times matrix": lambda: A[0] @ B,
    "vector times vector": lambda: A[0] @ A[1],
    "2-D times 3-D": lambda: A @ DEEP_B,
    "batches that broadcast": lambda: DEEP[:1] @ DEEP_B,
    "no view": lambda: torch.randn(2, 4, 5).transpose(1, 2) @ B * 0,
    "empty": lambda: torch.mm(A[:0], B),
    "empty sum": lambda: torch.mm(A[:, :0], B[:0]),
    "integers": lambda: torch.mm(A.int(), B.int()),
    "addmm of a number": lambda: torch.addmm(SCALAR, A, B),
    "alpha 0": lambda: torch.addmm(C, A * torch.nan, B, alpha=0),
    "tensor alpha": lambda: torch.addmm(C, A, B, alpha=torch.tensor(2.0)),
    "operands by name": lambda: torch.addmm(input=C, mat1=A, mat2=B),
    "conjugate": lambda: torch.mm(CONJ, CONJ.mT),
    "out of another shape": lambda: torch.mm(A, B, out=torch.empty(0)),
    "out of another type": lambda: torch.mm(A, B, out=torch.empty(5, 3, dtype=torch.float64)),
    "out that is an operand": lambda: torch.mm(
        torch.ones(4, 4), (x := torch.ones(4, 4)), out=x
    ),
    "sparse": lambda: torch.mm(A.to_sparse(), B),
    "sparse on the right": lambda: torch.mm(A, B.to_sparse()),
    "meta": lambda: torch.mm(A.to("meta"), B.to("meta")),
    "einsum": lambda: torch.einsum("ij,jk->ik", A, B),
    "bilinear": lambda: F.bilinear(A, A, torch.ones(2, 4, 4)),
}

ERRORS: dict[str, Call] = {
    "shapes": lambda: torch.mm(A, A),
    "types": lambda: torch.mm(A, B.double()),
    "a vector for mm": lambda: torch.mm(A, B[:, 0]),
    "input that does not broadcast": lambda: torch.addmm(torch.ones(4), A, B),
    "input of another type": lambda: torch.addmm(C.double(), A, B),
    "addmm_ that would grow": lambda: ROW.addmm_(A, B),
    "alpha that is no number": lambda: torch.addmm(C, A, B, alpha="1"),
    "complex alpha": lambda: torch.addmm(C, A, B, alpha=1j),
    "huge alpha": lambda: torch.addmm(C.half(), A.half(), B.half(), alpha=1e300),
    "unknown argument": lambda: torch.mm(A, B, beta=1),
    "too many": lambda: torch.mm(A, B, C),
    "too few": lambda: torch.mm(A),
    "no tensor": lambda: torch.mm(A, [[1.0]]),
    "out with gradient": lambda: torch.mm(A.requires_grad_(), B, out=torch.empty(5, 3)),
    "overlapping out": lambda: torch.mm(A, B, out=torch.empty(1, 3).expand(5, 3)),
    "leaf in place": lambda: torch.zeros(5, 3, requires_grad=True).addmm_(A, B),
    "4-D linear weight": lambda: F.linear(A, torch.ones(1, 1, 3, 4)),
}


def outcome(call: Call) -> tuple[Any, ...]:
    """What a call gives: its result, or its error; and its warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result = call()
        except Exception as error:
            return type(error), str(error), None
    return result, [str(w.message) for w in caught], None


def compare(call: Call) -> None:
    expected, expected_warnings, _ = outcome(call)
    with autogemm.override():
        found, found_warnings, _ = outcome(call)
    assert found_warnings == expected_warnings
    if not isinstance(expected, torch.Tensor):
        assert found == expected
        return
    assert isinstance(found, torch.Tensor), found
    tolerance = {"rtol": 2e-2, "atol": 1e-1} if expected.dtype == torch.bfloat16 else {}
    torch.testing.assert_close(found, expected, **tolerance)
    assert found.stride() == expected.stride()
    assert found._is_view() == expected._is_view()
    assert found.requires_grad == expected.requires_grad


@pytest.mark.parametrize("call", ROUTED.values(), ids=ROUTED)
def test_a_call_that_wins_is_served_by_gemm(call: Call, served: list[torch.Size]) -> None:
    compare(call)
    assert served


@pytest.mark.parametrize("call", BATCHED.values(), ids=BATCHED)
def test_a_batch_that_wins_is_served_by_gemm(call: Call, served: list[torch.Size]) -> None:
    compare(call)
    assert served


@pytest.mark.parametrize("call", NOT_ROUTED.values(), ids=NOT_ROUTED)
def test_what_gemm_would_not_do_alike_stays_torchs(
    call: Call, served: list[torch.Size]
) -> None:
    compare(call)
    assert not served


@pytest.mark.parametrize("call", ERRORS.values(), ids=ERRORS)
def test_errors_are_torchs(call: Call, served: list[torch.Size]) -> None:
    with pytest.raises(Exception):  # noqa: B017, PT011  # torch says which
        call()
    compare(call)
    A.requires_grad_(False)
    assert not served


@pytest.mark.parametrize("call", (ROUTED | BATCHED).values(), ids=ROUTED | BATCHED)
def test_a_call_that_does_not_win_is_torchs_own_bit_for_bit(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routing, "_is_tuned", lambda problem, device: False)
    autogemm.reload_tables()
    expected = call()
    with autogemm.override():
        assert torch.equal(call(), expected)
    monkeypatch.undo()
    autogemm.reload_tables()


def test_out_is_returned_and_its_version_counted(served: list[torch.Size]) -> None:
    out = torch.empty(5, 3)
    with autogemm.override():
        assert torch.mm(A, B, out=out) is out
        version = out._version
        assert out.addmm_(A, B) is out
        assert out._version > version
    with torch.inference_mode(), autogemm.override():
        torch.mm(A, B, out=torch.empty(5, 3))
    assert len(served) == 3


def test_autograd_follows_and_so_do_transforms(served: list[torch.Size]) -> None:
    def function(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        with autogemm.override():
            return torch.addmm(c, a, b, beta=0.5, alpha=2).square() @ b.t()

    made = {"dtype": torch.float64, "requires_grad": True}
    operands = (torch.randn(5, 4, **made), torch.randn(4, 3, **made), torch.randn(3, **made))
    assert torch.autograd.gradcheck(function, operands)
    assert torch.autograd.gradgradcheck(function, operands)
    assert served
    with autogemm.override():
        mapped = torch.func.vmap(lambda x: x @ B)(DEEP)
        jacobian = torch.func.jacrev(lambda x: x @ B)(A)
    torch.testing.assert_close(mapped, DEEP @ B)
    torch.testing.assert_close(jacobian, torch.func.jacrev(lambda x: x @ B)(A))


@pytest.mark.parametrize("name", ["mm", "addmm", "@", "@ of 3-D and 2-D", "linear", "mm of float64",
                                  "mm into out", "addmm_", "mm of complex"])  # fmt: skip
def test_autocast_is_torchs(name: str, served: list[torch.Size]) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        compare(ROUTED[name])
    assert bool(served) == (name not in ("mm into out", "addmm_"))


def test_it_nests_decorates_and_keeps_to_its_thread(served: list[torch.Size]) -> None:
    routed = autogemm.override()
    with routed, routed, autogemm.override():
        A @ B
    assert len(served) == 1
    A @ B
    assert len(served) == 1

    @autogemm.override()
    def multiply() -> torch.Tensor:
        return A @ B

    torch.testing.assert_close(multiply(), A @ B)
    assert len(served) == 2
    with autogemm.override():
        thread = threading.Thread(target=lambda: A @ B)
        thread.start()
        thread.join()
    assert len(served) == 2


def test_gemm_within_it_runs_the_plan_it_runs_outside(served: list[torch.Size]) -> None:
    """A strategy's own torch.mm is no program's product: it must not be looked up again."""
    expected = autogemm.gemm(1.0, A, B)
    with autogemm.override():
        assert torch.equal(autogemm.gemm(1.0, A, B), expected)
        assert torch.equal(autogemm.linear(A, B.t()), expected)
    assert served == [(5, 3)]  # linear's; gemm itself is not counted


class Noted(torch.Tensor):
    """A subclass that answers for itself."""


def test_subclasses_and_other_modes_answer_for_themselves(served: list[torch.Size]) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    with autogemm.override():
        assert type(A.as_subclass(Noted) @ B) is Noted
        with FlopCounterMode(display=False) as counter:
            A @ B
        assert counter.get_total_flops() == 2 * 5 * 4 * 3
        with torch.device("meta"):
            assert (torch.empty(5, 4) @ torch.empty(4, 3)).is_meta
    assert not served


def test_the_compiler_traces_through_it(served: list[torch.Size]) -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        return torch.addmm(ROW, x, B) @ B.t()

    expected = function(A)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    with autogemm.override():
        torch.testing.assert_close(compiled(A), expected)

    def within(x: torch.Tensor) -> torch.Tensor:
        with autogemm.override():
            return function(x)

    compiled = torch.compile(within, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(A), expected)


@pytest.mark.parametrize("training", [True, False])
def test_torchs_transformer_agrees_with_itself(training: bool, served: list[torch.Size]) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0).train(training)
    x = torch.randn(5, 3, 8)
    expected = layer(x)
    with autogemm.override():
        found = layer(x)
        found.sum().backward()
    torch.testing.assert_close(found, expected)
    assert len(served) == 4  # the packed projection, the output's, and two linear layers
