"""Triton's interpreter for the tests: what it gets wrong mended, what it does in vain left out.

Most of its time goes to Python around the arrays, and none of what is saved here is arithmetic.
"""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import triton.language as tl
from decided_once import decided_once
from triton.runtime import interpreter

DECIDED_ANEW = interpreter._patch_builtin
"""What puts the interpreter's members in the place of the language's, as it comes."""


def dot_of_bfloat16(dot: Callable[..., Any]) -> Callable[..., Any]:
    """The interpreter's dot product, which takes the bits of bfloat16 for integers, mended."""

    def create_dot(builder: Any, a: Any, b: Any, *rest: Any) -> Any:
        if a.dtype.scalar.name == "bf16":
            a, b = (
                SimpleNamespace(
                    data=(x.data.astype(np.uint32) << 16).view(np.float32), dtype=tl.float32
                )
                for x in (a, b)
            )
        return dot(builder, a, b, *rest)

    return create_dot


def patched_once(patch: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Called for a kernel, and again by each function in it, for which the language is patched."""

    @functools.cache
    def languages(function: Any) -> list[Any]:
        return [x for x in function.__globals__.values() if x is tl or x is tl.core]

    def patch_language(function: Any) -> Any:
        if any(tl.core.is_builtin(language.load) for language in languages(function)):
            return patch(function)
        return None  # nobody restores what a function in a kernel patched

    return patch_language


def type_by_name(find: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """numpy's type for an element's, of which the interpreter makes a table at every question."""
    known: dict[str, Any] = {}

    def numpy_type(of: Any) -> Any:
        name = of.scalar.name
        if name not in known:
            known[name] = find(of)
        return known[name]

    return numpy_type


def typed_by_shape(init: Callable[..., None]) -> Callable[..., None]:
    """A type of blocks, of whose extents Triton makes a tuple with a type of its own."""
    known: dict[Any, dict[str, Any]] = {}

    def __init__(self: Any, element_ty: Any, shape: Any) -> None:
        key = (element_ty.name, *map(operator.index, shape))
        if key not in known:
            init(self, element_ty, shape)
            known[key] = dict(vars(self))
        vars(self).update(known[key], element_ty=element_ty)

    return __init__


def shaped_by_type(init: Callable[..., None]) -> Callable[..., None]:
    """A block or a number: of its extents and their product Triton makes constants."""
    known: dict[str, dict[str, Any]] = {}

    def __init__(self: Any, handle: Any, type: Any) -> None:
        name = type.name
        if name not in known:
            init(self, handle, type)
            known[name] = dict(vars(self))
        values = self.__dict__
        values.update(known[name])
        values["handle"] = handle
        values["type"] = type

    return __init__


def united_at_once(reduce: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """A reduction by "or", for which the interpreter calls a function for every element."""

    def apply_impl(self: Any, given: Any) -> Any:
        if self.combine_fn is not tl.standard._or_combine:
            return reduce(self, given)
        of = given[0]
        united = np.bitwise_or.reduce(of.handle.data, axis=self.axis, keepdims=self.keep_dims)
        return self.to_tensor(united, of.dtype)

    return apply_impl


def hold(handle: Any, data: Any, dtype: Any, attr: Any = None) -> None:
    """What an array and its type are kept in; that they fit was never in doubt here."""
    handle.data = data
    handle.dtype = dtype
    handle.attr = {} if attr is None else attr


def tensors_first(to_tensor: Callable[..., Any]) -> Callable[..., Any]:
    """What is assigned is made a tensor, and mostly is one."""

    def made_tensor(x: Any, check_type: bool = True) -> Any:
        return x if type(x) is tl.tensor else to_tensor(x, check_type)

    return made_tensor


def patched_builtins() -> Callable[..., None]:
    """A part of the language, whose builtins and what takes their place are found once."""
    found: dict[Any, list[tuple[str, Any]]] = {}

    def patch_builtin(package: Any, builder: Any, scope: Any) -> None:
        if package not in found:
            members = inspect.getmembers(package, tl.core.is_builtin)
            found[package] = [(name, decided_once(member, builder)) for name, member in members]
        for name, member in found[package]:
            scope.set_attr(package, name, member)

    return patch_builtin


def prepare() -> None:
    """Change the interpreter for this process."""
    interpreter._patch_builtin = patched_builtins()
    builder = interpreter.InterpreterBuilder
    builder.create_dot = dot_of_bfloat16(builder.create_dot)
    interpreter._patch_lang = patched_once(interpreter._patch_lang)
    interpreter._get_np_dtype = type_by_name(interpreter._get_np_dtype)
    tl.block_type.__init__ = typed_by_shape(tl.block_type.__init__)
    tl.tensor.__init__ = shaped_by_type(tl.tensor.__init__)
    reductions = interpreter.ReduceOps
    reductions.apply_impl = united_at_once(reductions.apply_impl)
    interpreter.TensorHandle.__init__ = hold
    semantic = interpreter.interpreter_semantic
    semantic.to_tensor = tensors_first(semantic.to_tensor)
    # Computed in int64 after every sum and product, and asserted nowhere unless `debug` is set.
    shared = interpreter.interpreter_builder
    shared.options = replace(shared.options, sanitize_overflow=False)
