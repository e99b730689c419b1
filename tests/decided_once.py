"""What Triton's language makes of a call is decided once for all calls of the same types.

Between ``x + y`` in a kernel and numpy's sum lie checks of types, promotions and broadcasts, which
depend on types and constants alone, never on what a tensor holds. So the first call of its kind is
followed, and the later ones only repeat what it asked of the interpreter's builder.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import triton.language as tl
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter

MOST = 4096
"""Calls of one function that are remembered; a loop's counter may make each another one."""
CONSTANT = ("get_", "create_splat", "create_make_range")
"""These, of constants only, make constants (not what a program is, or what memory holds)."""
PLAIN = (int, bool, str, type(None))

Handle = interpreter.TensorHandle
Tensor = tl.tensor


class Untold(Exception):
    """A call of which types and constants do not tell everything."""


class Follower:
    """A builder that notes what is asked of it."""

    def __init__(self, builder: Any, handles: list[Any]) -> None:
        self.builder = builder
        self.kept = list(handles)  # their ids are theirs while they are kept
        self.names: dict[int, Any] = {id(handle): ("own", i) for i, handle in enumerate(handles)}
        self.constants: list[Any] = []
        self.steps: list[tuple[str, list[Any]]] = []

    def __getattr__(self, name: str) -> Any:
        there = getattr(self.builder, name)
        return self._noting(name, there) if name.startswith(("create_", "get_")) else there

    def _noting(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            if options or any(isinstance(x, (list, tuple)) and _holds(x) for x in args):
                raise Untold  # before anything is stored
            made = function(*args)
            if not isinstance(made, Handle) and made is not None:
                if name.startswith("create_"):
                    raise Untold
                return made  # a type
            places = [self._place(x) for x in args]
            if name.startswith(CONSTANT) and all(kind == "constant" for kind, _ in places):
                made.data.flags.writeable = False
                self._keep(made, self._constant(made))
            else:
                self._keep(made, ("made", len(self.steps)))
                self.steps.append((name, places))
            return made

        return call

    def _keep(self, made: Any, place: Any) -> None:
        if made is not None:
            self.kept.append(made)
            self.names[id(made)] = place

    def _place(self, x: Any) -> Any:
        if isinstance(x, Handle):
            if id(x) not in self.names:
                raise Untold
            return self.names[id(x)]
        return self._constant(x)

    def _constant(self, x: Any) -> Any:
        self.constants.append(x)
        return "constant", len(self.constants) - 1

    def again(self, made: Any, tensors: list[Any]) -> Callable[[Any, list[Any]], Any]:
        """What asks a builder for the same with other tensors, as Python that was written once."""
        if made is not None and type(made) is not Tensor:
            raise Untold
        result = None if made is None else self._place(made.handle)  # nothing, if it was stored
        text = ["def again(builder, tensors):"]
        text += [f"    own{i} = tensors[{i}].handle" for i in range(len(tensors))]
        for i, (name, places) in enumerate(self.steps):
            given = ", ".join(f"{kind}{j}" for kind, j in places)
            text.append(f"    made{i} = builder.{name}({given})")
        same = next((i for i, x in enumerate(tensors) if x is made), None)
        if same is not None:
            text.append(f"    return tensors[{same}]")
        elif result is not None:
            text += ["    tensor = new(Tensor)", "    tensor.__dict__.update(values)"]
            text += [f"    tensor.handle = {result[0]}{result[1]}", "    return tensor"]
        names = {f"constant{i}": x for i, x in enumerate(self.constants)}
        values = {} if made is None else {**vars(made), "handle": None}
        names |= {"new": Tensor.__new__, "Tensor": Tensor, "values": values}
        exec("\n".join([*text, "    return None"]), names)
        found: Callable[[Any, list[Any]], Any] = names["again"]
        return found


def _holds(x: Any) -> bool:
    return any(isinstance(each, Handle) for each in x)


def _name(x: Any, names: list[Any], tensors: list[Any]) -> None:
    """Add to ``names`` what is the same in calls of the same kind, and each tensor to the others.

    A tensor's is its type's name, all others follow their Python types.
    """
    kind = type(x)
    if kind is Tensor:
        names.append(x.type.name)
        tensors.append(x)
        return
    names.append(kind)
    if kind in PLAIN:
        names.append(x)
    elif kind is float:
        names.append(x.hex())
    elif kind is tl.constexpr:
        _name(x.value, names, tensors)
    elif kind in (tuple, list, tl.tuple):
        names.append(len(x))
        for each in x:
            _name(each, names, tensors)
    elif kind is slice:
        names.append((x.start, x.stop, x.step))
    elif isinstance(x, tl.dtype):
        names.append(x.name)
    else:
        raise Untold


def _copied(x: Any, copies: list[Any]) -> Any:
    """``x`` with a tensor of its own for each: the same one may be given twice."""
    if type(x) is Tensor:
        handle = Handle(x.handle.data, x.handle.dtype, x.handle.attr)
        copies.append(Tensor(handle, x.type))
        return copies[-1]
    if type(x) in (tuple, list):
        return type(x)([_copied(each, copies) for each in x])
    if type(x) is tl.tuple:
        return tl.tuple([_copied(each, copies) for each in x])
    return x


def decided_once(member: Callable[..., Any], builder: Any) -> Callable[..., Any]:
    """``member`` of Triton's language as the interpreter has it, of builtins that make tensors."""
    plans: dict[Any, Any] = {}
    slowly = TritonSemantic(builder)

    def follow(key: Any, tensors: list[Any], args: Any, options: dict[str, Any]) -> Any:
        copies: list[Any] = []
        own = [_copied(x, copies) for x in args]
        named = {name: _copied(x, copies) for name, x in options.items()}
        follower = Follower(builder, [x.handle for x in copies])
        if len(plans) >= MOST:
            plans.clear()
        try:
            made = member(*own, **named, _semantic=TritonSemantic(follower))
        except Untold:
            plans[key] = None
            return member(*args, **options, _semantic=slowly)
        try:
            plans[key] = follower.again(made, copies)
        except Untold:
            plans[key] = None
        return next((x for x, copy in zip(tensors, copies, strict=True) if copy is made), made)

    def call(*args: Any, **options: Any) -> Any:
        semantic = options.pop("_semantic", None)
        if semantic is not None and type(semantic.builder) is Follower:
            return member(*args, **options, _semantic=semantic)
        names: list[Any] = []
        tensors: list[Any] = []
        try:
            for x in args:
                _name(x, names, tensors)
            for name, x in options.items():
                names.append(name)
                _name(x, names, tensors)
        except Untold:
            return member(*args, **options, _semantic=slowly)
        key = tuple(names)
        plan = plans.get(key, False)
        if plan is False:
            return follow(key, tensors, args, options)
        if plan is None:
            return member(*args, **options, _semantic=slowly)
        return plan(builder, tensors)

    return call
