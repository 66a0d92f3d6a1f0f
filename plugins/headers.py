"""Sets, adds and removes header fields: of requests on the way in, of answers on the way out."""

from __future__ import annotations

import re
from typing import Annotated, Any, Final

from pydantic import AfterValidator, Field

from gateway.plugin import Plugin, PluginConfig, Request, Response, header_line

_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}")  # RFC 9110, section 5.6.2
# RFC 9110, section 7.6.1, and what frames or routes a message: the gateway itself has to be right about them.
_NOT_OURS: Final = frozenset(
    {"connection", "content-length", "expect", "host", "keep-alive", "proxy-connection"}
    | {"te", "trailer", "transfer-encoding", "upgrade"}
)


def _name(value: str) -> str:
    if not _TOKEN.fullmatch(value):
        raise ValueError("expected a header's name: letters, digits and - without spaces")
    if value.lower().replace("_", "-") in _NOT_OURS:
        raise ValueError("expected another header: this one belongs to the connection, which is the gateway's business")
    return value


def _value(value: str) -> str:
    if value != value.strip():
        raise ValueError("expected a value without spaces around it: they would be lost on the way")
    try:
        header_line("", value)
    except ValueError:
        raise ValueError("expected a value without line breaks and other control characters") from None
    return value


Name = Annotated[str, AfterValidator(_name)]
Fields = dict[Name, Annotated[str, AfterValidator(_value)]]


class Changes(PluginConfig):
    """What becomes of the header; done in the order of these keys."""

    remove: tuple[Name, ...] = Field((), description="Names of fields to take away.")
    set: Fields = Field({}, description="Fields that replace any others of their name.")
    add: Fields = Field({}, description="Fields that stand beside others of their name.")


class Headers(Plugin):
    """The order in the chain counts: what a plugin further in sets on an answer is changed by one further out."""

    class Config(PluginConfig):
        request: Changes = Field(Changes(), description="Of requests, before they reach the upstream.")
        response: Changes = Field(Changes(), description="Of answers, before they reach the client.")

    config: Config

    def __init__(self, config: Config, name: str) -> None:
        super().__init__(config, name)
        self._set = [(key.lower().encode(), header_line(key, value)) for key, value in config.response.set.items()]

    def check(self, request: Request, reply: Any) -> None:
        incoming = self.config.request
        for name in incoming.remove:
            request.remove_header(name)
        for name, value in incoming.set.items():
            request.set_header(name, value)
        for name, value in incoming.add.items():
            request.add_header(name, value)

    def finish(self, request: Request, response: Response) -> None:
        outgoing = self.config.response
        for name in outgoing.remove:
            response.remove(name)
        for lower, line in self._set:
            response.set_line(lower, line)
        for name, value in outgoing.add.items():
            response.headers.add(name, value)
