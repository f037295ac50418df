"""Probe the sshd of each host every 200 ms: its banner, and every tenth time a whole login with a key.

ssh_probe.py KEY HOST=ADDRESS…       until its input ends; then one JSON list of [host, at, fate]
"""

import asyncio
import contextlib
import json
import sys
import time

PERIOD_S = 0.2
TIMEOUT_S = 3.0
LOGIN_TIMEOUT_S = 8.0
EVERY = 10
records: list[tuple[str, float, str]] = []


async def banner(address: str) -> str:
    reader, writer = await asyncio.open_connection(address, 22)
    try:
        line = await reader.readline()
    finally:
        writer.close()
    return "ok" if line.startswith(b"SSH-2.0-") else f"no banner: {line[:20]!r}"


async def login(address: str, key: str) -> str:
    options = ["-oBatchMode=yes", "-oStrictHostKeyChecking=no", "-oUserKnownHostsFile=/dev/null", "-oLogLevel=ERROR"]
    ssh = await asyncio.create_subprocess_exec(
        "ssh", "-F", "none", "-i", key, *options, f"root@{address}", "echo logged in",
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        said, error = await ssh.communicate()
    except asyncio.CancelledError:
        ssh.kill()
        await ssh.wait()
        raise
    return "ok" if said == b"logged in\n" else f"login: {error.decode(errors='replace').strip()[:80]}"


async def probe(host: str, address: str, key: str, number: int) -> None:
    at_s = time.monotonic()
    whole = number % EVERY == 0
    try:
        async with asyncio.timeout(LOGIN_TIMEOUT_S if whole else TIMEOUT_S):
            fate = await (login(address, key) if whole else banner(address))
    except TimeoutError:
        fate = "no answer in time"
    except OSError as error:
        fate = f"{type(error).__name__}: {error}"[:80]
    records.append((host, at_s, fate))


async def watch(host: str, address: str, key: str, done: asyncio.Event) -> None:
    begin_s, number = time.monotonic(), 0
    async with asyncio.TaskGroup() as probes:
        while not done.is_set():
            probes.create_task(probe(host, address, key, number))
            number += 1
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(done.wait(), max(0.0, begin_s + number * PERIOD_S - time.monotonic()))


async def main() -> None:
    done = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        for word in sys.argv[2:]:
            host, _, address = word.partition("=")
            group.create_task(watch(host, address, sys.argv[1], done))
        await asyncio.to_thread(sys.stdin.read)
        done.set()
    print(json.dumps(records))


asyncio.run(main())
