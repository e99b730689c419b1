"""Layers give what the layers they replace give, from the same parameters."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator

import pytest
import torch
from routed import every_product_tuned
from torch.nn import functional as F

import autogemm
from autogemm.nn import MLP, GatedMLP, Linear, MultiheadAttention


@pytest.fixture(autouse=True)
def served() -> Iterator[list[torch.Size]]:
    with every_product_tuned() as shapes:
        yield shapes


def test_linear_is_torchs_in_all_but_the_product(served: list[torch.Size]) -> None:
    theirs, ours = torch.nn.Linear(40, 32), Linear(40, 32)
    assert isinstance(ours, torch.nn.Linear)
    assert repr(ours) == repr(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 40)
    torch.testing.assert_close(ours(x), theirs(x))
    assert served == [(6, 32)]
    half = Linear(40, 32, False, "cpu", torch.bfloat16)
    assert half.bias is None
    assert half.weight.dtype == torch.bfloat16


def test_a_layers_precision_is_shown_and_may_be_assigned() -> None:
    layer = Linear(4, 3, precision="high")
    assert repr(layer) == "Linear(in_features=4, out_features=3, bias=True, precision='high')"
    layer.precision = "no such level"
    with pytest.raises(autogemm.InvalidProblem, match="no such level"):
        layer(torch.randn(2, 4))
    assert "precision" not in layer.state_dict()
    assert Linear(4, 3).precision is None


def test_mlp_loads_a_clip_block_and_agrees_with_it(served: list[torch.Size]) -> None:
    clip = pytest.importorskip("transformers.models.clip.modeling_clip")
    config = clip.CLIPVisionConfig(
        hidden_size=16, intermediate_size=40, num_attention_heads=2, hidden_act="gelu"
    )
    theirs, ours = clip.CLIPMLP(config), MLP(16, 40)
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 5, 16)
    torch.testing.assert_close(ours(x), theirs(x))
    assert len(served) == 2


def test_gated_mlp_loads_a_llama_block_and_agrees_with_it(served: list[torch.Size]) -> None:
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    config = llama.LlamaConfig(hidden_size=16, intermediate_size=40, num_attention_heads=2)
    theirs, ours = llama.LlamaMLP(config), GatedMLP(16, 40)
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 5, 16)
    torch.testing.assert_close(ours(x), theirs(x))
    assert len(served) == 3


def test_the_blocks_take_sizes_activation_bias_and_precision() -> None:
    x = torch.randn(3, 8)
    assert MLP(8, out_features=5)(x).shape == (3, 5)
    block = MLP(8, 12, activation=F.relu, bias=False, precision="highest")
    expected = F.relu(x @ block.fc1.weight.t()) @ block.fc2.weight.t()
    torch.testing.assert_close(block(x), expected)
    assert block.fc1.precision == block.fc2.precision == "highest"
    gated = GatedMLP(8, 12, bias=True, dtype=torch.float64)
    assert gated.down_proj.bias.dtype == torch.float64


# ------------------------------------------------------------------------------------ attention

L, S, N, E, H = 5, 7, 3, 8, 2
CAUSAL = torch.triu(torch.ones(L, L, dtype=torch.bool), 1)
PADDING = torch.arange(S) >= torch.tensor([7, 4, 2])[:, None]
KINDS = {
    "plain": {},
    "no bias": {"bias": False},
    "other widths": {"kdim": 6, "vdim": 10},
    "bias of key and value": {"add_bias_kv": True},
    "zero attention": {"add_zero_attn": True},
    "dropout": {"dropout": 0.5},
}


def pair(**options: object) -> tuple[torch.nn.MultiheadAttention, MultiheadAttention]:
    options["dtype"] = torch.float64  # rounding is not what these tests are about
    theirs = torch.nn.MultiheadAttention(E, H, **options)  # type: ignore[arg-type]
    ours = MultiheadAttention(E, H, **options)  # type: ignore[arg-type]
    for p in theirs.parameters():
        torch.nn.init.normal_(p)
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    return theirs, ours


def agree(
    theirs: torch.nn.Module, ours: torch.nn.Module, x: tuple[torch.Tensor, ...], **options: object
) -> None:
    """Results and, while training, gradients."""
    results = []
    for layer in (theirs, ours):
        same = {id(t): t.clone().requires_grad_(layer.training) for t in x}
        inputs = [same[id(t)] for t in x]
        torch.manual_seed(0)
        result, weights = layer(*inputs, **options)
        gradients = ()
        if layer.training:
            wanted = (*same.values(), *layer.parameters())
            gradients = torch.autograd.grad(result.square().sum(), wanted)
        results.append((result, weights, *gradients))
    for e, f in zip(*results, strict=True):
        assert (e is None) == (f is None)
        if e is not None:
            torch.testing.assert_close(f, e, equal_nan=True)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_attention_agrees_with_torchs(
    kind: str, batch_first: bool, training: bool, served: list[torch.Size]
) -> None:
    theirs, ours = (
        layer.train(training) for layer in pair(**KINDS[kind], batch_first=batch_first)
    )

    def sequence(length: int, width: int) -> torch.Tensor:
        shape = (N, length, width) if batch_first else (length, N, width)
        return torch.randn(shape, dtype=torch.float64)

    query, key, value = sequence(L, E), sequence(S, ours.kdim), sequence(S, ours.vdim)
    for need_weights, average in ((False, True), (True, True), (True, False)):
        options = {"need_weights": need_weights, "average_attn_weights": average}
        agree(theirs, ours, (query, key, value), **options)
        agree(theirs, ours, (query, key, value), key_padding_mask=PADDING, **options)
        if ours.kdim == ours.vdim == E:
            agree(theirs, ours, (query, key, key), **options)
            agree(theirs, ours, (query, query, query), attn_mask=CAUSAL, **options)
    assert served


def test_attention_takes_every_mask_torchs_takes() -> None:
    theirs, ours = pair()
    x = torch.randn(L, N, E, dtype=torch.float64)
    lengths = torch.arange(L) >= torch.tensor([5, 4, 2])[:, None]
    float_mask = torch.randn(L, L, dtype=torch.float64)
    masks = (None, CAUSAL, float_mask, float_mask.expand(N * H, L, L))
    for mask, padding in itertools.product(masks, (None, lengths, -lengths.double())):
        for need_weights in (True, False):
            agree(
                theirs, ours, (x, x, x), attn_mask=mask, key_padding_mask=padding,
                need_weights=need_weights,
            )  # fmt: skip
    agree(theirs, ours, (x, x, x), attn_mask=CAUSAL, is_causal=True, need_weights=False)
    agree(theirs, ours, (x[:, 0], x[:, 0], x[:, 0]), key_padding_mask=lengths[2])


@pytest.mark.parametrize("batch_first", [True, False])
def test_every_projection_is_gemms(batch_first: bool, served: list[torch.Size]) -> None:
    x, y = torch.randn(L, N, E), torch.randn(L, N, E)
    layer = MultiheadAttention(E, H, batch_first=batch_first).eval()
    with torch.no_grad():
        layer(x, x, x)
        assert served == [(L * N, 3 * E), (L * N, E)]
        served.clear()
        layer(x, y, y)
        assert served == [(L * N, E), (L * N, 2 * E), (L * N, E)]


def test_attentions_errors_are_torchs() -> None:
    theirs, ours = pair()
    x = torch.randn(L, N, E, dtype=torch.float64)
    for wrong in (
        {"query": x, "key": x, "value": x[1:]},
        {"query": x[..., 1:], "key": x, "value": x},
        {"query": x, "key": x, "value": x, "is_causal": True},
        {"query": x, "key": x, "value": x, "attn_mask": torch.ones(2, 2)},
    ):
        errors = []
        for layer in (theirs, ours):
            with pytest.raises(Exception) as caught:  # noqa: PT011  # torch says which
                layer(**wrong)
            errors.append((type(caught.value), str(caught.value)))
        assert errors[0] == errors[1]


def test_layers_are_copied_compiled_and_computed_in_other_types() -> None:
    layer = MultiheadAttention(E, H, batch_first=True)
    x = torch.randn(N, L, E)
    expected = layer(x, x, x)[0]
    torch.testing.assert_close(copy.deepcopy(layer)(x, x, x)[0], expected)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, x, x)[0], expected)
    double = copy.deepcopy(layer).double()(x.double(), x.double(), x.double())[0]
    torch.testing.assert_close(double.float(), expected, rtol=1e-4, atol=1e-5)
    encoder = torch.nn.TransformerEncoderLayer(E, H, 16, dropout=0, batch_first=True).eval()
    before = encoder(x)
    encoder.self_attn.__class__ = MultiheadAttention
    torch.testing.assert_close(encoder(x), before)


def test_torchs_ways_to_build_and_change_layers_go_on() -> None:
    assert torch.nn.utils.skip_init(autogemm.nn.Linear, 3, 4).weight.shape == (4, 3)


def test_attention_computes_scores_by_whatever_torch_has_in_its_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[int] = []
    original = torch.nn.functional.scaled_dot_product_attention

    def mine(*args: object, **kwargs: object) -> torch.Tensor:
        calls.append(1)
        return original(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", mine)
    x = torch.randn(5, 2, 8)
    autogemm.nn.MultiheadAttention(8, 2)(x, x, x, need_weights=False)
    assert calls == [1]


def test_attention_under_a_default_device_is_still_ours() -> None:
    layer, x = autogemm.nn.MultiheadAttention(8, 2), torch.randn(5, 2, 8)
    with every_product_tuned() as served:
        with torch.device("cpu"):
            layer(x, x, x, need_weights=False)
        assert len(served) == 2
