"""A TCP proxy that is a bad network: late, in slices of a few bytes, or reset again and again.

crooked.py LISTEN_PORT TARGET_HOST:PORT late|sliced|reset       says "listening"; until its input ends; then one JSON
object {"connections": N, "resets": N}
"""

import asyncio
import contextlib
import json
import random
import socket
import struct
import sys

LATE_S = 0.5
SLICE_BYTES = 7
RESET_AFTER_S = 2.0
counts = {"connections": 0, "resets": 0}


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: str) -> None:
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(1000)

    async def take() -> None:
        while data := await reader.read(SLICE_BYTES if way == "sliced" else 65536):
            await queue.put((loop.time() + (LATE_S if way == "late" else 0.0), data))
        await queue.put((0.0, b""))

    taking = asyncio.create_task(take())
    try:
        while True:
            due_s, data = await queue.get()
            if not data:
                break
            await asyncio.sleep(max(0.0, due_s - loop.time()))
            writer.write(data)
            await writer.drain()
    finally:
        taking.cancel()


async def serve(client: tuple[asyncio.StreamReader, asyncio.StreamWriter], target: str, way: str) -> None:
    host, _, port = target.rpartition(":")
    counts["connections"] += 1
    server = await asyncio.open_connection(host, int(port))
    for _, writer in (client, server):
        # Slices stay slices on the wire.
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    both = asyncio.gather(pump(client[0], server[1], way), pump(server[0], client[1], way))
    limit_s = random.uniform(0.1, RESET_AFTER_S) if way == "reset" else None
    try:
        async with asyncio.timeout(limit_s):
            await both
    except (TimeoutError, OSError):
        counts["resets"] += 1
        for _, writer in (client, server):
            # SO_LINGER of 0: the connection ends with RST, whatever is under way.
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    finally:
        for _, writer in (client, server):
            with contextlib.suppress(OSError):
                writer.transport.abort() if way == "reset" else writer.close()


async def main() -> None:
    port, target, way = int(sys.argv[1]), sys.argv[2], sys.argv[3]

    async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            await serve((reader, writer), target, way)

    server = await asyncio.start_server(accepted, "0.0.0.0", port)
    print("listening", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    server.close()
    print(json.dumps(counts), flush=True)


asyncio.run(main())
