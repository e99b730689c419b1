"""Levels, budgets and bounds; what torch's settings mean, and that they are put back."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable
from threading import Thread

import numpy as np
import pytest
import torch
from fresh import run_code

from autogemm import precision
from autogemm.errors import InvalidProblem
from autogemm.precision import (
    LEVELS,
    ErrorBound,
    PrecisionState,
    Tolerance,
    accumulation_roundoff,
    allowance,
    budget_of,
    current_state,
    fp32_setting,
    growth,
    raw_cuda_state,
    resolve,
    underflow,
    unit_roundoff,
)
from autogemm.problem import DTYPES

Settings = Callable[[], dict[str, object]]
ALL = pytest.mark.parametrize("dtype", list(DTYPES.values()), ids=list(DTYPES))
IEEE = PrecisionState(fp32="ieee", reduced_reduction=False, device_type="cuda")


def in_a_fresh_process(code: str) -> str:
    """What the code prints in a Python of its own, where torch's settings are untouched."""
    code = PREAMBLE + textwrap.dedent(code)
    done = run_code("import warnings\nwarnings.simplefilter('ignore')\n" + code)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


PREAMBLE = """
import torch
from autogemm import precision
from autogemm.precision import current_state, fp32_compute, fp32_setting, raw_cuda_state
cuda, cpu, any_ = torch.backends.cuda, torch.backends.mkldnn, torch.backends
def level(device_type, dtype=torch.float32):
    return current_state(dtype, device_type).tolerance(dtype).level
def legacy():
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return "mixed"
"""


# ----------------------------------------------------------------------------- the constants


@ALL
def test_units_follow_from_the_types(dtype: torch.dtype) -> None:
    one = torch.ones((), dtype=dtype)
    u = unit_roundoff(dtype)
    assert one + 2 * u != one
    assert one + u == one  # a tie, to even
    expected = torch.float32 if dtype.itemsize == 2 else dtype
    assert accumulation_roundoff(dtype) == unit_roundoff(expected)


@ALL
def test_underflow_is_a_few_of_the_smallest_numbers(dtype: torch.dtype) -> None:
    real = {torch.complex64: torch.float32, torch.complex128: torch.float64}.get(dtype, dtype)
    smallest = float(torch.nextafter(torch.zeros((), dtype=real), torch.ones((), dtype=real)))
    accumulator = 2.0**-149 if accumulation_roundoff(dtype) > 2.0**-30 else smallest
    own = smallest if dtype.itemsize == 2 else 0.0
    assert underflow(dtype, 0) == (3 if dtype.is_complex else 2) * accumulator + own
    assert underflow(dtype, 1000) == (2003 if dtype.is_complex else 1002) * accumulator + own


@ALL
def test_growth_is_one_rounding_a_term_and_three_for_complex_terms(dtype: torch.dtype) -> None:
    for k in (0, 1, 1000):
        assert growth(dtype, k) == (3 * k if dtype.is_complex else k)


@ALL
def test_a_coarser_level_allows_at_least_as_much(dtype: torch.dtype) -> None:
    allowed = [allowance(level, dtype) for level in LEVELS]
    assert allowed == sorted(allowed)
    assert allowed[0] == 8
    if dtype is torch.float32:
        assert allowed == [8, 2**14, 2**17]
    elif dtype.itemsize == 2:
        assert allowed[1] > 8
    else:
        assert set(allowed) == {8.0}


def test_high_leaves_room_for_partial_sums_rounded_to_16_bits() -> None:
    """Two roundings to the operands' type and one spare, in units of float32's."""
    assert allowance("high", torch.bfloat16) >= 3 * 2**16
    assert allowance("high", torch.float16) >= 3 * 2**13
    for dtype in (torch.float16, torch.bfloat16):
        assert allowance("high", dtype) < 10 * unit_roundoff(dtype) / 2**-24


# ------------------------------------------------------------------------------ tolerances


@ALL
def test_a_bound_is_admitted_exactly_up_to_the_allowance(dtype: torch.dtype) -> None:
    for level in LEVELS:
        for k in (1, 100):
            tolerance, limit = Tolerance(level), allowance(level, dtype) + growth(dtype, k)
            rho = allowance(level, dtype)
            assert tolerance.admits(ErrorBound(rho, growth(dtype, k)), dtype, k)
            assert tolerance.admits(ErrorBound(0.0, limit), dtype, k)
            worse = ErrorBound(rho, math.nextafter(growth(dtype, k), math.inf) + 1e-3)
            assert not tolerance.admits(worse, dtype, k)
            shortfall = tolerance.shortfall(worse, dtype, k)
            assert shortfall is not None
            assert repr(level) in shortfall
            assert f"{limit:.4g}u" in shortfall


@ALL
def test_whatever_serves_a_level_serves_the_coarser_ones(dtype: torch.dtype) -> None:
    for rho in (1.0, 8.0, 9.0, 2.0**14, 2.0**15, 2.0**17, 2.0**20):
        admitted = [Tolerance(level).admits(ErrorBound(rho, 64.0), dtype, 64) for level in LEVELS]
        assert admitted == sorted(admitted)


def test_room_for_long_sums_does_not_admit_operands_rounded_to_a_shorter_type() -> None:
    k = 10**6
    bound = ErrorBound(2.0**14, 1000.0)
    assert bound.total < 8 + k
    assert not Tolerance("highest").admits(bound, torch.float32, k)
    assert "rho" in (Tolerance("highest").shortfall(bound, torch.float32, k) or "")
    assert Tolerance("high").admits(bound, torch.float32, k)


@ALL
def test_a_budget_admits_the_bounds_whose_promise_it_covers(dtype: torch.dtype) -> None:
    bound = ErrorBound(8.0, 100.0)
    promised = budget_of(bound, dtype)
    assert promised == unit_roundoff(dtype) + 108 * accumulation_roundoff(dtype)
    assert Tolerance("highest", budget=promised).admits(bound, dtype, 100)
    tight = Tolerance("highest", budget=math.nextafter(promised, 0))
    assert not tight.admits(bound, dtype, 100)
    shortfall = tight.shortfall(bound, dtype, 100)
    assert shortfall is not None
    assert f"budget {tight.budget:.2g}" in shortfall
    # The result's own rounding counts, which no arithmetic can avoid.
    assert not Tolerance("highest", budget=unit_roundoff(dtype) / 2).admits(
        ErrorBound(0.0, 0.0), dtype, 1
    )


def test_a_tolerance_is_named_by_its_level_or_its_budget() -> None:
    assert str(Tolerance("high")) == "high"
    assert str(Tolerance("highest", budget=1e-6)) == "1e-06"
    assert len({Tolerance("high"), Tolerance("high"), Tolerance("highest")}) == 2


# ------------------------------------------------------------------- the precision argument


@ALL
def test_a_levels_name_is_taken_as_it_stands(dtype: torch.dtype) -> None:
    for level in LEVELS:
        tolerance = resolve(level, dtype, IEEE)
        assert (tolerance.level, tolerance.budget) == (level, None)
        assert tolerance.source == "precision argument"


@pytest.mark.parametrize("value", [1e-6, 1, 5e-324, np.float64(1e-3), 1e308])
def test_a_positive_number_is_a_budget(value: float) -> None:
    tolerance = resolve(value, torch.float32, IEEE)
    assert tolerance.budget == float(value)
    assert type(tolerance.budget) is float


def test_none_asks_the_settings() -> None:
    state = PrecisionState(fp32="tf32", reduced_reduction=False, device_type="cpu")
    assert resolve(None, torch.float32, state) == state.tolerance(torch.float32)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("hihg", ["'hihg'", "'highest', 'high', 'medium'", "positive number", "None"]),
        ("HIGH", ["'HIGH'", "'high'"]),
        ("", ["''", "'highest'"]),
        (0, ["0", "positive, finite", "1e-4"]),
        (-1e-3, ["-0.001", "positive, finite"]),
        (math.nan, ["nan", "positive, finite"]),
        (math.inf, ["inf", "positive, finite"]),
        (10**400, ["positive, finite"]),
        (True, ["a bool", "'highest'"]),
        (1j, ["a complex", "positive number"]),
        (torch.tensor(1e-3), ["a Tensor", "positive number"]),
        (torch.float32, ["a dtype", "positive number"]),
        ([1e-3], ["a list", "positive number"]),
    ],
    ids=lambda x: "" if isinstance(x, list) else repr(x)[:16],
)
def test_anything_else_is_refused_with_what_was_expected(value: object, words: list[str]) -> None:
    with pytest.raises(InvalidProblem) as refusal:
        resolve(value, torch.float32, IEEE)
    for word in words:
        assert word in str(refusal.value)


# --------------------------------------------------------------------- what settings mean


@pytest.mark.parametrize("device_type", ["cpu", "cuda"])
@pytest.mark.parametrize(
    ("setting", "level"), [("ieee", "highest"), ("tf32", "high"), ("bf16", "medium")]
)
def test_the_float32_setting_is_the_level(device_type: str, setting: str, level: str) -> None:
    state = PrecisionState(fp32=setting, reduced_reduction=False, device_type=device_type)
    tolerance = state.tolerance(torch.float32)
    assert tolerance.level == level
    backend = {"cpu": "mkldnn", "cuda": "cuda"}[device_type]
    assert f"torch.backends.{backend}.matmul.fp32_precision" in tolerance.source
    assert repr(setting) in tolerance.source


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_products_follow_reduced_reduction_on_a_gpu_only(dtype: torch.dtype) -> None:
    for reduced, level in ((True, "high"), (False, "highest")):
        gpu = PrecisionState(fp32="tf32", reduced_reduction=reduced, device_type="cuda")
        assert gpu.tolerance(dtype).level == level
        assert str(reduced) in gpu.tolerance(dtype).source
        short = "fp16" if dtype is torch.float16 else "bf16"
        assert f"allow_{short}_reduced_precision_reduction" in gpu.tolerance(dtype).source
        cpu = PrecisionState(fp32="bf16", reduced_reduction=reduced, device_type="cpu")
        assert cpu.tolerance(dtype).level == "highest"


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64, torch.complex128])
def test_other_types_have_one_level(dtype: torch.dtype) -> None:
    for device_type in ("cpu", "cuda"):
        state = PrecisionState(fp32="tf32", reduced_reduction=True, device_type=device_type)
        assert state.tolerance(dtype).level == "highest"


@pytest.mark.usefixtures("restored_torch_settings")
def test_each_backends_own_setting_is_read() -> None:
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    torch.backends.mkldnn.matmul.fp32_precision = "ieee"
    assert current_state(torch.float32, "cuda").fp32 == "tf32"
    assert current_state(torch.float32, "cpu").fp32 == "ieee"
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    assert current_state(torch.float32, "cuda").fp32 == "ieee"
    assert current_state(torch.float32, "cpu").fp32 == "bf16"


@pytest.mark.usefixtures("restored_torch_settings")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_each_16_bit_type_has_a_setting_of_its_own(dtype: torch.dtype) -> None:
    matmul = torch.backends.cuda.matmul
    for value in (True, False):
        matmul.allow_fp16_reduced_precision_reduction = value == (dtype is torch.float16)
        matmul.allow_bf16_reduced_precision_reduction = value == (dtype is torch.bfloat16)
        assert current_state(dtype, "cuda").reduced_reduction is value
        assert current_state(dtype, "cpu").reduced_reduction is False
        assert current_state(torch.float32, "cuda").reduced_reduction is False


@pytest.mark.usefixtures("restored_torch_settings")
def test_the_raw_state_changes_with_every_setting_that_changes_the_level() -> None:
    changes = {
        torch.float32: {"fp32_precision": ("ieee", "tf32")},
        torch.bfloat16: {"allow_bf16_reduced_precision_reduction": (True, False)},
        torch.float16: {
            "allow_fp16_reduced_precision_reduction": (True, False),
            "allow_fp16_accumulation": (True, False),
        },
    }
    for dtype, settings in changes.items():
        for name, values in settings.items():
            seen = set()
            for value in values:
                setattr(torch.backends.cuda.matmul, name, value)
                seen.add(raw_cuda_state(dtype))
            assert len(seen) == len(values), name
    for dtype in (torch.float64, torch.complex64, torch.complex128):
        assert raw_cuda_state(dtype) is None


@pytest.mark.usefixtures("restored_torch_settings")
def test_the_setting_is_read_for_the_backend_asked_for() -> None:
    for word in ("ieee", "tf32", "bf16"):
        torch.backends.mkldnn.matmul.fp32_precision = word
        assert fp32_setting("mkldnn", "matmul") == word
    for word in ("ieee", "tf32"):
        torch.backends.cuda.matmul.fp32_precision = word
        assert fp32_setting("cuda", "matmul") == word


def test_without_a_setting_float32_is_computed_as_ieee() -> None:
    out = in_a_fresh_process(
        """
        print(level("cpu"), level("cuda"), current_state(torch.float32, "cpu").fp32)
        print(level("cuda", torch.float16), level("cuda", torch.bfloat16))
        print(level("cpu", torch.bfloat16))
        """
    )
    assert out.split() == ["highest", "highest", "ieee", "high", "high", "highest"]


def test_the_legacy_setting_is_obeyed() -> None:
    out = in_a_fresh_process(
        """
        for word in ("highest", "high", "medium"):
            torch.set_float32_matmul_precision(word)
            print(level("cpu"), level("cuda"))
        """
    )
    assert out.splitlines() == ["highest highest", "high high", "medium medium"]


def test_legacy_medium_and_high_are_different_raw_states_on_a_gpu() -> None:
    out = in_a_fresh_process(
        """
        states = set()
        for word in ("highest", "high", "medium"):
            torch.set_float32_matmul_precision(word)
            states.add(raw_cuda_state(torch.float32))
        print(len(states))
        """
    )
    assert out == "3"


def test_settings_mixed_old_and_new_are_read_although_the_legacy_getter_raises() -> None:
    out = in_a_fresh_process(
        """
        cuda.matmul.fp32_precision = "tf32"
        print(legacy(), level("cuda"), level("cpu"), raw_cuda_state(torch.float32))
        torch.set_float32_matmul_precision("medium")
        cpu.matmul.fp32_precision = "tf32"
        print(legacy(), level("cuda"), level("cpu"), raw_cuda_state(torch.float32))
        cuda.matmul.fp32_precision = "ieee"
        print(legacy(), level("cuda"), level("cpu"), raw_cuda_state(torch.float32))
        """
    )
    assert out.splitlines() == [
        "mixed high highest tf32",
        "mixed high high tf32",
        "mixed highest high ieee",
    ]


def test_the_generic_setting_counts_where_the_specific_one_is_unset() -> None:
    out = in_a_fresh_process(
        """
        any_.fp32_precision = "tf32"
        print(level("cpu"), level("cuda"))
        cpu.matmul.fp32_precision = "ieee"
        print(level("cpu"), level("cuda"))
        any_.fp32_precision = "none"
        cpu.matmul.fp32_precision = "none"
        print(level("cpu"), level("cuda"), fp32_setting("mkldnn", "matmul"))
        """
    )
    assert out.splitlines() == ["high high", "highest high", "highest highest none"]


# -------------------------------------------------------------------------------- switches


@pytest.mark.usefixtures("restored_torch_settings")
@pytest.mark.parametrize("device_type", ["cpu", "cuda"])
@pytest.mark.parametrize("before", ["none", "ieee", "tf32"])
@pytest.mark.parametrize("mode", ["ieee", "tf32"])
def test_the_float32_mode_is_held_and_put_back(
    device_type: str, before: str, mode: str, torch_settings: Settings
) -> None:
    backend = torch.backends.cuda if device_type == "cuda" else torch.backends.mkldnn
    other = torch.backends.mkldnn if device_type == "cuda" else torch.backends.cuda
    backend.matmul.fp32_precision = before
    settings = torch_settings()
    with precision.fp32_compute(device_type, mode):
        assert backend.matmul.fp32_precision == mode
        assert (
            other.matmul.fp32_precision
            == settings[f"{'mkldnn' if device_type == 'cuda' else 'cuda'}.fp32_precision"]
        )
    assert torch_settings() == settings


@pytest.mark.usefixtures("restored_torch_settings")
def test_the_mode_is_put_back_after_an_exception_and_after_nesting(
    torch_settings: Settings,
) -> None:
    backend = torch.backends.mkldnn.matmul
    backend.fp32_precision = "tf32"
    before = torch_settings()

    def fail() -> None:
        with precision.fp32_compute("cpu", "ieee"), precision.fp32_compute("cpu", "bf16"):
            assert backend.fp32_precision == "bf16"
            raise KeyError("inside")

    with pytest.raises(KeyError, match="inside"):
        fail()
    assert torch_settings() == before


@pytest.mark.usefixtures("restored_torch_settings")
def test_a_mode_that_torch_does_not_know_changes_nothing(torch_settings: Settings) -> None:
    before = torch_settings()
    with pytest.raises(RuntimeError), precision.fp32_compute("cpu", "fp8"):
        pytest.fail("entered")
    assert torch_settings() == before
    with precision.fp32_compute("cpu", "ieee"):  # the lock is free again
        pass


def test_a_setting_inherited_from_the_generic_one_is_not_pinned() -> None:
    """Else a caller who goes back to ieee there would go on with TF32."""
    out = in_a_fresh_process(
        """
        for device_type, backend in (("cpu", cpu), ("cuda", cuda)):
            any_.fp32_precision = "tf32"
            with fp32_compute(device_type, "ieee"):
                print(backend.matmul.fp32_precision)
            print(backend.matmul.fp32_precision)
            any_.fp32_precision = "ieee"
            print(backend.matmul.fp32_precision)
        """
    )
    assert out.split() == 2 * ["ieee", "tf32", "ieee"]


def test_the_legacy_getter_works_after_a_switch_if_it_did_before() -> None:
    out = in_a_fresh_process(
        """
        for word in ("highest", "high", "medium"):
            torch.set_float32_matmul_precision(word)
            for device_type in ("cpu", "cuda"):
                for mode in ("ieee", "tf32"):
                    with fp32_compute(device_type, mode):
                        pass
            print(legacy())
        """
    )
    assert out.split() == ["highest", "high", "medium"]


def test_switches_of_several_threads_leave_the_setting_as_it_was(torch_settings: Settings) -> None:
    before = torch_settings()
    seen: list[bool] = []

    def switch(mode: str) -> None:
        for _ in range(200):
            with precision.fp32_compute("cpu", mode):
                seen.append(torch.backends.mkldnn.matmul.fp32_precision == mode)

    threads = [Thread(target=switch, args=(mode,)) for mode in ("ieee", "tf32", "bf16")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch_settings() == before
    assert len(seen) == 600
    assert all(seen)


@pytest.mark.usefixtures("restored_torch_settings")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("before", [True, False, (False, False)])
@pytest.mark.parametrize("allowed", [True, False])
def test_reduced_reduction_is_held_and_put_back(
    dtype: torch.dtype, before: bool | tuple[bool, bool], allowed: bool, torch_settings: Settings
) -> None:
    matmul = torch.backends.cuda.matmul
    name = f"allow_{'fp16' if dtype is torch.float16 else 'bf16'}_reduced_precision_reduction"
    if isinstance(before, tuple) and not hasattr(matmul, f"{name}_split_k"):
        pytest.skip("this torch has one switch for reductions")
    setattr(matmul, name, before)
    matmul.allow_fp16_accumulation = True
    settings = torch_settings()
    with precision.reduced_reduction(dtype, allowed):
        assert getattr(matmul, name) is allowed
        assert matmul.allow_fp16_accumulation is False
    assert torch_settings() == settings

    def fail() -> None:
        with precision.reduced_reduction(dtype, allowed):
            raise KeyError("inside")

    with pytest.raises(KeyError, match="inside"):
        fail()
    assert torch_settings() == settings
