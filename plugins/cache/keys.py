"""Names of keys. Two requests that may get different answers never share one.

    {prefix}:cache:{H}       what is stored: an answer, an index of `Vary`, or a mark that it cannot be stored
    {prefix}:cache:{H#i}     the same once more, for a key that is read very often
    {prefix}:lock:{H}        who fetches it
    {prefix}:gen:...         see `generations`
    {prefix}:hot             see `hot`

`H` is a hash of a list of texts, each with its length before it, so that no two lists give the same bytes; the first
one tells what the list is about. The braces around it are a part of the name: an answer and its lock lie in one slot
of a cluster.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Final

from gateway.plugin import Remembered, users_of
from plugins.cache.wanted import Wanted

# 160 bits: to find two requests with one key takes 2**80 tries.
DIGEST_BYTES: Final = 20
MAX_KNOWN: Final = 8192
# Addresses of longer requests are not remembered: whoever sends them could fill the memory with them.
MAX_KNOWN_TEXT: Final = 8192
IMPLIED_PORTS: Final = frozenset({"80", "443"})
_PORT: Final = re.compile(r"(\[[^\]]*\]|[^:]*):0*([0-9]*)")


def digest(*parts: str) -> str:
    """A hash of a list of texts."""
    text = "".join([f"{len(part)}:{part}" for part in parts])
    # `surrogatepass` has bytes for every text, also one that a JSON document or a client made up.
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES).hexdigest()


class Place:
    """Where one answer lies."""

    __slots__ = ("_prefix", "digest", "entry", "lock", "shown", "shown_at", "shown_names", "shown_of")

    def __init__(self, prefix: str, name: str) -> None:
        self.digest = name
        self.entry = f"{prefix}:cache:{{{name}}}".encode()
        self.lock = f"{prefix}:lock:{{{name}}}".encode()
        self._prefix = prefix
        # What the header of an answer from here was in the second `shown_at`, and of which one (see `answers.hit`).
        self.shown = b""
        self.shown_at = -1
        self.shown_of = b""
        self.shown_names: frozenset[bytes] = frozenset()

    def __repr__(self) -> str:
        return f"<Place {self.digest[:8]}>"

    @property
    def part(self) -> Place:
        """Where a part of it lies, while the whole is not stored."""
        return Place(self._prefix, digest("part", self.digest))

    def shard(self, number: int) -> bytes:
        """The key of a copy, in another slot; number 0 is the entry itself."""
        return self.entry if number == 0 else f"{self._prefix}:cache:{{{self.digest}#{number:02}}}".encode()


class Address(Place):
    """Where the answer to a request lies, or the index of its variants.

    Args:
        generations: the keys whose change makes everything here void.
    """

    __slots__ = ("_copies", "generations", "tags", "wanted")

    def __init__(self, prefix: str, name: str, generations: tuple[bytes, ...]) -> None:
        super().__init__(prefix, name)
        self.generations = generations
        self.tags: tuple[str, ...] = ()
        """Of what was found here last: their generations are asked for together with the address' own."""
        self.wanted = Wanted(self.entry, generations)
        """What to ask for here."""
        self._copies: dict[int, Wanted] | None = None

    def wanted_of(self, number: int) -> Wanted:
        """What to ask for a copy; see `shard`. Few addresses are so hot that there are any."""
        copies = self._copies
        if copies is None:
            copies = self._copies = {}
        wanted = copies.get(number)
        if wanted is None:
            wanted = copies[number] = Wanted(self.shard(number), [read.key for read in self.wanted.generations])
        return wanted

    def expect(self, tags: tuple[str, ...]) -> None:
        """Ask for the generations of these tags too, from the next time on."""
        self.tags = tags
        self._copies = None
        self.wanted = Wanted(self.entry, (*self.generations, *[of_tag(self._prefix, tag) for tag in tags]))

    def variant(self, names: Iterable[str], values: Iterable[str]) -> Place:
        """The place of the variant for a request whose fields `names` are `values` (see `facts.selecting`)."""
        listed = list(names)
        return Place(self._prefix, digest("variant", self.digest, str(len(listed)), *listed, *values))


class Keys:
    """The keys of one cache plugin.

    Args:
        prefix: of `[redis]`.
        name: the plugin's: two caches in one chain do not share entries.
        whole_paths: targets are simplified (see `query`): whoever purges one spelling cannot know where its answer
            lies, and so ends all queries of its path.
    """

    def __init__(self, prefix: str, name: str, *, whole_paths: bool = False) -> None:
        self.prefix = prefix
        self.name = name
        self._url = of_path if whole_paths else of_url
        self._known: Remembered[tuple[object, ...], Address] = Remembered(MAX_KNOWN)
        self.hot = f"{prefix}:hot".encode()

    def __len__(self) -> int:
        """How many addresses are remembered."""
        return len(self._known)

    def address(self, *asked: Any) -> Address:
        """`new_address`, remembered."""
        found = self._known.get(asked)
        if found is None:
            found = self.new_address(*asked)
            if _size(asked) <= MAX_KNOWN_TEXT:
                self._known.put(asked, found)
        return found

    def new_address(
        self,
        route: str,
        scheme: str,
        host: str,
        target: str,
        identity: str | None,
        who: tuple[str, ...],
        steering: tuple[str, ...],
        more: tuple[str, ...] = (),
    ) -> Address:
        """The address of a request's answer.

        Args:
            target: byte for byte as the upstream gets it (`/a?` is not `/a`), but for what the configuration ignores.
            identity: whom a plugin found the request to speak for, so that a purge by user finds it.
            who: whom the answer is for; see `facts.Facts.who`.
            steering: fields that some upstreams take for the method or target.
            more: whatever else counts (see `Targets`); no two kinds of it may have the same texts.
        """
        names = [everything(self.prefix), of_route(self.prefix, route), self._url(self.prefix, host, target)]
        if identity is not None:
            names += [of_user(self.prefix, user) for user in users_of(identity)]
        name = digest(
            "answer",
            self.name,
            route,
            scheme,
            host,
            target,
            str(len(who)),
            *who,
            str(len(steering)),
            *steering,
            *more,
        )
        return Address(self.prefix, name, tuple(names))


def _size(texts: Iterable[Any]) -> int:
    """How long all these texts are, and those in tuples among them."""
    return sum([_size(text) if type(text) is tuple else len(text or "") for text in texts])


# -- generations -----------------------------------------------------------------------------------


def everything(prefix: str) -> bytes:
    """The generation of all that is stored."""
    return f"{prefix}:gen:all".encode()


@lru_cache(1024)
def of_route(prefix: str, name: str) -> bytes:
    """The generation of a route."""
    return f"{prefix}:gen:route:{digest('route', name)}".encode()


def of_url(prefix: str, host: str, target: str) -> bytes:
    """The generation of a URL, for all users and variants and both schemes.

    Args:
        host: as clients send it in `Host`; the schemes' own ports may be left out, and a final dot.
        target: path and query, byte for byte as clients send them; an empty query may be left out.
    """
    if target.endswith("?") and target.count("?") == 1:
        target = target[:-1]
    return f"{prefix}:gen:url:{digest('url', *_authority(host), target)}".encode()


def of_path(prefix: str, host: str, target: str) -> bytes:
    """The same for all queries of a URL's path, where several spellings of a query may share an answer."""
    return f"{prefix}:gen:url:{digest('path', *_authority(host), target.partition('?')[0])}".encode()


def _authority(host: str) -> tuple[str, str]:
    """Host and port, however they are spelled."""
    name, port = host.lower(), ""
    if match := _PORT.fullmatch(name):
        name, port = match.groups()
        port = "" if port in IMPLIED_PORTS else port
    return name.rstrip("."), port


def of_user(prefix: str, identity: str) -> bytes:
    """The generation of all answers for one identity."""
    return f"{prefix}:gen:user:{digest('user', identity)}".encode()


def of_tag(prefix: str, tag: str) -> bytes:
    """The generation of all answers with a tag."""
    return f"{prefix}:gen:tag:{digest('tag', tag)}".encode()
