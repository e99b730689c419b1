"""YAML text to dicts, lists and scalars: the subset of YAML that tables are written in.

Built from the parser's events and not by a loader, because an event stream can be left at
the first anchor, tag or level too deep, before it costs memory, runs code or overflows the
C stack, which PyYAML's C composer does on ``[[[[…``.

Nearly all of a table is mappings in braces that begin and end on one line. Regular expressions read
those, and YAML's parser sees a stand-in for each of them: the H200's table (246 entries, 2.6 MB)
then takes a quarter of the time. Wherever that might differ from YAML in meaning, YAML decides.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

from autogemm.database.fields import TWICE, Invalid

MAX_DEPTH = 16
"""Tables need eight levels."""

_Events = Iterator[Any]  # PyYAML's events differ in their attributes, and its stubs name few
_Parser = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_WORDS: dict[str, object] = {
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys((".inf", "+.inf", ".Inf", ".INF"), float("inf")),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), float("-inf")),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
}
# Eighteen digits fit 64 bits and stay clear of Python's limit on the conversion of long ones.
_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,17})")
_FLOAT = re.compile(r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?")


def parse(text: str, *, ended: bool = True) -> object:
    """The one document in ``text``, as dicts with text keys, lists, str, int, float, bool, None.

    Scalars follow YAML 1.2: ``yes`` and ``2026-11-22`` are text. A key that stands twice in one
    mapping maps to ``TWICE``. Raises ``Invalid`` with line and column for what is not YAML; for
    anchors, aliases and tags; beyond ``MAX_DEPTH`` levels; and, if it has to be ``ended``, for a
    document that does not end with ``...``: how a truncated table is told from a short one. Equal
    mappings may be one object; leave them as they are.
    """
    if _STAND_IN not in text:
        skeleton, cut = _without_braces(text)
        mappings = iter(cut)
        try:
            root = _with_braces(_parsed(skeleton, ended), mappings, 1)
            if next(mappings, None) is None:  # not so where braces were no mapping, but text
                return root
        except (Invalid, _ForYAML):
            pass  # what is wrong, and where, is said of the text as it stands
    return _parsed(text, ended)


def _parsed(text: str, ended: bool) -> object:
    try:
        return _document(iter(yaml.parse(text, Loader=_Parser)), ended)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise Invalid(f"{where}expected YAML, {error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # characters YAML rules out
        raise Invalid(f"expected YAML, {str(error).splitlines()[0]}") from None


def _document(events: _Events, ended: bool) -> object:
    next(events)  # the start of the stream
    if isinstance(next(events), yaml.StreamEndEvent):
        if not ended:
            return None
        raise Invalid("expected a table, found an empty file")
    root = _node(next(events), events, 1)
    if not next(events).explicit and ended:
        raise Invalid("expected '...' as the last line, found the end of a truncated file")
    if not isinstance(after := next(events), yaml.StreamEndEvent):
        raise _refused(after, "nothing after '...'", "another document")
    return root


def _node(event: Any, events: _Events, depth: int) -> object:
    kind = type(event)
    if kind is yaml.AliasEvent:
        raise _refused(event, "no aliases", f"*{event.anchor:.60}")
    if event.anchor is not None:
        raise _refused(event, "no anchors", f"&{event.anchor:.60}")
    if event.tag is not None:
        raise _refused(event, "no tags", f"{event.tag:.60}")
    if kind is yaml.ScalarEvent:
        return _scalar(event.value) if event.implicit[0] else event.value
    if depth > MAX_DEPTH:
        raise _refused(event, f"at most {MAX_DEPTH} levels", "one more")
    if kind is yaml.SequenceStartEvent:
        return _sequence(events, depth)
    return _mapping(events, depth)


def _sequence(events: _Events, depth: int) -> list[object]:
    items: list[object] = []
    while type(event := next(events)) is not yaml.SequenceEndEvent:
        items.append(_node(event, events, depth + 1))
    return items


def _mapping(events: _Events, depth: int) -> dict[str, object]:
    pairs: dict[str, object] = {}
    while type(event := next(events)) is not yaml.MappingEndEvent:
        if type(event) is not yaml.ScalarEvent or event.anchor or event.tag:
            raise _refused(event, "a plain word as key", "something else")
        key = event.value
        value = _node(next(events), events, depth + 1)
        pairs[key] = TWICE if key in pairs else value
    return pairs


def _scalar(text: str) -> object:
    if text in _WORDS:
        return _WORDS[text]
    if text[0] in "-+.0123456789":
        if _INTEGER.fullmatch(text):
            return int(text)
        if _FLOAT.fullmatch(text):
            return float(text)
    return text


# ------------------------------------------------------------------- braces on one line

_STAND_IN = "~{}~"
_BRACES_DEPTH = 3
"""How deep in braces the expression below goes."""

# A pair, with what separates it from the one before; a bare word or number.
_PAIR = re.compile(
    r"(?:\A\{|, )([A-Za-z_]\w{0,59}): "
    r'([^,{}":]+|"[ !#-\[\]-~]*"|\{[^{}"]*(?:\{[^{}"]*\}[^{}"]*)*\})(?=, |\}\Z)',
    re.A,
)
_BARE = re.compile(r"-?[A-Za-z0-9_.+/(][\w.+/()-]*(?: [\w.+/()-]+)*", re.A)


def _without_braces(text: str) -> tuple[str, list[dict[str, object]]]:
    """The text with a stand-in for each mapping in braces that ends its line, and the mappings."""
    lines, read = text.split("\n"), _Read()
    cut = []
    for place, line in enumerate(lines):
        before, brace, after = line.partition("{")
        if brace:
            try:
                cut.append(_mapping_in_braces(brace + after, read))
            except _ForYAML:
                continue
            lines[place] = f'{before}"{_STAND_IN}"'
    return "\n".join(lines), cut


class _ForYAML(Exception):
    """What a text means is for YAML's parser to say."""


class _Read(dict[str, object]):
    """What values in braces spell; each is read once."""

    def __missing__(self, text: str) -> object:
        if text[0] == "{":
            value: object = _mapping_in_braces(text, self)
        elif text[0] == '"':
            value = text[1:-1]
        elif _BARE.fullmatch(text):
            value = _scalar(text)
        else:
            raise _ForYAML
        self[text] = value
        return value


def _mapping_in_braces(text: str, read: _Read) -> dict[str, object]:
    pairs = _PAIR.findall(text)
    # Four more characters go with a pair: colon and space, and a comma and space or a brace.
    seen = len("".join(map("".join, pairs))) + 4 * len(pairs)
    found = {key: read[value] for key, value in pairs}
    if seen != len(text) or len(found) != len(pairs):
        raise _ForYAML
    return found


def _with_braces(node: object, cut: Iterator[dict[str, object]], depth: int) -> object:
    """``node`` with the mappings in the places of their stand-ins."""
    if node == _STAND_IN:
        if depth + _BRACES_DEPTH > MAX_DEPTH:
            raise _ForYAML
        return next(cut)
    if isinstance(node, list):
        return [_with_braces(item, cut, depth + 1) for item in node]
    if isinstance(node, dict):
        return {key: _with_braces(value, cut, depth + 1) for key, value in node.items()}
    return node


def _refused(event: Any, expected: str, found: str) -> Invalid:
    mark = event.start_mark
    return Invalid(
        f"line {mark.line + 1}, column {mark.column + 1}: expected {expected}, found {found}"
    )
