"""A Redis that is further away: relays a TCP port and keeps what comes back for some milliseconds.

python -m bench.servers.delay PORT TARGET_PORT MILLISECONDS

Threads, not an event loop: a loop's timers have whole milliseconds, a sleep some 60 µs. There are few connections (two
of each worker), and under load each piece carries the replies of many requests, so this is never what is measured.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import sys
import threading
import time
from typing import Final

PIECE_BYTES: Final = 256 << 10
MAX_PIECES: Final = 1024

Pieces = queue.Queue[tuple[float, bytes]]


def copy(source: socket.socket, sink: socket.socket) -> None:
    """Everything at once, until one side ends."""
    with contextlib.suppress(OSError):
        while data := source.recv(PIECE_BYTES):
            sink.sendall(data)
    close(source, sink)


def hold(source: socket.socket, pieces: Pieces, seconds: float) -> None:
    """What comes, with the time when it may go on; an empty piece is the end."""
    data = b"-"
    while data:
        try:
            data = source.recv(PIECE_BYTES)
        except OSError:
            data = b""
        pieces.put((time.monotonic() + seconds, data))


def release(pieces: Pieces, sink: socket.socket, source: socket.socket) -> None:
    """Each piece at its time."""
    with contextlib.suppress(OSError):
        while True:
            due, data = pieces.get()
            time.sleep(max(0.0, due - time.monotonic()))
            if not data:
                break
            sink.sendall(data)
    close(source, sink)


def close(*ends: socket.socket) -> None:
    for end in ends:
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


def relay(client: socket.socket, target: int, seconds: float) -> None:
    """Serve one connection."""
    server = socket.create_connection(("127.0.0.1", target))
    for end in (client, server):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    pieces: Pieces = queue.Queue(MAX_PIECES)
    for work, arguments in (
        (copy, (client, server)),
        (hold, (server, pieces, seconds)),
        (release, (pieces, client, server)),
    ):
        threading.Thread(target=work, args=arguments, daemon=True).start()


def main() -> None:
    port, target, milliseconds = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    with socket.create_server(("127.0.0.1", port)) as listening:
        while True:
            client, _ = listening.accept()
            relay(client, target, milliseconds / 1000)


if __name__ == "__main__":
    main()
