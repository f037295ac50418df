"""What befalls the network, between agents and controller and between hosts.

The lab's kernel may be without netem, so packets are dropped by rules in the lab's world (where the controller runs),
and what is late, sliced or reset is so through a proxy there, to which the agents' connections are redirected.
"""

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from e2e.driver import PYTHON, eventually
from faults.fault import Fault, PromiseBrokenError
from faults.scene import CLIENT, MESH, PROGRAMS, SERVER, Scene
from faults.seen import Bounds
from hostmesh_api.wire import AGENTS_PORT

_APART_S: Final = 15.0
_DATA_APART_S: Final = 4.0
_BACK_S: Final = 60.0
_CROOKED_S: Final = 20.0
_CROOKED_PORT: Final = 16012
EXTRA: Final = """
apiVersion: v1
kind: Service
metadata: {name: extra}
spec: {selector: {tier: pair}, ports: [{name: http, port: 8304}]}
"""


def table(chain: str) -> str:
    """Return a ruleset with a table of our own; nft wants a line's end between the two closing braces."""
    return f"table inet fault {{\n{chain}\n}}\n"


@contextmanager
def rules(scene: Scene, text: str) -> Iterator[None]:
    """Let a table of our own hold in the lab's world."""
    scene.in_world("nft", "-f", "-", text_in=table(text))
    try:
        yield
    finally:
        scene.in_world("nft", "delete", "table", "inet", "fault")


def back(scene: Scene) -> float:
    began_s = time.monotonic()
    scene.wait_until_well(_BACK_S)
    return time.monotonic() - began_s


def changes_arrive(scene: Scene) -> None:
    """What is applied now can be called by the client soon: the stream is not only open, it carries."""
    scene.lab.apply(EXTRA)
    eventually(lambda: scene.calls("extra", 8304), "what was applied can be called", 30)


def without_extra(scene: Scene) -> None:
    scene.lab.hostmesh("delete", "-f", "-", "--ignore-missing", text_in=EXTRA, check=False)


def _apart(rule: str) -> Callable[[Scene], str]:
    def play(scene: Scene) -> str:
        with rules(scene, rule):
            time.sleep(_APART_S)  # not a wait: how long they are apart
        took_s = back(scene)
        changes_arrive(scene)
        return f"all agents connected and told {took_s:.1f} s after the network is whole"

    return play


def data_apart(scene: Scene) -> str:
    """Drop what the server sends to the client, at the client's door; the other way is open."""
    chain = f"chain in {{ type filter hook input priority -400; ip saddr {scene.ip(SERVER)} drop; }}"
    scene.run(CLIENT, "nft", "-f", "-", text_in=table(chain))
    try:
        time.sleep(_DATA_APART_S)  # not a wait: how long they are apart
    finally:
        scene.run(CLIENT, "nft", "delete", "table", "inet", "fault")
    scene.wait_for_calls()
    return ""


def lossy(scene: Scene) -> str:
    """Drop every fiftieth packet that comes to the client, at random."""
    drop = "iif eth0 numgen random mod 50 < 1 drop"
    chain = f"chain in {{ type filter hook input priority -400; {drop}; }}"
    scene.run(CLIENT, "nft", "-f", "-", text_in=table(chain))
    try:
        time.sleep(_APART_S)  # not a wait: how long it is lossy
    finally:
        scene.run(CLIENT, "nft", "delete", "table", "inet", "fault")
    return ""


def _crooked(way: str) -> Callable[[Scene], str]:
    def play(scene: Scene) -> str:
        target = f"{scene.facts.net.address(1)}:{AGENTS_PORT}"
        command = [PYTHON, str(PROGRAMS / "crooked.py"), str(_CROOKED_PORT), target, way]
        proxy = scene.world().popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            assert proxy.stdout is not None
            assert proxy.stdout.readline() == "listening\n"
            redirect = f"iif br0 tcp dport {AGENTS_PORT} redirect to :{_CROOKED_PORT}"
            with rules(scene, f"chain to {{ type nat hook prerouting priority -100; {redirect}; }}"):
                _cut_streams(scene)
                if way == "reset":
                    time.sleep(_CROOKED_S)  # not a wait: how long it goes on
                else:
                    back(scene)
                    changes_arrive(scene)
            output, errors = proxy.communicate("", timeout=10)
        finally:
            proxy.kill()
            proxy.communicate()
        counts = json.loads(output)
        if counts["connections"] < len(MESH) or (way == "reset" and counts["resets"] < len(MESH)):
            raise PromiseBrokenError(f"the proxy carried too little to tell anything: {counts} {errors[-300:]}")
        _cut_streams(scene)
        took_s = back(scene)
        return f"{counts['connections']} connections, {counts['resets']} resets; all well again after {took_s:.1f} s"

    return play


def _cut_streams(scene: Scene) -> None:
    """End the agents' present connections, so that the next ones go the new way."""
    for port in (AGENTS_PORT, _CROOKED_PORT):
        scene.in_world("ss", "-K", "sport", "=", f":{port}")


NETWORKS: Final = (
    Fault(
        "partition-to-controller",
        "what agents send to the controller is dropped for 15 s; the other way is open",
        "No call fails; all are connected again, and told of changes, within 60 s.",
        _apart(f"chain in {{ type filter hook input priority -400; iif br0 tcp dport {AGENTS_PORT} drop; }}"),
        Bounds(rules_same=False),
        mend=without_extra,
    ),
    Fault(
        "partition-from-controller",
        "what the controller sends to agents is dropped for 15 s; the other way is open",
        "No call fails; all are connected again, and told of changes, within 60 s.",
        _apart(f"chain out {{ type filter hook output priority -400; oif br0 tcp sport {AGENTS_PORT} drop; }}"),
        Bounds(rules_same=False),
        mend=without_extra,
    ),
    Fault(
        "partition-hosts",
        "what the callee sends to the caller is dropped for 4 s; the other way is open",
        "Calls fail while the network does, and succeed within 6 s of its end; nothing stays broken.",
        data_apart,
        Bounds(gap_s=10, gaps=2, late=500, endpoints=None),
    ),
    Fault(
        "loss-hosts",
        "2 % of the packets to the caller are lost for 15 s",
        "TCP repairs it: no call fails, some are late.",
        lossy,
        Bounds(late=30, ssh_gap_s={CLIENT: 4}),
    ),
    Fault(
        "control-late",
        "the control streams are late by 500 ms each way",
        "No call fails; changes arrive.",
        _crooked("late"),
        Bounds(rules_same=False),
        mend=without_extra,
    ),
    Fault(
        "control-sliced",
        "the control streams arrive in slices of 7 bytes",
        "No call fails; changes arrive.",
        _crooked("sliced"),
        Bounds(rules_same=False),
        mend=without_extra,
    ),
    Fault(
        "control-reset",
        "the control streams are reset for 20 s, each within 2 s of its beginning",
        "No call fails; all are connected again within 60 s.",
        _crooked("reset"),
    ),
)
