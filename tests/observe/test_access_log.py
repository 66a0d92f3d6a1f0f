"""Lines reach the descriptor whole, and a slow reader holds nobody up."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import Iterator
from io import FileIO
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.observe import access_log, outlet
from gateway.observe.access_log import AccessLog
from gateway.observe.metrics import Counter
from gateway.observe.outlet import PIPE_BUF, DirectOutlet, ThreadOutlet, open_outlet, pieces
from tests.harness import eventually

Pipe = tuple[FileIO, FileIO]


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    reading, writing = os.pipe()
    with FileIO(reading, "r") as reader, FileIO(writing, "w") as writer:
        yield reader, writer


@pytest.fixture(params=["direct", "thread"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both outlets: the second is for who may not open standard output again."""
    if request.param == "thread":
        monkeypatch.setattr(access_log, "open_outlet", ThreadOutlet)
    return str(request.param)


async def test_a_pipe_is_opened_again_and_a_socket_is_left_to_a_thread(pipe: Pipe, way: str) -> None:
    if way == "thread":
        return
    direct = open_outlet(pipe[1].fileno())
    assert isinstance(direct, DirectOutlet)
    assert os.get_blocking(pipe[1].fileno()), "the descriptor that others share keeps its flags"
    await direct.stop()
    near, far = socket.socketpair()
    with near, far:
        threaded = open_outlet(near.fileno())
        assert isinstance(threaded, ThreadOutlet)
        await threaded.stop()


@given(st.lists(st.integers(1, 300), max_size=60), st.integers(300, 1000))
def test_pieces_are_whole_lines_within_the_limit(sizes: list[int], limit: int) -> None:
    lines = [bytes([65 + number % 26]) * (size - 1) + b"\n" for number, size in enumerate(sizes)]
    found = list(pieces(lines, limit))
    assert b"".join(found) == b"".join(lines)
    assert all(len(piece) <= limit and piece.endswith(b"\n") for piece in found)
    # and no more of them than needed: two neighbours would not have fitted together
    assert all(len(a) + len(b.splitlines(keepends=True)[0]) > limit for a, b in pairwise(found))


async def test_lines_come_soon_and_all_of_them_by_the_end(tmp_path: Path) -> None:
    path = tmp_path / "log"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    log = AccessLog(1 << 20, Counter(), fd)
    log.write(b"first\n")
    await eventually(lambda: path.read_bytes() == b"first\n", within=2)
    for number in range(5000):
        log.write(b"%d\n" % number)
    await log.stop()
    assert path.read_bytes() == b"first\n" + b"".join(b"%d\n" % number for number in range(5000))
    os.close(fd)


async def test_a_stalled_reader_blocks_nobody_and_costs_counted_lines(pipe: Pipe) -> None:
    reading, writing = pipe
    dropped = Counter()
    bound = 256 << 10
    log = AccessLog(bound, dropped, writing.fileno())
    line = b"x" * 99 + b"\n"
    slowest = 0.0
    for _ in range(20_000):  # 2 MB against 64 KiB in the pipe and the bound
        began = time.perf_counter()
        log.write(line)
        slowest = max(slowest, time.perf_counter() - began)
        assert log.waiting <= bound + access_log.FLUSH_BYTES
    assert slowest < 0.5
    assert 0 < dropped.value < 20_000
    # The reader comes back: what was kept arrives, whole.
    received = bytearray()
    reader = threading.Thread(target=lambda: received.extend(reading.readall()))
    reader.start()
    await log.stop()
    writing.close()
    reader.join(5)
    assert received == line * (20_000 - int(dropped.value))


async def test_the_end_does_not_wait_for_a_stalled_reader(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outlet, "STOP_SECONDS", 0.1)
    log = AccessLog(1 << 20, Counter(), pipe[1].fileno())
    for _ in range(2000):
        log.write(b"x" * 99 + b"\n")
    began = time.monotonic()
    await log.stop()
    assert time.monotonic() - began < 2
    pipe[0].close()  # frees the thread


async def test_workers_that_share_a_pipe_do_not_mix_their_lines(pipe: Pipe) -> None:
    reading, writing = pipe
    received = bytearray()
    reader = threading.Thread(target=lambda: received.extend(reading.readall()))
    reader.start()
    logs = [AccessLog(8 << 20, Counter(), writing.fileno()) for _ in range(3)]
    for number in range(3000):
        for name, log in zip(b"abc", logs, strict=True):
            log.write(bytes([name]) * (50 + number % 500) + b"\n")
    await asyncio.gather(*(log.stop() for log in logs))
    writing.close()
    reader.join(5)
    lines = bytes(received).splitlines()
    assert len(lines) == 9000
    assert all(len(set(line)) == 1 for line in lines)


async def test_a_pipe_that_somebody_made_non_blocking_loses_nothing(pipe: Pipe) -> None:
    reading, writing = pipe
    os.set_blocking(writing.fileno(), False)
    log = AccessLog(1 << 20, Counter(), writing.fileno())
    for number in range(3000):
        log.write(b"%099d\n" % number)
    received = bytearray()
    reader = threading.Thread(target=lambda: received.extend(reading.readall()))
    await eventually(lambda: log.waiting < 300_000 - PIPE_BUF)  # the pipe is full
    reader.start()
    await log.stop()
    writing.close()
    reader.join(5)
    assert [int(line) for line in received.splitlines()] == list(range(3000))


async def test_a_reader_that_has_gone_turns_the_log_off(pipe: Pipe, caplog: pytest.LogCaptureFixture) -> None:
    reading, writing = pipe
    reading.close()
    dropped = Counter()
    log = AccessLog(1 << 20, dropped, writing.fileno())
    log.write(b"lost\n")
    await eventually(lambda: "cannot write to standard output" in caplog.text)
    log.write(b"dropped\n")
    await log.stop()
    assert dropped.value == 1
