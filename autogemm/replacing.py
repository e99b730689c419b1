"""``replace_linear`` and its undo: autogemm in a model that was written without it.

A layer changes its class and nothing else, so that parameters, hooks, optimizers, tied weights
and state dicts stay as they are.
"""

from __future__ import annotations

import logging
import sys
from typing import TypeVar

import torch

from autogemm import precision as precisions
from autogemm.nn.linear import Linear

Model = TypeVar("Model", bound=torch.nn.Module)

_log = logging.getLogger(__name__)


def replace_linear(model: Model, *, precision: str | float | None = None) -> Model:
    """Have every linear layer of a model computed by ``autogemm.linear``; in place.

    Replaced are ``torch.nn.Linear`` and transformers' ``Conv1D``, these very classes: what
    inherits from them may compute something else, and is left alone. So are layers with
    parametrizations and layers whose ``forward`` was replaced on the instance. The number of
    replaced layers is logged at level INFO.

    Args:
        model: any module; it may itself be a linear layer.
        precision: of all replaced layers, see ``autogemm.linear``; a second call changes it.

    Returns:
        The same model.

    Raises:
        InvalidProblem: ``precision`` is neither a level nor a positive number; nothing is changed.
    """
    precisions.resolve(precision, torch.float32, precisions.current_state(torch.float32, "cpu"))
    ours = dict(_pairs())
    already = set(ours.values())
    count = 0
    for layer in model.modules():
        if type(layer) in ours and "forward" not in vars(layer):
            layer.__class__ = ours[type(layer)]
            count += 1
        if type(layer) in already:
            vars(layer).pop("precision", None)
            if precision is not None:
                vars(layer)["precision"] = precision  # past Module's own __setattr__
    _log.info("replaced %d linear layers of %s", count, type(model).__name__)
    return model


def restore_linear(model: Model) -> Model:
    """Undo ``replace_linear``: every ``autogemm.nn.Linear`` becomes a ``torch.nn.Linear``.

    In place, precision forgotten; that holds for layers built as ``autogemm.nn.Linear``, too.
    Returns the same model.
    """
    theirs = {ours: theirs for theirs, ours in _pairs()}
    for layer in model.modules():
        if type(layer) in theirs:
            vars(layer).pop("precision", None)
            layer.__class__ = theirs[type(layer)]
    return model


def _pairs() -> list[tuple[type[torch.nn.Module], type[torch.nn.Module]]]:
    """Each class that is replaced, and what replaces it."""
    pairs: list[tuple[type[torch.nn.Module], type[torch.nn.Module]]] = [(torch.nn.Linear, Linear)]
    transformers = sys.modules.get("transformers.pytorch_utils")
    if transformers is not None:  # else no model of its can be here either
        from autogemm.nn.conv1d import Conv1D

        pairs.append((transformers.Conv1D, Conv1D))
    return pairs
