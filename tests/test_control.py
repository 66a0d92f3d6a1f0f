"""The channel between two processes, here between two ends in one."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from gateway import control
from gateway.control import Channel, environment, signal_name


async def ends() -> tuple[Channel, socket.socket]:
    ours, theirs = socket.socketpair()
    return await Channel.over(ours), theirs


async def test_messages_come_as_they_were_sent() -> None:
    ours, theirs = socket.socketpair()
    one, other = await Channel.over(ours), await Channel.over(theirs)
    messages = [{"do": "start", "config": {"text": "line\nbreak \u2028 é"}}, {"ready": True}, {"snapshot": {"x": 1.5}}]
    for message in messages:
        one.send(message)
    assert [await other.receive() for _ in messages] == messages
    other.send({"back": 1})
    assert await one.receive() == {"back": 1}
    await one.close()
    assert await other.receive() is None
    other.send({"to": "nobody"})  # no error: the end is told by receive()
    await other.close()


@pytest.mark.parametrize("garbage", [b"no json\n", b"[1]\n", b'{"cut": ', b"\xff\n", b""])
async def test_garbage_is_the_end(garbage: bytes) -> None:
    channel, other = await ends()
    other.sendall(garbage)
    other.close()
    assert await channel.receive() is None
    await channel.close()


async def test_an_endless_message_is_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "MAX_MESSAGE", 1000)
    channel, other = await ends()
    other.sendall(b'"' + b"x" * 5000)
    assert await channel.receive() is None
    await channel.close()
    other.close()


async def test_a_side_that_does_not_read_is_cut_off_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "MAX_MESSAGE", 100_000)
    channel, other = await ends()
    for _ in range(1000):
        channel.send({"snapshot": "x" * 10_000})
        assert channel._writer.transport.get_write_buffer_size() <= 210_100
    assert channel._writer.is_closing()
    await channel.close()
    other.close()


def test_a_worker_finds_this_package_wherever_it_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    first, *rest = environment()["PYTHONPATH"].split(os.pathsep)
    if first != "/somewhere":  # not installed
        assert (Path(first) / "gateway" / "worker_main.py").exists()
        assert rest == ["/somewhere"]


def test_how_a_process_ended_is_told_in_words() -> None:
    assert signal_name(9) == "SIGKILL"
    assert signal_name(63) == "signal 63"
