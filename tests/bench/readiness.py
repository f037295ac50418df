"""How long it takes until callers know that a program is well, or is not: from the agent's judgement to their Envoy."""

import json
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Final

from bench.figure import Figure
from bench.hosts import CALLEE, CALLER, Hosts, service_url

_FLIPS: Final = 20
_WELL: Final = "/run/well"
_ADMIN: Final = "/var/lib/hostmesh/envoy/admin.sock"
_WATCH: Final = """
import pathlib, socket, sys, time
admin, flips, address = sys.argv[1], int(sys.argv[2]), sys.argv[3]

def called():
    with socket.socket(socket.AF_UNIX) as asked:
        asked.connect(admin)
        asked.sendall(b"GET /clusters?filter=echo-0 HTTP/1.1\\r\\nHost: envoy\\r\\nConnection: close\\r\\n\\r\\n")
        return address.encode() in b"".join(iter(lambda: asked.recv(65536), b""))

now = called()
print("begun", flush=True)
while flips:
    if called() != now:
        now, flips = not now, flips - 1
        print(time.time(), flush=True)
    time.sleep(0.005)
"""
"""Prints when the caller's Envoy has or has lost the endpoint: what is waited for has no event."""
_FLIP: Final = f"""
for flip in $(seq {_FLIPS // 2}); do rm -f {_WELL}; sleep 2.2; touch {_WELL}; sleep 2.2; done
"""
"""Longer than a period of the probe and the time it takes."""


def readiness(hosts: Hosts) -> Sequence[Figure]:
    """Let a program be well and ill in turns, and compare the agent's log with what the caller's Envoy has."""
    lab = hosts.ready
    lab.inside(CALLEE, "touch", _WELL)
    lab.probed(CALLEE, f"exec: {{command: [test, -e, {_WELL}]}}\nperiodSeconds: 1\nfailureThreshold: 1\n")
    lab.until(lambda: '"HEALTHY"' in lab.shown(CALLEE), "the callee is probed")
    lab.inside(CALLER, "curl", "-sS", "-m", "5", service_url(0))
    before = len(list(_judged(lab)))
    with lab.beside(CALLER, "python3", "-c", _WATCH, _ADMIN, str(_FLIPS), lab.ip(CALLEE)) as watched:
        assert watched.readline().strip() == "begun"
        lab.inside(CALLEE, "sh", "-c", _FLIP)
        seen = [float(watched.readline()) for _ in range(_FLIPS)]
    judged = list(_judged(lab))[before:]
    took = sorted(after - at for at, after in zip(judged, seen, strict=True))
    return (
        Figure(
            f"readiness, from the agent's judgement to the caller's Envoy, longest of {_FLIPS}",
            took[-1],
            "s",
            1.0,
            f"the median {took[len(took) // 2] * 1e3:.0f} ms; looked at every 5 ms",
        ),
    )


def _judged(lab: Hosts) -> Iterator[float]:
    """Yield when the callee's agent changed its mind, in seconds since the epoch."""
    for line in lab.log(f"agent/{CALLEE}").splitlines():
        if '"health changed"' in line:
            yield datetime.fromisoformat(json.loads(line)["timestamp"]).timestamp()
