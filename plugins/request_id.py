"""Gives each request an id that the upstream, the client and the access log agree on."""

from __future__ import annotations

import re
from typing import Annotated, Any, Final

from pydantic import Field, StringConstraints

from gateway.plugin import Plugin, PluginConfig, Request, Response

_WELL_FORMED: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")


class RequestId(Plugin):
    """Put it first in a chain: then refusals have the id too."""

    class Config(PluginConfig):
        header: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9-]{1,100}$")] = Field(
            "X-Request-Id", description="Name of the field with the id, to the upstream and to the client."
        )
        trust: bool = Field(
            False, description="Whether to keep an id that came in, if it is at most 128 of A-Z a-z 0-9 . _ -"
        )

    config: Config

    def __init__(self, config: Config, name: str) -> None:
        super().__init__(config, name)
        self._lower = config.header.lower().encode()

    def check(self, request: Request, reply: Any) -> None:
        if self.config.trust:
            given = request.headers.getall(self.config.header, ())
            if len(given) == 1 and _WELL_FORMED.fullmatch(given[0]):
                request.id = given[0]
        # Ours is made of a node's name and a number: nothing in it can split a header.
        line = f"{self.config.header}: {request.id}\r\n".encode()
        request.changes[self._lower] = request.state[self.name] = line

    def finish(self, request: Request, response: Response) -> None:
        response.set_line(self._lower, request.state[self.name])
