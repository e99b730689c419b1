"""Problem: the checks of a caller's arguments, and the facts that choices depend on."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator
from dataclasses import FrozenInstanceError, replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch.autograd import forward_ad

from autogemm.aliasing import overlap, overlaps_itself, same_view
from autogemm.arguments import as_scalar, check_operands
from autogemm.errors import AutogemmError, InvalidProblem
from autogemm.problem import (
    DTYPE_NAMES,
    DTYPES,
    LAYOUTS,
    _layout,
    contiguous_problem,
    is_watched,
    layout_of,
    problem_of,
    result_shape,
)


def message_of(A: object, B: object, C: object = None, out: object = None, **kwargs: bool) -> str:
    """What check_operands says against the operands."""
    with pytest.raises(InvalidProblem) as refusal:
        check_operands(A, B, C, out, beta_is_zero=kwargs.get("beta_is_zero", C is None))
    return str(refusal.value)


def assert_says(message: str, *words: str) -> None:
    for word in words:
        assert word in message, f"{word!r} is not in {message!r}"


# -------------------------------------------------------------------------------- operands

A, B, C = torch.ones(2, 3), torch.ones(3, 4), torch.ones(2, 4)


@pytest.mark.parametrize("dtype", list(DTYPES.values()), ids=list(DTYPES))
def test_operands_that_form_a_product_pass(dtype: torch.dtype) -> None:
    a, b, c = (x.to(dtype) for x in (A, B, C))
    check_operands(a, b, None, None, beta_is_zero=True)
    check_operands(a, b, c, None, beta_is_zero=False)
    check_operands(a, b, c, None, beta_is_zero=True)
    check_operands(a, b, c, torch.empty_like(c), beta_is_zero=False)
    check_operands(a, b, c, c, beta_is_zero=False)
    check_operands(a, b, c[:1].expand(2, 4), None, beta_is_zero=False)
    check_operands(a, b, c[:, :1].expand(2, 4), None, beta_is_zero=False)
    check_operands(b.t(), a.t(), c.t(), c.t(), beta_is_zero=False)
    check_operands(a[:0], b, c[:0], c[:0], beta_is_zero=False)
    check_operands(a[:, :0], b[:0], c, None, beta_is_zero=False)


def test_a_refusal_is_a_value_error_and_an_autogemm_error() -> None:
    with pytest.raises(ValueError, match="A is a list") as refusal:
        check_operands([[1.0]], B, None, None, beta_is_zero=True)
    assert isinstance(refusal.value, AutogemmError)


@pytest.mark.parametrize("name", ["A", "B", "C", "out"])
@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda x: x.numpy(), ["ndarray", "2-D torch.Tensor", "torch.as_tensor(NAME)"]),
        (lambda x: x.tolist(), ["list", "2-D torch.Tensor", "torch.as_tensor(NAME)"]),
        (lambda x: x.to_sparse(), ["torch.sparse_coo", "dense", "NAME.to_dense()"]),
        (lambda x: x[0], ["1 dimensions", "expected 2", "NAME.unsqueeze(0)", "NAME.unsqueeze(1)"]),
        (lambda x: x[0, 0], ["0 dimensions", "shape ()", "expected 2", "Reshape"]),
        (lambda x: x.to("meta"), ["on meta", "CPU or CUDA", "NAME.cpu()", "NAME.cuda()"]),
    ],
    ids=["array", "list", "sparse", "vector", "scalar", "meta"],
)
def test_anything_but_a_dense_matrix_is_refused_with_its_remedy(
    name: str, spoil: object, words: list[str]
) -> None:
    operands = {"A": A, "B": B, "C": C, "out": torch.empty(2, 4)}
    operands[name] = spoil(operands[name])  # type: ignore[operator]
    message = message_of(*operands.values(), beta_is_zero=False)
    assert_says(message, *(word.replace("NAME", name) for word in words))
    assert message.startswith(f"{name} ")


def test_a_missing_A_or_B_is_named() -> None:
    assert_says(message_of(None, B), "A is a NoneType", "expected a 2-D torch.Tensor")
    assert_says(message_of(A, None), "B is a NoneType", "expected a 2-D torch.Tensor")


@pytest.mark.parametrize(
    "dtype", [torch.int32, torch.int8, torch.bool, torch.float8_e4m3fn], ids=str
)
def test_a_dtype_without_products_is_refused_with_those_that_have_them(dtype: torch.dtype) -> None:
    message = message_of(A.to(dtype), B.to(dtype))
    assert_says(message, "A has dtype", str(dtype), *DTYPES, "A.float()")


@pytest.mark.parametrize("name", ["B", "C", "out"])
def test_operands_of_two_dtypes_are_refused(name: str) -> None:
    operands = {"A": A, "B": B, "C": C, "out": torch.empty(2, 4)}
    operands[name] = operands[name].double()
    message = message_of(*operands.values(), beta_is_zero=False)
    assert_says(message, f"{name} has dtype torch.float64", "A has torch.float32", "one dtype")
    assert_says(message, f"{name}.to(A.dtype)")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a second device")
@pytest.mark.parametrize("name", ["B", "C", "out"])
def test_operands_on_two_devices_are_refused(name: str) -> None:
    operands = {"A": A, "B": B, "C": C, "out": torch.empty(2, 4)}
    operands[name] = operands[name].cuda()
    message = message_of(*operands.values(), beta_is_zero=False)
    assert_says(message, f"{name} is on cuda:0", "A is on cpu", f"{name}.to(A.device)")


def test_inner_sizes_that_differ_are_refused_with_the_likely_intention() -> None:
    message = message_of(torch.ones(2, 3), torch.ones(4, 5))
    assert_says(message, "(2, 3)", "(4, 5)", "A's columns (3)", "B's rows (4)")
    assert "Did you mean" not in message
    assert_says(message_of(torch.ones(2, 3), torch.ones(4, 3)), "Did you mean B.t()?")
    assert_says(message_of(torch.ones(3, 2), torch.ones(3, 4)), "Did you mean A.t()?")


def test_a_missing_C_is_refused_unless_beta_is_zero() -> None:
    assert_says(
        message_of(A, B, None, beta_is_zero=False), "C is missing", "(2, 4)", "Pass C", "beta=0"
    )


@pytest.mark.parametrize("shape", [(1, 4), (2, 1), (1, 1)])
def test_a_C_that_would_broadcast_is_refused_and_expand_is_named(shape: tuple[int, int]) -> None:
    message = message_of(A, B, torch.ones(shape))
    assert_says(message, f"C is {shape}", "expected (2, 4)", "not broadcast", "C.expand(2, 4)")


@pytest.mark.parametrize("shape", [(4, 2), (3, 4), (2, 5), (1, 3)])
def test_a_C_of_another_shape_is_refused_even_where_beta_is_zero(shape: tuple[int, int]) -> None:
    for beta_is_zero in (True, False):
        message = message_of(A, B, torch.ones(shape), beta_is_zero=beta_is_zero)
        assert_says(message, f"C is {shape}", "expected (2, 4)", "the shape of A·B")
        assert "expand" not in message


@pytest.mark.parametrize("shape", [(4, 2), (1, 4), (2, 1), (2, 5)])
def test_an_out_of_another_shape_is_refused(shape: tuple[int, int]) -> None:
    message = message_of(A, B, C, torch.ones(shape))
    assert_says(message, f"out is {shape}", "expected (2, 4)", "Allocate out", "leave it away")


# --------------------------------------------------------------------------------- batches


@pytest.mark.parametrize("batch", [(5,), (2, 3), (0,), (1,)])
def test_batches_that_form_products_pass(batch: tuple[int, ...]) -> None:
    a, b, c = (torch.ones(*batch, *x.shape) for x in (A, B, C))
    for left, right in ((a, b), (a, B), (A, b)):
        assert result_shape(left, right) == (*batch, 2, 4)
        check_operands(left, right, None, None, beta_is_zero=True)
        check_operands(left, right, c, None, beta_is_zero=False)
        check_operands(left, right, c, c, beta_is_zero=False)
        check_operands(left, right, C.expand(*batch, 2, 4), torch.empty_like(c), beta_is_zero=False)
    assert result_shape(A, B) == (2, 4)


def test_leading_dimensions_that_differ_are_refused_and_expand_is_named() -> None:
    message = message_of(torch.ones(5, 2, 3), torch.ones(6, 3, 4))
    assert_says(message, "(5, 2, 3)", "(6, 3, 4)", "leading dimensions (5,)", "B's (6,)", "2-D")
    assert "expand" not in message
    message = message_of(torch.ones(5, 2, 3), torch.ones(1, 3, 4))
    assert_says(message, "not broadcast", "pass B.expand(5, 3, 4).")
    assert "A.expand" not in message
    message = message_of(torch.ones(5, 1, 2, 3), torch.ones(6, 3, 4))
    assert_says(message, "pass A.expand(5, 6, 2, 3) and B.expand(5, 6, 3, 4).")


def test_inner_sizes_of_a_batch_that_differ_are_refused_with_the_likely_intention() -> None:
    message = message_of(torch.ones(5, 2, 3), torch.ones(5, 4, 3))
    assert_says(message, "A's columns (3)", "B's rows (4)", "Did you mean B.mT?")
    assert_says(message_of(torch.ones(5, 3, 2), torch.ones(3, 4)), "Did you mean A.mT?")
    assert_says(message_of(torch.ones(5, 2, 3), torch.ones(4, 3)), "Did you mean B.t()?")


@pytest.mark.parametrize("shape", [(2, 4), (1, 2, 4), (5, 1, 4), (4,), (5, 5, 2, 4), (6, 2, 4)])
def test_a_C_or_out_that_is_no_batch_of_the_results_is_refused(shape: tuple[int, ...]) -> None:
    batch, c = torch.ones(5, 2, 3), torch.ones(shape)
    message = message_of(batch, B, c)
    if len(shape) > 1:
        assert_says(message, f"C is {shape}", "expected (5, 2, 4)", "the shape of A·B")
        fits = shape in ((2, 4), (1, 2, 4), (5, 1, 4))
        assert ("pass C.expand(5, 2, 4)" in message) == fits
        assert_says(message_of(batch, B, None, c), f"out is {shape}", "expected (5, 2, 4)")
    assert_says(message_of(A, B, torch.ones(1, 2, 4)), "C is (1, 2, 4)", "expected (2, 4)")


def test_a_batch_of_operands_is_a_problem_of_each_matrix() -> None:
    a, b, c = (torch.ones(5, *x.shape) for x in (A, B, C))
    problem = problem_of(a, b, c, None, False)
    assert problem == replace(problem_of(A, B, C, None, False), batch=5)
    assert problem == contiguous_problem(2, 4, 3, torch.float32, device_type="cpu", batch=5)
    assert str(problem) == "float32 5x 2x4x3 (row x row -> row, add)"
    shared = problem_of(A.expand(5, 2, 3), torch.ones(5, 4, 3).mT, c, torch.ones(5, 4, 2).mT, False)
    assert (shared.a, shared.b, shared.out) == ("row", "col", "col")


def test_in_a_batch_a_bias_is_one_row_for_all_matrices() -> None:
    def update(C: torch.Tensor, out: torch.Tensor | None = None) -> str:
        return problem_of(torch.ones(5, 2, 3), torch.ones(5, 3, 4), C, out, False).update

    fresh, row, rows = torch.ones(5, 2, 4), torch.ones(4), torch.ones(5, 1, 4)
    assert update(row.expand(5, 2, 4)) == "bias"
    assert update(rows.expand(5, 2, 4)) == "add"
    assert update(C.expand(5, 2, 4)) == "add"
    assert update(fresh) == "add"
    assert update(fresh, fresh.view(5, 2, 4)) == "inplace"


def test_a_batch_counts_the_work_of_all_its_matrices() -> None:
    one = contiguous_problem(2, 3, 5, torch.float32)
    many = replace(one, batch=7)
    assert many.flops == 7 * one.flops
    for update in ("none", "add", "inplace"):
        each = replace(one, update=update).min_bytes
        assert replace(many, update=update).min_bytes == 7 * each
    assert replace(many, update="bias").min_bytes == replace(many, update="none").min_bytes + 12


@pytest.mark.parametrize(
    ("strides", "layout"),
    [((64, 8, 1), "row"), ((0, 8, 1), "row"), ((66, 8, 1), "row-unaligned"),
     ((65, 1, 8), "col-unaligned"), ((65, 16, 2), "strided")],
)  # fmt: skip
def test_on_a_gpu_the_matrices_of_a_batch_must_begin_at_multiples_of_16_bytes(
    strides: tuple[int, ...], layout: str
) -> None:
    assert _layout((3, 8, 8), strides, 0, 4, "cuda") == layout
    assert _layout((3, 8, 8), strides, 0, 4, "cpu") == layout.removesuffix("-unaligned")


def offsets(x: torch.Tensor) -> list[int]:
    """The address of every element, counted in elements."""
    steps = [range(0, extent * stride, stride) if stride else [0] * extent
             for extent, stride in zip(x.shape, x.stride(), strict=True)]  # fmt: skip
    return [x.storage_offset() + sum(at) for at in itertools.product(*steps)]


def random_batches(count: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Pairs of views of one buffer: blocks of one batch, in any order of dimensions, and others."""
    rng, buffer = random.Random(3), torch.zeros(4000)
    for _ in range(count):
        inner = rng.choice((1, 2))
        strides = [inner, inner * rng.randint(3, 9)]
        strides.append(strides[1] * rng.randint(2, 5))
        views = []
        for _ in range(2):
            own = strides if rng.random() < 0.8 else [rng.randint(0, 40) for _ in range(3)]
            order = rng.sample(range(3), 3)
            shape = [rng.randint(1, 4) for _ in range(3)]
            views.append(
                buffer.as_strided(
                    [shape[i] for i in order], [own[i] for i in order], rng.randint(0, 60)
                )
            )
        yield views[0], views[1]


def test_an_overlap_of_batches_is_never_missed_and_seldom_suspected() -> None:
    shared = apart = suspected = 0
    for x, y in random_batches(5_000):
        truth = not set(offsets(x)).isdisjoint(offsets(y))
        found = overlap(x, y)
        assert found or not truth, (x.shape, x.stride(), x.storage_offset(), y.shape, y.stride())
        shared, apart = shared + truth, apart + (not truth)
        suspected += found and not truth
    assert min(shared, apart) > 400
    assert suspected < apart


def test_parts_of_one_batch_are_no_overlap() -> None:
    batch = torch.zeros(3, 8, 8)
    left, right, trailing = batch[:, :, :3], batch[:, :3, 3:], batch[:, 3:, 3:]
    check_operands(left[:, 3:], right, trailing, trailing, beta_is_zero=False)
    assert not overlap(batch[0], batch[1])
    assert not overlap(batch[::2], batch[1::2])
    assert not overlap(left[:, 3:].mT, trailing)
    assert overlap(batch[:2], batch[1:])
    heads = torch.zeros(3, 5, 4, 6)  # batch, tokens, heads, width
    assert not overlap(heads[:, :, 0], heads[:, :, 1])
    assert overlap(heads[:, :, :2], heads[:, :, 1])


def test_a_batch_that_overlaps_itself_is_found() -> None:
    for strides in itertools.product(range(9), repeat=3):
        x = torch.zeros(200).as_strided((2, 3, 2), strides)
        at = offsets(x)
        found = overlaps_itself(tuple(x.shape), x.stride())
        assert found or len(set(at)) == len(at), strides
        nested = sorted(strides)[1] > sorted(strides)[0] * 2 > 0
        if nested and sorted(strides)[2] > 6 * sorted(strides)[1]:
            assert not found, strides
    assert not overlaps_itself((5, 2, 4), (8, 4, 1))
    assert not overlaps_itself((5, 2, 4), (4, 20, 1))
    assert not overlaps_itself((0, 2, 4), (0, 0, 0))
    message = message_of(torch.ones(5, 2, 3), B, None, torch.ones(2, 4).expand(5, 2, 4))
    assert_says(message, "strides", "share one address", "clone")


# ------------------------------------------------------------------------------------- out


@pytest.mark.parametrize("name", ["A", "B", "C"])
def test_an_out_that_overlaps_an_operand_is_refused(name: str) -> None:
    buffer = torch.ones(200)
    operands = {"A": A, "B": B, "C": C}
    rows, cols = operands[name].shape
    operands[name] = buffer[: rows * cols].view(rows, cols)
    out = buffer[3 : 3 + 8].view(2, 4)
    message = message_of(*operands.values(), out)
    assert_says(message, f"out shares memory with {name}", "separate tensor")
    assert_says(message, "Pass exactly C" if name == "C" else "leave out away")
    far = buffer[100:108].view(2, 4)
    check_operands(*operands.values(), far, beta_is_zero=False)


def test_a_square_A_or_B_is_no_place_for_the_result() -> None:
    square = torch.ones(3, 3)
    assert_says(message_of(square, torch.ones(3, 3), None, square), "shares memory with A")
    assert_says(message_of(torch.ones(3, 3), square, None, square), "shares memory with B")
    assert_says(message_of(square, torch.ones(3, 3), None, square.t()), "shares memory with A")


def test_an_out_that_is_C_read_another_way_is_refused() -> None:
    square, other = torch.ones(3, 3), torch.ones(3, 3)
    message = message_of(other, other, square, square.t())
    assert_says(message, "out shares memory with C", "Pass exactly C")
    waves = torch.ones(3, 3, dtype=torch.complex64)
    other = torch.ones(3, 3, dtype=torch.complex64)
    assert_says(message_of(other, other, waves, waves.conj()), "out shares memory with C")
    check_operands(other, other, waves.conj(), waves.conj(), beta_is_zero=False)


def test_blocks_of_one_matrix_are_no_overlap() -> None:
    """The step of a blocked Cholesky factorisation: the trailing block minus L21 L21^T."""
    matrix = torch.ones(8, 8)
    left, trailing = matrix[3:, :3], matrix[3:, 3:]
    check_operands(left, left.t(), trailing, trailing, beta_is_zero=False)
    check_operands(left, matrix[:3, 3:], trailing, trailing, beta_is_zero=False)
    assert_says(message_of(matrix[2:7, :3], left.t(), trailing, matrix[3:, 2:7]), "memory with A")


@pytest.mark.parametrize(
    ("shape", "strides"), [((2, 4), (0, 1)), ((2, 4), (1, 0)), ((2, 4), (1, 1)), ((2, 4), (3, 1))]
)
def test_an_out_whose_elements_share_addresses_is_refused(
    shape: tuple[int, int], strides: tuple[int, int]
) -> None:
    out = torch.ones(20).as_strided(shape, strides)
    assert_says(message_of(A, B, None, out), "strides", str(strides), "share one address", "clone")


@pytest.mark.parametrize("strides", [(4, 1), (1, 2), (1, 7), (2, 5), (5, 1), (3, 2)])
def test_an_out_whose_elements_are_apart_is_taken(strides: tuple[int, int]) -> None:
    out = torch.ones(40).as_strided((2, 4), strides)
    assert len({i * strides[0] + j * strides[1] for i in range(2) for j in range(4)}) == 8
    check_operands(A, B, None, out, beta_is_zero=True)


def test_out_is_refused_where_autograd_would_have_to_follow_the_write() -> None:
    out = torch.empty(2, 4)
    for name in ("A", "B", "C"):
        operands = {"A": A, "B": B, "C": C}
        operands[name] = operands[name].clone().requires_grad_()
        message = message_of(*operands.values(), out)
        assert_says(message, "requires grad", "Leave out away", "torch.no_grad()")
        with torch.no_grad():
            check_operands(*operands.values(), out, beta_is_zero=False)
        check_operands(*operands.values(), None, beta_is_zero=False)
    leaf = torch.empty(2, 4, requires_grad=True)
    assert_says(message_of(A, B, C, leaf), "requires grad", "torch.no_grad()")


def test_an_inference_tensor_is_an_out_in_inference_mode_only() -> None:
    with torch.inference_mode():
        out = torch.empty(2, 4)
        check_operands(A, B, C, out, beta_is_zero=False)
    message = message_of(A, B, C, out)
    assert_says(message, "inference tensor", "out.clone()", "inference_mode")


# --------------------------------------------------------------------------------- scalars


@pytest.mark.parametrize("value", [2, 2.0, np.float32(2), np.int64(2), np.array(2.0)])
def test_a_number_in_any_clothes_becomes_a_float(value: object) -> None:
    for given in (value, torch.tensor(2), torch.tensor(2.0, dtype=torch.float64)):
        number = as_scalar("alpha", given, torch.float32)
        assert type(number) is float
        assert number == 2.0


def test_a_tensor_scalar_of_any_width_keeps_its_value() -> None:
    assert as_scalar("beta", torch.tensor(0.1, dtype=torch.float64), torch.float32) == 0.1
    assert as_scalar("beta", torch.tensor(1 + 2j), torch.complex64) == 1 + 2j
    assert as_scalar("beta", np.complex64(1 + 2j), torch.complex128) == 1 + 2j
    assert math.isnan(as_scalar("beta", math.nan, torch.float32))  # type: ignore[arg-type]
    assert as_scalar("beta", -math.inf, torch.float32) == -math.inf


@pytest.mark.parametrize("name", ["alpha", "beta"])
@pytest.mark.parametrize(
    ("value", "words"),
    [
        (torch.ones(1), ["tensor of shape (1,)", "0-d CPU tensor", "Pass NAME as a number"]),
        (torch.ones((), device="meta"), ["tensor on meta", "synchronise", "NAME.item()"]),
        (torch.ones((), requires_grad=True), ["requires grad", "constant", "NAME.item()"]),
        ("1", ["a str", "expected a Python number", "as a float"]),
        (None, ["a NoneType", "expected a Python number", "as a float"]),
        (True, ["a bool", "expected a Python number"]),
        (np.bool_(True), ["a bool", "expected a Python number"]),
        (torch.tensor(True), ["a bool", "expected a Python number"]),
        (np.ones(1), ["ndarray", "expected a Python number"]),
        ([1.0], ["a list", "expected a Python number"]),
        (Fraction(1, 3), ["a Fraction", "expected a Python number", "as a float"]),
        (1 + 2j, ["complex", "(1+2j)", "float32", "real NAME"]),
        (1 + 0j, ["complex", "float32", "real NAME"]),
        (torch.tensor(2j), ["complex", "float32", "real NAME"]),
        (10**400, ["integer too large", "1.79769e+308"]),
    ],
    ids=lambda x: type(x).__name__ if not isinstance(x, list) else "",
)
def test_a_scalar_that_is_no_number_is_refused(name: str, value: object, words: list[str]) -> None:
    with pytest.raises(InvalidProblem) as refusal:
        as_scalar(name, value, torch.float32)
    assert_says(str(refusal.value), name, *(word.replace("NAME", name) for word in words))


def test_a_scalar_that_requires_grad_is_read_where_grad_is_off() -> None:
    with torch.no_grad():
        assert as_scalar("alpha", torch.ones((), requires_grad=True), torch.float32) == 1.0


# --------------------------------------------------------------------------------- layouts


def strided(shape: tuple[int, int], strides: tuple[int, int]) -> torch.Tensor:
    return torch.zeros(500).as_strided(shape, strides)


@pytest.mark.parametrize(
    ("shape", "strides", "layout"),
    [
        ((3, 4), (4, 1), "row"),
        ((3, 4), (9, 1), "row"),
        ((3, 4), (1, 3), "col"),
        ((3, 4), (1, 9), "col"),
        ((3, 4), (8, 2), "strided"),
        ((3, 4), (2, 6), "strided"),
        ((3, 4), (0, 1), "strided"),
        ((3, 4), (1, 0), "strided"),
        ((3, 4), (0, 0), "strided"),
        ((3, 4), (1, 1), "strided"),  # overlapping windows
        ((3, 4), (3, 1), "strided"),
        ((1, 4), (4, 1), "row"),
        ((1, 4), (0, 1), "row"),
        ((1, 4), (1, 1), "row"),
        ((1, 4), (77, 1), "row"),
        ((1, 4), (0, 0), "strided"),
        ((3, 1), (1, 1), "row"),
        ((3, 1), (1, 3), "row"),
        ((3, 1), (7, 1), "row"),
        ((3, 1), (0, 0), "strided"),
        ((1, 1), (0, 0), "row"),
        ((1, 1), (5, 7), "row"),
        ((0, 4), (4, 1), "row"),
        ((3, 0), (1, 1), "row"),
    ],
)
def test_the_layout_follows_from_shape_and_strides(
    shape: tuple[int, int], strides: tuple[int, int], layout: str
) -> None:
    assert layout_of(strided(shape, strides)) == layout
    assert layout in LAYOUTS


def test_every_layout_that_is_not_strided_can_be_handed_to_blas() -> None:
    """A row (column) layout has unit inner stride and a leading dimension no shorter than it."""
    for shape in itertools.product((1, 2, 3), repeat=2):
        for strides in itertools.product(range(5), repeat=2):
            layout = layout_of(strided(shape, strides))
            if layout == "strided":
                continue
            rows, cols = shape
            inner, outer = (1, 0) if layout == "row" else (0, 1)
            assert shape[inner] == 1 or strides[inner] == 1
            assert shape[outer] == 1 or strides[outer] >= max(
                1, cols if layout == "row" else rows
            ), (shape, strides, layout)


@pytest.mark.parametrize(
    ("shape", "strides", "pointer", "layout"),
    [
        ((8, 8), (8, 1), 0, "row"),
        ((8, 8), (1, 8), 4096, "col"),
        ((8, 8), (8, 1), 8, "row-unaligned"),  # pointer
        ((8, 8), (1, 8), 4, "col-unaligned"),
        ((8, 8), (9, 1), 0, "row-unaligned"),  # leading dimension
        ((8, 8), (12, 1), 0, "row"),
        ((8, 7), (8, 1), 0, "row-unaligned"),  # contiguous extent
        ((7, 8), (8, 1), 0, "row"),
        ((7, 8), (1, 8), 0, "col-unaligned"),
        ((8, 7), (1, 8), 0, "col"),
        ((8, 8), (16, 2), 0, "strided"),
        ((8, 8), (0, 1), 0, "strided"),
    ],
)
def test_on_a_gpu_pointer_leading_dimension_and_extent_must_be_aligned(
    shape: tuple[int, int], strides: tuple[int, int], pointer: int, layout: str
) -> None:
    assert _layout(shape, strides, pointer, 4, "cuda") == layout
    assert _layout(shape, strides, pointer, 4, "cpu") == layout.removesuffix("-unaligned")


@pytest.mark.parametrize("dtype", list(DTYPES.values()), ids=list(DTYPES))
def test_alignment_is_counted_in_bytes(dtype: torch.dtype) -> None:
    step = 16 // dtype.itemsize
    assert contiguous_problem(5, step, step, dtype).a == "row"
    assert contiguous_problem(5, step, 3 * step, dtype).a == "row"
    if step > 1:
        assert contiguous_problem(5, step, step + 1, dtype).a == "row-unaligned"
        assert contiguous_problem(5, step + 1, step, dtype).out == "row-unaligned"
        assert contiguous_problem(step, 4, 5, dtype, a="col").a == "col"
        assert contiguous_problem(step + 1, 4, 5, dtype, a="col").a == "col-unaligned"


# --------------------------------------------------------------------------------- problems


def allocated(order: str, rows: int, cols: int, dtype: torch.dtype) -> torch.Tensor:
    if order == "row":
        return torch.empty(rows, cols, dtype=dtype)
    return torch.empty(cols, rows, dtype=dtype).t()


@pytest.mark.parametrize("dtype", list(DTYPES.values()), ids=list(DTYPES))
def test_a_contiguous_problem_is_what_fresh_operands_form(dtype: torch.dtype) -> None:
    for m, n, k in itertools.product((0, 1, 2, 7, 16), repeat=3):
        for a, b in itertools.product(("row", "col"), repeat=2):
            left = (
                torch.empty(m, k, dtype=dtype) if a == "row" else torch.empty(k, m, dtype=dtype).t()
            )
            right = (
                torch.empty(k, n, dtype=dtype) if b == "row" else torch.empty(n, k, dtype=dtype).t()
            )
            fresh = problem_of(left, right, torch.empty(m, n, dtype=dtype), None, False)
            made = contiguous_problem(m, n, k, dtype, a=a, b=b, device_type="cpu")
            assert fresh == made
            assert hash(fresh) == hash(made)


def test_the_update_says_what_becomes_of_C() -> None:
    def update(C: torch.Tensor | None, out: torch.Tensor | None = None, zero: bool = False) -> str:
        return problem_of(A, B, C, out, zero).update

    fresh, row = torch.ones(2, 4), torch.ones(1, 4)
    assert update(None, zero=True) == "none"
    assert update(C, zero=True) == "none"
    assert update(C, C, zero=True) == "none"
    assert update(C) == "add"
    assert update(C, fresh) == "add"
    assert update(C, C) == "inplace"
    assert update(C, C.view(2, 4)) == "inplace"
    assert update(row.expand(2, 4)) == "bias"
    assert update(row.expand(2, 4), fresh) == "bias"
    assert update(torch.ones(2, 1).expand(2, 4)) == "add"
    assert problem_of(A[:1], B, row, None, False).update == "add"
    assert problem_of(A[:1], B, row.expand(1, 4), None, False).update == "add"


def test_the_layout_of_the_result_is_that_of_out() -> None:
    assert problem_of(A, B, C, None, False).out == "row"
    assert problem_of(A, B, C.t().contiguous().t(), None, False).out == "row"
    assert problem_of(A, B, C, torch.empty(4, 2).t(), False).out == "col"
    wide = torch.empty(2, 8)[:, ::2]
    assert problem_of(A, B, C, wide, False).out == "strided"


def test_a_call_is_watched_where_an_operand_requires_grad_and_grad_is_on() -> None:
    for i in range(3):
        operands = [A.clone(), B.clone(), C.clone()]
        assert not is_watched(*operands)
        operands[i].requires_grad_()
        assert is_watched(*operands)
        with torch.no_grad():
            assert not is_watched(*operands)
    assert not is_watched(A, B, None)
    with forward_ad.dual_level():
        assert is_watched(A, B, None)


def test_flops_and_bytes_count_what_must_be_done() -> None:
    problem = contiguous_problem(2, 3, 5, torch.float32)
    assert problem.flops == 60
    assert replace(problem, dtype=torch.complex64).flops == 240
    operands = 2 * 5 + 5 * 3 + 2 * 3
    for update, c_elements in (("none", 0), ("bias", 3), ("add", 6), ("inplace", 6)):
        assert replace(problem, update=update).min_bytes == 4 * (operands + c_elements)
    assert replace(problem, dtype=torch.float64).min_bytes == 2 * problem.min_bytes
    assert [replace(problem, dtype=d).is_half for d in DTYPES.values()] == [True, True] + 4 * [
        False
    ]


def test_a_problem_is_immutable_and_says_what_it_is() -> None:
    problem = contiguous_problem(2, 3, 5, torch.float32, b="col", update="bias")
    with pytest.raises(FrozenInstanceError):
        problem.m = 7  # type: ignore[misc]
    assert str(problem) == ("float32 2x3x5 (row-unaligned x col-unaligned -> row-unaligned, bias)")
    assert {problem: 1}[replace(problem)] == 1


def test_dtype_names_and_dtypes_are_inverse() -> None:
    assert {DTYPES[name]: name for name in DTYPES} == DTYPE_NAMES


# ----------------------------------------------------------------------- views and overlap


def addresses(x: torch.Tensor) -> set[int]:
    return {
        x.storage_offset() + i * x.stride(0) + j * x.stride(1)
        for i in range(x.shape[0])
        for j in range(x.shape[1])
    }


def random_views(count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Pairs of views of one buffer, often with equal or exchanged strides."""
    rng = random.Random(20240229)
    buffer = torch.zeros(200)

    def view(strides: tuple[int, int]) -> torch.Tensor:
        shape = (rng.randint(0, 4), rng.randint(0, 4))
        return buffer.as_strided(shape, strides, rng.randint(0, 40))

    pairs = []
    for _ in range(count):
        strides = (rng.choice((0, 1, 2, 3, 4, 5, 7)), rng.choice((0, 1, 1, 2, 3, 5, 7)))
        other = (rng.choice((1, 2, 5)), rng.choice((1, 3, 5)))
        pairs.append((view(strides), view(rng.choice((strides, strides[::-1], other)))))
    return pairs


def are_blocks(x: torch.Tensor, y: torch.Tensor) -> bool:
    """Whether both are blocks of one row-major (or column-major) matrix."""
    if x.stride() != y.stride():
        y = y.t()
    if x.stride() != y.stride() or 1 not in x.stride():
        return False
    inner = 0 if x.stride(0) == 1 else 1
    return x.stride(1 - inner) >= max(x.shape[inner], y.shape[inner])


def test_no_shared_element_is_overlooked_and_blocks_are_judged_exactly() -> None:
    shared = apart = 0
    for x, y in random_views(30_000):
        truth = bool(addresses(x) & addresses(y))
        found = overlap(x, y)
        case = (x.shape, x.stride(), x.storage_offset(), y.shape, y.stride(), y.storage_offset())
        assert found or not truth, case
        if are_blocks(x, y):
            assert found == truth, case
            shared, apart = shared + truth, apart + (not truth)
    assert min(shared, apart) > 400


def test_overlap_is_symmetric() -> None:
    for x, y in random_views(3_000):
        assert overlap(x, y) == overlap(y, x)


def test_separate_tensors_and_empty_ones_share_nothing() -> None:
    x, y = torch.zeros(4, 4), torch.zeros(4, 4)
    assert not overlap(x, y)
    assert overlap(x, x)
    assert not overlap(x[:0], x)
    assert not overlap(x, x[:, :0])


def test_an_out_that_overlaps_itself_is_found_exactly() -> None:
    for shape in itertools.product(range(1, 5), repeat=2):
        for strides in itertools.product(range(7), repeat=2):
            out = torch.zeros(100).as_strided(shape, strides)
            a, b = torch.zeros(shape[0], 2), torch.zeros(2, shape[1])
            if len(addresses(out)) == out.numel():
                check_operands(a, b, None, out, beta_is_zero=True)
            else:
                assert_says(message_of(a, b, None, out), "share one address")


def test_the_same_view_is_the_same_elements_in_the_same_order() -> None:
    x = torch.zeros(4, 4)
    assert same_view(x, x)
    assert same_view(x, x.view(4, 4))
    assert same_view(x[1:3], x[1:3])
    assert not same_view(x, x.t())
    assert not same_view(x[:2], x[:3])
    assert not same_view(x[:2], x[1:3])
    assert not same_view(x, x.clone())
    assert not same_view(x, x.view(torch.int32))
    waves = torch.zeros(4, 4, dtype=torch.complex64)
    assert not same_view(waves, waves.conj())
    assert same_view(waves.conj(), waves.conj())
    assert not same_view(waves.imag, waves.conj().imag)
