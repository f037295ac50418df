"""What befalls the configuration: it is gone, it is half of what it was, or it would capture SSH."""

import shutil
import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Final

from e2e.driver import eventually
from faults.fault import Fault, PromiseBrokenError
from faults.scene import CLIENT, SERVER, Scene
from faults.seen import Bounds

_SHELVES: Final = 20
_KEPT: Final = 8
_WRITTEN: Final = """
apiVersion: v1
kind: Service
metadata: {name: written}
spec: {selector: {tier: pair}, ports: [{name: http, port: 8304}]}
"""
_SHELF: Final = """
---
apiVersion: v1
kind: Service
metadata: {{name: shelf-{0}}}
spec: {{selector: {{tier: pair}}, ports: [{{name: http, port: 8304}}]}}
"""
SSH: Final = """
apiVersion: v1
kind: Service
metadata: {{name: ssh}}
spec: {{selector: {{app: ssh}}, ports: [{{name: tcp, port: 22}}]}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: ssh}}
spec: {{address: {0}, serviceAccount: ssh, labels: {{app: ssh}}}}
"""
POLICY: Final = """
apiVersion: hostmesh.io/v1
kind: CapturePolicy
metadata: {name: everything, namespace: istio-system}
spec: {scope: all, inbound: {include: [{ports: [22]}, {ports: [8301, 8302, 8303, 8304]}]}}
"""


def with_shelves(scene: Scene) -> None:
    """Twenty services more, each of which the client has called."""
    scene.lab.apply("".join(_SHELF.format(number) for number in range(_SHELVES)))
    for number in range(_SHELVES):
        eventually(partial(scene.calls, f"shelf-{number}", 8304), f"shelf-{number} is called", 30)


def _snapshot(where: str) -> Callable[[Scene], str]:
    def play(scene: Scene) -> str:
        store = scene.layout.controller_state
        scene.stop("controller")
        before = Path(tempfile.mkdtemp(dir=scene.folder)) / "store"
        shutil.copytree(store, before)
        with closing(sqlite3.connect(store / "store.sqlite")) as database, database:
            lost = database.execute(f"DELETE FROM objects WHERE kind = 'Service' AND {where}").rowcount
        scene.start("controller")
        try:
            said = eventually(lambda: _held_back(scene), "the client holds the loss back, and says so", 45)
            _all_called(scene)
            # A write that follows says nothing of what was lost before it.
            scene.lab.apply(_WRITTEN)
            _all_called(scene)
            if not _held_back(scene):
                raise PromiseBrokenError("a write that has nothing to do with the loss let it in")
            if "store.altered" not in scene.lab.hostmesh("audit").stdout:
                raise PromiseBrokenError("the controller does not say that its store has lost objects")
        finally:
            scene.stop("controller")
            shutil.rmtree(store)
            shutil.copytree(before, store)
            scene.start("controller")
        eventually(lambda: scene.healthy(CLIENT), "the client is well with the old store", 60)
        return f"{lost} services lost from the store. Said: {said}"

    return play


def _all_called(scene: Scene) -> None:
    for number in range(_SHELVES):
        if not scene.calls(f"shelf-{number}", 8304):
            raise PromiseBrokenError(f"shelf-{number} cannot be called any more")


def _held_back(scene: Scene) -> str:
    return next((each for each in scene.agent(CLIENT).get("problems", []) if "held back" in each), "")


def ssh_planned(scene: Scene) -> str:
    """Declare port 22 as the mesh's, in every way that an operator has, and call for its capture."""
    said = []
    for text in (SSH.format(scene.ip(SERVER)), POLICY):
        done = scene.lab.hostmesh("apply", "-f", "-", text_in=text, check=False)
        said.append("refused" if done.returncode else "applied")
    why = eventually(lambda: _refused(scene), "the agent says that port 22 is not captured", 30)
    ports = scene.agent(SERVER).get("capture", {}).get("inbound_ports", [])
    if "22" in map(str, ports):
        raise PromiseBrokenError(f"port 22 is captured: {ports}")
    return f"the workload on port 22 was {said[0]}, the policy {said[1]}; captured are {ports}. Said: {why}"


def _refused(scene: Scene) -> str:
    refused = scene.agent(SERVER).get("capture", {}).get("refused", [])
    return next((each for each in refused if "port 22" in each), "")


def without_ssh(scene: Scene) -> None:
    for text in (POLICY, SSH.format(scene.ip(SERVER))):
        scene.lab.hostmesh("delete", "-f", "-", text_in=text, check=False)


CONFIGS: Final = (
    Fault(
        "snapshot-empty",
        "the controller comes back with a store that has no services any more",
        "What ran goes on: no call fails, the loss is held back in all its parts until somebody confirms it, and said. "
        "What is written meanwhile does not let it in.",
        _snapshot("1"),
        prepare=with_shelves,
    ),
    Fault(
        "snapshot-halved",
        "the controller comes back with a store that has lost 12 of 22 services",
        "As snapshot-empty: what is lost is held back in all its parts, whichever of them shows how much it is.",
        _snapshot(f"name IN ({', '.join(repr(f'shelf-{n}') for n in range(_KEPT, _SHELVES))})"),
        prepare=with_shelves,
    ),
    Fault(
        "ssh-captured",
        "a workload on port 22 and a CapturePolicy that includes port 22 are applied",
        "SSH is not captured, whatever is planned; no login fails.",
        ssh_planned,
        Bounds(rules_same=False),
        mend=without_ssh,
    ),
)
