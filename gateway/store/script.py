"""A Lua script and its SHA-1."""

from __future__ import annotations

from hashlib import sha1
from pathlib import Path


class Script:
    """A script that Redis runs by its hash; the link loads it again where Redis has forgotten it.

    Args:
        source: the Lua text. Its head names KEYS, ARGV and the result.
    """

    __slots__ = ("name", "sha", "source")

    def __init__(self, source: str | bytes, name: str = "script") -> None:
        self.source = source.encode() if isinstance(source, str) else source
        self.sha = sha1(self.source, usedforsecurity=False).hexdigest().encode()
        self.name = name

    @classmethod
    def beside(cls, module_file: str, name: str) -> Script:
        """The script `name` (with its `.lua`) in the folder of a module: `Script.beside(__file__, "take.lua")`."""
        return cls((Path(module_file).parent / name).read_bytes(), name)

    def __repr__(self) -> str:
        return f"<Script {self.name} {self.sha[:8].decode()}>"
