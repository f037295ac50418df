"""A controller that is lost and made again of its backup: the hosts of the mesh notice nothing, and go on with it."""

import subprocess
import sys

from e2e.driver import PROGRAMS, Lab, eventually
from e2e.test_under_load import load

PORT = 8103
MESH = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {{name: strict}}
spec: {{mtls: {{mode: STRICT}}}}
---
apiVersion: v1
kind: Service
metadata: {{name: web}}
spec: {{selector: {{app: web}}, ports: [{{name: http, port: {port}}}]}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: web}}
spec: {{address: {server}, serviceAccount: web, labels: {{app: web}}}}
"""
LATER = """
apiVersion: v1
kind: Service
metadata: {name: later}
spec: {selector: {app: web}, ports: [{name: http, port: 8104}]}
"""


def controller(lab: Lab, *words: str) -> str:
    """`hostmesh-controller WORDS`, as an operator runs it on the controller's machine."""
    command = [sys.executable, "-c", "from hostmesh_controller.serve import main; main()", *words]
    config = str(lab.root / "controller" / "controller.toml")
    done = subprocess.run([*command, "--config", config], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_mesh_goes_on_with_a_controller_that_was_made_again_of_its_backup(empty_lab: Lab) -> None:
    lab, backup = empty_lab, empty_lab.root.parent / "mesh.tar"
    lab.verb("up", "client", "server")
    lab.detach("server", "python3", str(PROGRAMS / "http_echo.py"), str(PORT), "web")
    lab.apply(MESH.format(server=lab.ip("server"), port=PORT))
    lab.wait_for_workloads()
    eventually(lambda: lab.curl("client", f"http://web:{PORT}/").status == 200, "client calls web")
    with load(lab, "client", f"http://web:{PORT}/") as calls:
        controller(lab, "backup", str(backup))
        lab.apply(LATER)
        # The disk of the controller's machine is lost.
        lab.verb("stop", "controller")
        controller(lab, "restore", str(backup), "--replace")
        lab.verb("start", "controller")

        def connected() -> bool:
            told = lab.hostmesh("proxy", "status", "-o", "json").stdout
            return '"client"' in told and '"server"' in told

        eventually(connected, "both hosts are connected again", timeout_s=30)
        # What was written after the backup is gone, and can be written again.
        assert "later" not in lab.hostmesh("get", "services").stdout
        eventually(lambda: "store.set-back" in lab.hostmesh("audit").stdout, "it is known that the store was set back")
        lab.apply(LATER)
        # A new host joins with what the restored authority signs, and all trust it.
        lab.verb("up", "another")
        eventually(lambda: lab.curl("another", f"http://web:{PORT}/").status == 200, "a new host calls", timeout_s=30)
    assert calls["failed"] == 0, calls
