"""What is wrong with a configuration, in words, without showing a secret."""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, SecretBytes, SecretStr, ValidationError
from pydantic.fields import FieldInfo

from gateway.config.values import Substituted, parse_size, parse_span

Location = Sequence[str | int]

HIDDEN: Final = "a value that is not shown"
MAX_SHOWN: Final = 80

_SECRET_NAME: Final = re.compile(r"passw|passphrase|secret|token|credential|private|(^|_)(api)?keys?$", re.IGNORECASE)
_SECRET_PARAMETER: Final = re.compile(r"([?&][^=&]*(?:passw|secret|token)[^=&]*=)[^&]*", re.IGNORECASE)
# pydantic speaks of Python's types; the file has TOML's.
_EXPECTED: Final = {
    "model_type": "expected a table",
    "model_attributes_type": "expected a table",
    "dict_type": "expected a table",
    "list_type": "expected a list",
    "tuple_type": "expected a list",
    "set_type": "expected a list",
    "string_type": "expected a string",
    "int_type": "expected a whole number",
    "int_parsing": "expected a whole number",
    "int_from_float": "expected a whole number",
    "float_type": "expected a number",
    "float_parsing": "expected a number",
    "bool_type": "expected true or false",
    "bool_parsing": "expected true or false",
    "greater_than": "expected more than {gt}{unit}",
    "greater_than_equal": "expected {ge}{unit} or more",
    "less_than": "expected less than {lt}{unit}",
    "less_than_equal": "expected {le}{unit} or less",
    "too_short": "expected at least {min_length}",
    "too_long": "expected at most {max_length}",
    "string_pattern_mismatch": "expected text of the form {pattern}",
    "string_too_short": "expected at least {min_length} characters",
    "string_too_long": "expected at most {max_length} characters",
}
_UNITS: Final = {parse_span: " s", parse_size: " bytes"}
# Shorter values are words, or letters of words: only where they stand alone is one taken for a value that was quoted.
MIN_SECRET: Final = 4


class Problem(BaseModel):
    """One thing wrong with the configuration."""

    key: str
    expected: str
    found: str = ""
    hint: str = ""

    def __str__(self) -> str:
        text = f"{self.key}: {self.expected}"
        if self.found:
            text += f", found {self.found}"
        if self.hint:
            text += f"\n    hint: {self.hint}"
        return text


class ConfigError(Exception):
    """The configuration cannot be used; `problems` has all that is wrong with it."""

    def __init__(self, source: str, problems: Sequence[Problem]) -> None:
        self.source = source
        self.problems = tuple(problems)
        count = f"{len(self.problems)} problem" + ("s" if len(self.problems) != 1 else "")
        super().__init__(f"{source}: {count}\n" + "\n".join(f"  {problem}" for problem in self.problems))


def did_you_mean(name: str, known: Sequence[str], otherwise: str) -> str:
    """The name that was probably meant, or else `otherwise`."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}?" if close else otherwise


def redact(url: str) -> str:
    """A URL without its user, password and secret parameters; one that is malformed is cut rather than shown."""
    before, at, after = url.rpartition("@")
    if at:
        scheme, colon, _ = before.partition("://")
        url = f"{scheme}://***@{after}" if colon else f"***@{after}"
    return _SECRET_PARAMETER.sub(r"\1***", url)


def path_of(loc: Location) -> str:
    """`plugins.rate_limit.limits[0]`."""
    text = ""
    for part in loc:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def problems_of(error: ValidationError, model: type[BaseModel], data: Any, prefix: Location = ()) -> list[Problem]:
    """pydantic's errors in our words.

    Args:
        error: what `model` raised.
        model: the model that read `data`.
        data: what was read; it tells which parts of an error's location are keys and which pydantic made up.
        prefix: where `data` stands in the configuration.
    """
    problems: dict[str, Problem] = {}
    for item in error.errors(include_url=False):
        loc = _written(item["loc"], data)
        key = path_of((*prefix, *loc))
        field, _ = _locate(model, loc)
        hint = (field.description or "") if field is not None else ""
        kind, value = item["type"], item["input"]
        if kind == "extra_forbidden":
            _, models = _locate(model, loc[:-1])
            known = sorted({name for at in models for name in at.model_fields})
            hint = did_you_mean(str(loc[-1]), known, f"known keys here: {', '.join(known) or 'none'}")
            problem = Problem(key=key, expected="unknown key", hint=hint)
        elif kind == "missing":
            problem = Problem(key=key, expected="missing, and it has no default", hint=hint)
        else:
            limits = {name: _whole(limit) for name, limit in item.get("ctx", {}).items()} | {"unit": _unit(field)}
            if kind == "too_short" and len(value) >= limits["min_length"]:
                continue  # pydantic leaves out the members that are wrong, each of which it tells by itself
            text = _EXPECTED.get(kind, "").format_map(limits) or item["msg"].removeprefix("Value error, ")
            text = text.replace("Input should be", "expected")
            # What is wrong with several keys together is said of their table.
            found = "" if kind == "value_error" and isinstance(value, Mapping) else show((*prefix, *loc), value, field)
            if isinstance(value, str) and value and (found == HIDDEN or isinstance(value, Substituted)):
                text = _without(value, text)  # a plugin's own validator may have quoted it
            problem = Problem(key=key, expected=text, found=found, hint=hint)
        if key in problems and problem.expected != problems[key].expected:
            # The branches of a union fail one by one; together they are what was expected.
            more = problem.expected.removeprefix("expected ")
            problem = problems[key].model_copy(update={"expected": f"{problems[key].expected} or {more}"})
        problems[key] = problem
    return list(problems.values())


def show(loc: Location, value: Any, field: FieldInfo | None = None) -> str:
    """A value for an error message; one that may be secret is not shown."""
    # The second word under these is a name that somebody chose for the table, not what the value is.
    names = loc[2:] if loc and loc[0] in ("plugins", "upstreams") else loc
    if any(isinstance(name, str) and _SECRET_NAME.search(name) for name in names):
        return HIDDEN
    if field is not None and any(option in (SecretStr, SecretBytes) for option in _options(field.annotation)):
        return HIDDEN
    text = _text(value)
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return "a table"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_text, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str) and not isinstance(value, Substituted):
        return repr(redact(value))
    return repr(value)


def _without(value: str, text: str) -> str:
    pattern = re.escape(value)
    return re.sub(pattern if len(value) >= MIN_SECRET else rf"(?<!\w){pattern}(?!\w)", "***", text)


def _unit(field: FieldInfo | None) -> str:
    readers = [one.func for one in field.metadata if isinstance(one, BeforeValidator)] if field is not None else []
    return next((unit for read, unit in _UNITS.items() if read in readers), "")


def _whole(limit: Any) -> Any:
    return int(limit) if isinstance(limit, float) and limit.is_integer() else limit


def _written(loc: Location, data: Any) -> tuple[str | int, ...]:
    """A location without the names of union branches: the keys of the data, the last of which may be missing."""
    found: list[str | int] = []
    for part in loc:
        if isinstance(data, Mapping):
            found.append(part)
            data = data.get(part)
        elif isinstance(part, int) and isinstance(data, list | tuple) and part < len(data):
            found.append(part)
            data = data[part]
    return tuple(found)


def _locate(model: type[BaseModel], loc: Location) -> tuple[FieldInfo | None, list[type[BaseModel]]]:
    """The field at a location, and the models that may stand there."""
    field: FieldInfo | None = None
    options: list[Any] = [model]
    for part in loc:
        inner: list[Any] = []
        for option in options:
            if isinstance(option, type) and issubclass(option, BaseModel):
                field = option.model_fields.get(str(part), field)
                inner += _options(option.model_fields[str(part)].annotation) if part in option.model_fields else []
            else:
                inner += [deeper for argument in get_args(option) for deeper in _options(argument)]
        options = inner
    return field, [option for option in options if isinstance(option, type) and issubclass(option, BaseModel)]


def _options(annotation: Any) -> list[Any]:
    """The branches of a union, without `Annotated`."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _options(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [option for argument in get_args(annotation) for option in _options(argument)]
    return [annotation]
