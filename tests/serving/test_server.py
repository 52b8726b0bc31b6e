"""The socket that a server listens on."""

from __future__ import annotations

import asyncio
import socket

from anomaly_vae.serving.server import listening


def test_a_small_answer_does_not_wait_for_an_acknowledgement():
    """Nagle's algorithm would hold back the body until the head is acknowledged, which clients put off for 40 ms."""
    found = []

    class Noted(asyncio.Protocol):
        def connection_made(self, transport):
            found.append(transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            transport.close()

    async def connect(bound):
        async with await asyncio.get_running_loop().create_server(Noted, sock=bound):
            reader, writer = await asyncio.open_connection(*bound.getsockname())
            await reader.read()
            writer.close()

    with listening("127.0.0.1", 0) as bound:
        asyncio.run(connect(bound))
    assert found
    assert found[0] != 0
