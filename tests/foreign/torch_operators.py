"""torch's own samples of its products, its error inputs and its module tests.

They ship with torch, in ``torch.testing._internal`` (which needs ``expecttest``): operands that
torch's developers found worth testing, and what must come of wrong ones.
"""

from typing import NamedTuple

import pytest
import torch
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.common_modules import module_db

OPERATORS = (
    "mm", "addmm", "addmm.decomposed", "matmul", "bmm", "baddbmm", "__rmatmul__", "einsum",
    "linalg.multi_dot", "nn.functional.linear", "nn.functional.bilinear", "addbmm", "mv", "dot",
    "nn.functional.multi_head_attention_forward", "nn.functional.scaled_dot_product_attention",
    "linalg.matrix_power", "matrix_exp", "cdist", "tensordot", "inner", "addmv",
)  # fmt: skip
MODULES = (
    "Linear", "Bilinear", "MultiheadAttention", "TransformerEncoderLayer",
    "TransformerDecoderLayer", "TransformerEncoder", "Transformer", "LSTM", "GRU", "RNN",
)  # fmt: skip
TYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64, torch.int64)
CASES = [
    pytest.param(op, dtype, id=f"{op.formatted_name}-{str(dtype).split('.')[-1]}")
    for op in op_db
    if op.name in OPERATORS or op.full_name in OPERATORS
    for dtype in TYPES
    if op.supports_dtype(dtype, "cpu")
]
LAYERS = [info for info in module_db if info.module_cls.__name__ in MODULES]


def variants(op):
    return [f for f in (op.op, op.method_variant, op.inplace_variant, op.operator_variant) if f]


class Failure(NamedTuple):
    """An error, to be compared."""

    kind: type
    text: str


def call(function, sample):
    torch.manual_seed(0)
    return function(sample.input, *sample.args, **sample.kwargs)


def truth(function, sample):
    """The same call where no mode sees it, and on the same random numbers."""
    with torch._C.DisableTorchFunction():
        return call(function, sample)


def outcome(how, function, sample):
    try:
        return how(function, sample)
    except Exception as error:
        return Failure(type(error), str(error))


def fresh(sample):
    def copy(t):
        return t.detach().clone().requires_grad_(t.requires_grad)

    return sample.transform(lambda x: copy(x) if isinstance(x, torch.Tensor) else x)


@pytest.mark.parametrize(("op", "dtype"), CASES)
def test_every_variant_gives_what_torch_gives(op, dtype):
    tolerance = {"rtol": 2e-2, "atol": 2e-1} if dtype.itemsize == 2 else {}
    for sample in op.sample_inputs("cpu", dtype):
        for function in variants(op):
            expected = outcome(truth, function, fresh(sample))
            found = outcome(call, function, fresh(sample))
            if isinstance(expected, Failure):
                assert found == expected
                continue
            torch.testing.assert_close(found, expected, equal_nan=True, **tolerance)
            if isinstance(expected, torch.Tensor):
                assert found.stride() == expected.stride()


@pytest.mark.parametrize(("op", "dtype"), [c for c in CASES if c.values[0].error_inputs_func])
def test_error_inputs_raise_what_torch_says(op, dtype):
    for wrong in op.error_inputs("cpu"):
        sample = wrong.sample_input
        with pytest.raises(wrong.error_type, match=wrong.error_regex):
            op(sample.input, *sample.args, **sample.kwargs)


@pytest.mark.parametrize(
    ("op", "dtype"),
    [c for c in CASES if c.values[1] is torch.float64 and c.values[0].supports_autograd],
)
def test_gradients_pass_gradcheck(op, dtype):
    for sample in op.sample_inputs("cpu", dtype, requires_grad=True):
        leaves = [
            x for x in (sample.input, *sample.args)
            if isinstance(x, torch.Tensor) and x.requires_grad and x.numel() < 60
        ]  # fmt: skip
        if leaves and not sample.kwargs.get("dropout_p"):

            def run(*_, sample=sample):
                result = op.gradcheck_wrapper(op, sample.input, *sample.args, **sample.kwargs)
                return sample.output_process_fn_grad(result)

            torch.autograd.gradcheck(run, leaves, nondet_tol=1e-9, fast_mode=True)
            if op.supports_gradgrad:
                torch.autograd.gradgradcheck(run, leaves, nondet_tol=1e-9, fast_mode=True)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("info", LAYERS, ids=lambda info: info.name)
def test_torchs_module_inputs_agree_with_their_references(info, training):
    for given in info.module_inputs_func(
        info, device="cpu", dtype=torch.float64, requires_grad=True, training=training
    ):
        made, taken = given.constructor_input, given.forward_input
        torch.manual_seed(0)
        module = info.module_cls(*made.args, **made.kwargs).double().train(training)
        torch.manual_seed(0)
        found = module(*taken.args, **taken.kwargs)
        torch.manual_seed(0)
        with torch._C.DisableTorchFunction():
            expected = module(*taken.args, **taken.kwargs)
        torch.testing.assert_close(found, expected, equal_nan=True)
        if given.reference_fn is not None:
            torch.manual_seed(0)
            parameters = list(module.parameters())
            wanted = given.reference_fn(module, parameters, *taken.args, **taken.kwargs)
            torch.testing.assert_close(found, wanted, equal_nan=True, check_dtype=False)
