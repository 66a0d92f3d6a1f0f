"""What answers can be purged by: tags in fields of the upstream's answers, and those that templates make of a request.

A template is a text with placeholders, `product:{path.id}`:

    {path.NAME}     what a route's or rule's segment `{NAME}` matched; {path.2}: the path's second segment
    {query.NAME}    a parameter of the query
    {header.NAME}   a field of the request

The values are what the upstream reads: percent-encoding is taken off once. What stands for nothing here makes no tag.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Final
from urllib.parse import parse_qsl, unquote

from multidict import MultiMapping

from gateway.plugin import Request
from plugins.cache.entry import MAX_TAGS, MAX_TEXT
from plugins.cache.syntax import tags_of

MAX_TEMPLATE: Final = 1000
MAX_VALUE: Final = 256
"""Characters. Clients choose the values: what is longer is nobody's name."""
MAX_PARAMETERS: Final = 256

_PLACEHOLDER: Final = re.compile(r"\{(path|query|header)\.([A-Za-z0-9_.~-]{1,100})\}")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_NO_VALUES: Final[Mapping[str, str]] = {}


class Missing(Exception):
    """A placeholder that stands for nothing in this request."""


class Unusable(Exception):
    """A value that no name can be made of: too long, told twice, or with a control character."""


class Values:
    """What placeholders stand for in one request.

    Args:
        named: of the path's segments, decoded; the route's own stand behind them.
    """

    def __init__(self, request: Request, named: Mapping[str, str] = _NO_VALUES) -> None:
        self._request = request
        self._named = named

    def get(self, source: str, name: str) -> str:
        """The value of a placeholder.

        Raises:
            Missing: there is none, or an empty one.
            Unusable: it cannot be used.
        """
        found = {"path": self._path, "query": self._query, "header": self._header}[source](name)
        if len(found) > 1:
            raise Unusable(f"{source}.{name} is there {len(found)} times")
        if not found or not found[0]:
            raise Missing(f"{source}.{name} is not there")
        if len(found[0]) > MAX_VALUE or _CONTROL.search(found[0]):
            raise Unusable(f"{source}.{name} is too long or has a control character")
        return found[0]

    def _path(self, name: str) -> list[str]:
        if name in self._named:
            return [self._named[name]]
        if name.isdigit():
            return segments_of(self._request.path)[int(name) - 1 : int(name)]
        return [decoded(value) for value in (self._request.params.get(name),) if value is not None]

    def _query(self, name: str) -> list[str]:
        try:
            pairs = parse_qsl(
                self._request.query, keep_blank_values=True, errors="surrogateescape", max_num_fields=MAX_PARAMETERS
            )
        except ValueError as error:
            raise Unusable(f"more than {MAX_PARAMETERS} parameters") from error
        return [value for key, value in pairs if key == name]

    def _header(self, name: str) -> list[str]:
        return [value.strip() for value in self._request.headers.getall(name, ())]


class Template:
    """A text with placeholders.

    Args:
        text: as the configuration has it.

    Raises:
        ValueError: what is wrong with it.
    """

    __slots__ = ("_literals", "placeholders", "text")

    def __init__(self, text: str) -> None:
        if not text or len(text) > MAX_TEMPLATE:
            raise ValueError(f"expected a name of at most {MAX_TEMPLATE} characters, such as product:{{path.id}}")
        # A text, then source and name of what follows it, and so on.
        pieces = _PLACEHOLDER.split(text)
        self.text = text
        self._literals = pieces[::3]
        self.placeholders = tuple(zip(pieces[1::3], pieces[2::3], strict=True))
        """Source and name of each."""
        for literal in self._literals:
            if "{" in literal or "}" in literal:
                raise ValueError(f"{text}: a placeholder is {{path.NAME}}, {{query.NAME}} or {{header.NAME}}")
            if _CONTROL.search(literal) or " " in literal:
                raise ValueError(f"{text}: a name has no spaces and no control characters")
        if any(source == "path" and name.strip("0") == "" for source, name in self.placeholders):
            raise ValueError(f"{text}: the path's first segment is {{path.1}}")

    def __repr__(self) -> str:
        return f"<Template {self.text}>"

    def expand(self, values: Values, quote: Callable[[str], str] = str) -> str:
        """The text for one request.

        Args:
            quote: what is done to each value.

        Raises:
            Missing, Unusable: see `Values.get`.
        """
        text = self._literals[0]
        for (source, name), literal in zip(self.placeholders, self._literals[1:], strict=True):
            text += quote(values.get(source, name)) + literal
        return text


def parse_templates(
    texts: Iterable[str], *, keyed: Collection[str] = (), ignored: Sequence[str] = ()
) -> tuple[Template, ...]:
    """The key `tag_templates`.

    What is no part of an answer's key is refused: who asks first would choose the tag of an answer that others get, and
    so whether a purge finds it.

    Args:
        keyed: the request fields that are part of every key, in any case.
        ignored: the parameters that are not, by name or by how names begin: `utm_*`.

    Raises:
        ValueError: which template is wrong, and why.
    """
    templates = tuple(Template(text) for text in texts)
    known = {name.lower() for name in keyed}
    for template in templates:
        for source, name in template.placeholders:
            if (source == "header" and name.lower() not in known) or (
                source == "query" and any(fnmatchcase(name, pattern) for pattern in ignored)
            ):
                raise ValueError(
                    f"{template.text}: {name} is no part of the key, so whoever asks first would choose the tag of what"
                    " others get; see key_headers and ignore_query"
                )
    return templates


def tags_for(
    request: Request, fields: MultiMapping[str], names: Sequence[str], templates: Sequence[Template] = ()
) -> tuple[str, ...] | None:
    """The tags of an answer.

    Args:
        fields: the answer's header fields; `names` are those with tags.

    Returns:
        None if it cannot be stored with all of them: it could not be purged by one that is left out.
    """
    found = dict.fromkeys(tags_of(fields, names))
    values = Values(request)
    for template in templates:
        try:
            found[template.expand(values)] = None
        except Missing:
            continue
        except Unusable:
            return None
    if len(found) > MAX_TAGS or sum(map(len, found)) + len(found) > MAX_TEXT:
        return None
    return tuple(found)


def segments_of(path: str) -> list[str]:
    """A path's segments as an upstream reads them: each decoded, dot segments resolved, empty ones left out."""
    found: list[str] = []
    for raw in path.replace("\\", "/").split("/"):
        segment = decoded(raw)
        if segment == "..":
            del found[-1:]
        elif segment not in ("", "."):
            found.append(segment)
    return found


def decoded(text: str) -> str:
    """Percent-encoding taken off, once; bytes that are no UTF-8 become surrogates, as in header fields."""
    return unquote(text, errors="surrogateescape")
