"""The demo is a test of its own: it measures what it claims."""

import subprocess

from e2e.driver import HOSTMESH, Lab


def test_every_claim_of_the_demo_holds(empty_lab: Lab) -> None:
    command = [HOSTMESH, "lab", "demo", "--dir", str(empty_lab.root)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "13 of 13 claims held" in done.stdout
    assert not empty_lab.root.exists()
