"""``replace_linear`` changes what computes a layer and nothing else; ``restore_linear`` undoes it.
"""

from __future__ import annotations

import copy
import io
import logging
from collections.abc import Iterator

import pytest
import torch
from routed import every_product_tuned
from torch import nn

import autogemm
from autogemm import replace_linear, restore_linear

X = torch.randn(3, 6)


@pytest.fixture(autouse=True)
def served() -> Iterator[list[torch.Size]]:
    with every_product_tuned() as shapes:
        yield shapes


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Sequential(nn.Linear(8, 4, bias=False)))


class Special(nn.Linear):
    """What inherits from Linear may compute something else."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + 1


def test_layers_at_every_depth_are_replaced_and_restored(served: list[torch.Size]) -> None:
    model = network()
    kinds = [type(m) for m in model.modules()]
    parameters = list(model.parameters())
    expected = model(X)
    assert replace_linear(model) is model
    assert [type(m) for m in model.modules()].count(autogemm.nn.Linear) == 2
    torch.testing.assert_close(model(X), expected)
    assert served == [(3, 8), (3, 4)]
    assert all(p is q for p, q in zip(model.parameters(), parameters, strict=True))
    assert restore_linear(model) is model
    assert [type(m) for m in model.modules()] == kinds
    assert torch.equal(model(X), expected)
    assert len(served) == 2


def test_a_layer_itself_can_be_replaced() -> None:
    layer = replace_linear(nn.Linear(6, 8))
    assert type(layer) is autogemm.nn.Linear
    assert type(restore_linear(layer)) is nn.Linear


def test_precision_is_set_changed_and_forgotten() -> None:
    model = network()
    before = [set(vars(m)) for m in model.modules()]
    replace_linear(model, precision="high")
    assert model[0].precision == model[2][0].precision == "high"
    assert replace_linear(model)[0].precision is None
    restore_linear(replace_linear(model, precision=1e-3))
    assert [set(vars(m)) for m in model.modules()] == before


def test_a_wrong_precision_changes_nothing() -> None:
    model = network()
    with pytest.raises(autogemm.InvalidProblem, match="precision is 'exact'"):
        replace_linear(model, precision="exact")
    assert type(model[0]) is nn.Linear


def test_what_is_not_surely_a_plain_layer_is_left_alone() -> None:
    patched, weighted = nn.Linear(6, 6), nn.Linear(6, 6)
    forward = patched.forward
    patched.forward = lambda x: 2 * forward(x)  # type: ignore[method-assign]
    nn.utils.parametrize.register_parametrization(weighted, "weight", nn.Tanh())
    model = nn.ModuleList(
        [patched, weighted, Special(6, 6), nn.Bilinear(6, 6, 6), nn.MultiheadAttention(6, 2)]
    )
    kinds = [type(m) for m in model.modules()]
    replace_linear(model)
    assert [type(m) for m in model.modules()] == kinds


def test_a_parametrization_may_come_and_go_after_replacing(served: list[torch.Size]) -> None:
    layer = replace_linear(nn.Linear(6, 6))
    weight = layer.weight
    nn.utils.parametrize.register_parametrization(layer, "weight", nn.Tanh())
    torch.testing.assert_close(layer(X), nn.functional.linear(X, weight.tanh(), layer.bias))
    assert served
    nn.utils.parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
    assert type(layer) is autogemm.nn.Linear


def test_hooks_tied_weights_and_optimizers_go_on() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    model[1].weight = model[0].weight
    seen: list[str] = []
    model[0].register_forward_hook(lambda *_: seen.append("forward"))
    model[0].register_full_backward_hook(lambda *_: seen.append("backward"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    reference = copy.deepcopy(model)
    theirs = torch.optim.SGD(reference.parameters(), lr=0.1)
    replace_linear(model)
    assert model[1].weight is model[0].weight
    for m, o in ((reference, theirs), (model, optimizer)):
        m(X).square().sum().backward()
        o.step()
    assert seen == ["forward", "backward"] * 2
    for p, q in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_a_replaced_model_is_copied_saved_and_loaded() -> None:
    model = replace_linear(network(), precision="highest")
    expected = model(X)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for twin in (copy.deepcopy(model), torch.load(buffer, weights_only=False)):
        assert type(twin[0]) is autogemm.nn.Linear
        assert twin[0].precision == "highest"
        assert torch.equal(twin(X), expected)
    plain = network()
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(plain(X), expected)
    model.load_state_dict(plain.state_dict())


def test_a_compiled_model_follows_replacing_and_restoring() -> None:
    model = network()
    expected = model(X)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    for change in (replace_linear, restore_linear):
        change(model)
        torch.testing.assert_close(compiled(X), expected)


def test_the_number_of_replaced_layers_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "autogemm"):
        replace_linear(network())
    assert "replaced 2 linear layers of Sequential" in caplog.text


def test_transformers_conv1d_is_replaced_too(served: list[torch.Size]) -> None:
    utils = pytest.importorskip("transformers.pytorch_utils")
    layer = utils.Conv1D(8, 6)
    expected, text = layer(X[None]), repr(layer)
    replace_linear(layer)
    assert type(layer) is not utils.Conv1D
    assert isinstance(layer, utils.Conv1D)
    assert repr(layer) == text
    torch.testing.assert_close(layer(X[None]), expected)
    assert served == [(3, 8)]
    torch.testing.assert_close(copy.deepcopy(layer)(X), expected[0])
    replace_linear(layer, precision="highest")
    torch.testing.assert_close(layer(X[None]), expected)
    restore_linear(layer)
    assert type(layer) is utils.Conv1D
    assert torch.equal(layer(X[None]), expected)


def test_a_gpt2_generates_the_same_tokens() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        n_layer=2, n_head=2, n_embd=16, vocab_size=50, n_positions=32,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config).eval()
    tokens = torch.arange(1, 9)[None]
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(tokens, **options)
    replace_linear(model)
    assert torch.equal(model.generate(tokens, **options), expected)


def test_a_replaced_model_multiplies_in_training_what_was_recorded_of_the_plain_one() -> None:
    """Or what was tuned for the one would not be what the other runs."""

    def recorded(model: nn.Module) -> set[str]:
        model.zero_grad()
        with autogemm.record() as recording:
            model(X.clone().requires_grad_()).square().sum().backward()
        return {str(product.problem) for product in recording.products}

    plain = network()
    tuned = replace_linear(copy.deepcopy(plain))
    assert recorded(tuned) == recorded(plain)
