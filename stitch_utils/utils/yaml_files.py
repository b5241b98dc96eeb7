"""Read what people write in YAML, and take nothing for something else (no section of the papers).

YAML has rules that few expect: `no` is false, 0012345 is 5349, 1:30 is 90, and of two equal keys the last one counts.
Here an entry is what its configuration asks for, by pydantic, which converts nothing, or it is refused by its full
name, such as `text.train.config`.

Offers `parse_yaml`, `check_entries`, `mapping`, `build`.
"""

import contextlib
import dataclasses
import functools
import re
import types
from collections.abc import Collection, Mapping
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

T = TypeVar("T")
Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same language, read nine times faster
_TAG = "tag:yaml.org,2002:"
_ODD = re.compile(r"[-+]?(0[0-9_]+|[0-9_]+(:[0-5]?[0-9])+(\.[0-9_]*)?)")  # numbers in base 8 or 60
_EXPECTED = {
    "string_type": "a text",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "dict_type": "a mapping",
    "mapping_type": "a mapping",
    "tuple_type": "a list",
}


class _Loader(Loader):
    """YAML in which `1e-8` is a number, as in YAML 1.2; YAML 1.1 wants a point in it, and a sign behind the e."""


_EXPONENT = re.compile(r"[-+]?([0-9][0-9_]*\.?[0-9_]*|\.[0-9_]+)[eE][-+]?[0-9]+$")
_Loader.add_implicit_resolver(f"{_TAG}float", _EXPONENT, list("-+.0123456789"))


def parse_yaml(text: str) -> Any:
    """Parse one document, in which `1e-8` is a number.

    Raise ValueError, with the entry's full name, for a key that is given twice or is no text, and for a number in base
    8 or 60; raise YAMLError for what is no YAML.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _check(node, "", ())
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _check(node: yaml.Node, name: str, around: tuple[yaml.Node, ...]) -> None:
    """Raise ValueError for what `parse_yaml` refuses; `around` holds the nodes that this one is part of."""
    if any(node is one for one in around):
        raise ValueError(f"{name} is part of itself: expected no such alias")
    inside = (*around, node)
    if isinstance(node, yaml.SequenceNode):
        for number, part in enumerate(node.value):
            _check(part, _within(name, number), inside)
    elif isinstance(node, yaml.MappingNode):
        keys = set()
        for key, value in node.value:
            if key.tag == f"{_TAG}merge":
                _check(value, name, inside)
                continue
            full = _within(name, key.value if isinstance(key, yaml.ScalarNode) else "?")
            if key.tag != f"{_TAG}str":
                raise ValueError(f"{full} is no text for a name to YAML: put it in quotation marks")
            if key.value in keys:
                raise ValueError(f"line {key.start_mark.line + 1}: given twice: {full}")
            keys.add(key.value)
            _check(value, full, inside)
    elif node.tag in (f"{_TAG}int", f"{_TAG}float") and _ODD.fullmatch(node.value):
        base = 60 if ":" in node.value else 8
        raise ValueError(
            f"{name}: {node.value} is a number in base {base} to YAML: if it is a text, put it in quotation marks"
        )


def _within(name: str, part: object) -> str:
    return f"{name}.{part}" if name else str(part)


def mapping(value: Any, name: str) -> dict[str, Any]:
    """Return the entry `name` as it is; raise ValueError unless it is a mapping."""
    if not isinstance(value, dict):
        raise ValueError(f"{name}: expected a mapping, got {value!r}")
    return value


def check_entries(data: Any, name: str, expected: Collection[str], required: Collection[str]) -> None:
    """Raise ValueError, with all full names, unless `data` is a mapping with none but these entries; "" is the file."""
    wrong = {"unknown": set(mapping(data, name)) - set(expected), "missing": set(required) - set(data)}
    said = (f"{word} {', '.join(_within(name, key) for key in sorted(keys))}" for word, keys in wrong.items() if keys)
    if listed := "; ".join(said):
        raise ValueError(f"{listed}; expected {', '.join(expected)}")


def build(kind: type[T], data: Any, name: str) -> T:
    """Build a dataclass from the mapping that stands under `name`; "" is the file.

    A list becomes a tuple where the dataclass has one. Raise ValueError, with the entry's full
    name, for entries that are unknown, missing, or of another type than the field has, and for what `kind` refuses.
    """
    fields: Any = dataclasses.fields(kind)  # type: ignore[arg-type]
    required = [one.name for one in fields if one.default is one.default_factory is dataclasses.MISSING]
    check_entries(data, name, [one.name for one in fields], required)
    hints = get_type_hints(kind)
    values = {key: _fitting(value, hints[key], _within(name, key)) for key, value in data.items()}
    try:
        return kind(**values)
    except ValueError as error:
        raise ValueError(f"{name}: {error}" if name else str(error)) from None


@functools.lru_cache(maxsize=64)
def _adapter(hint: Any) -> TypeAdapter:
    return TypeAdapter(hint)


def _fitting(value: Any, hint: Any, name: str) -> Any:
    """Return a value as a field of this type takes it; raise ValueError for one of another type."""
    kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    if isinstance(value, list) and any(get_origin(kind) is tuple for kind in kinds):
        value = tuple(value)
    try:
        _adapter(hint).validate_python(value, strict=True)
    except ValidationError as error:
        raise ValueError(_mismatch(error, name)) from None
    return value


def _mismatch(error: ValidationError, name: str) -> str:
    """Say of the first value that is of another type what was expected, and what to write."""
    found = error.errors(include_url=False)
    expected = dict.fromkeys(_EXPECTED.get(one["type"], one["msg"]) for one in found)
    value = found[0]["input"]
    name = ".".join([name, *(str(part) for part in found[0]["loc"] if isinstance(part, int))])
    if value is None:
        return f"{name} is empty: expected {' or '.join(expected)}"
    if [*expected] == ["a text"] and not isinstance(value, Mapping | list | tuple):
        return f"{name} is no text but {value}: put it in quotation marks"
    remedy = ""
    if "a whole number" in expected and isinstance(value, str | float):
        with contextlib.suppress(ValueError, OverflowError):
            number = float(value)
            remedy = f": write {int(number)}" if number == int(number) else ""
    return f"{name}: expected {' or '.join(expected)}, got {value!r}{remedy}"
