"""One root takes another's place while programs call each other over mutual TLS and a host sleeps through all of it."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from cryptography import x509

from e2e.driver import PROGRAMS, Lab, eventually, new_lab
from e2e.test_under_load import load

PORT = "8080"

ECHO = """
apiVersion: v1
kind: Service
metadata: {{name: echo}}
spec:
  selector: {{app: echo}}
  ports: [{{name: http, port: 8080}}]
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: echo}}
spec: {{address: {server}, serviceAccount: echo, labels: {{app: echo}}}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: sleeper}}
spec: {{address: {sleeper}, serviceAccount: sleeper, ports: {{http: 8080}}}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {{name: default, namespace: istio-system}}
spec: {{mtls: {{mode: STRICT}}}}
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with new_lab() as made:
        made.verb("up", "client", "server", "sleeper")
        made.detach("server", "python3", str(PROGRAMS / "http_echo.py"), PORT, "echo")
        made.apply(ECHO.format(server=made.ip("server"), sleeper=made.ip("sleeper")))
        made.wait_for_workloads()
        eventually(lambda: made.curl("client", f"http://echo:{PORT}/").status == 200, "client calls server")
        yield made


def roots(lab: Lab) -> dict[str, dict[str, Any]]:
    """Return the roots by their state."""
    found = json.loads(lab.hostmesh("ca", "show", "-o", "json").stdout)
    return {each["state"]: each for each in found["roots"]}


def bundle(lab: Lab, host: str) -> set[str]:
    """Return the serials of the roots that the host's Envoy reads."""
    path = "/var/lib/hostmesh/envoy/certs/roots/bundle.pem"
    pem = lab.exec(host, "cat", path).stdout.encode()
    return {f"{each.serial_number:x}" for each in x509.load_pem_x509_certificates(pem)}


def modes(lab: Lab, host: str) -> set[str]:
    """Return the modes of the files in which the host keeps keys and roots."""
    find = "find /var/lib/hostmesh/identity /var/lib/hostmesh/envoy/certs -type f -printf '%m\\n'"
    return set(lab.exec(host, "sh", "-c", find).stdout.split())


def test_a_root_is_replaced_without_a_failed_request_and_a_host_that_slept_comes_back_by_itself(lab: Lab) -> None:
    first = roots(lab)["active"]["id"]
    lab.verb("stop", "agent/sleeper")
    with load(lab, "client", f"http://echo:{PORT}/") as tally:
        lab.hostmesh("ca", "prepare")
        eventually(lambda: not roots(lab)["prepared"]["unacknowledged"]["connected"], "both have the new root")
        assert roots(lab)["prepared"]["unacknowledged"]["offline"] == ["sleeper"]
        assert len(bundle(lab, "client")) == 2

        assert "sleeper" in lab.hostmesh("ca", "activate").stderr
        assert roots(lab)["old"]["id"] == first
        lab.verb("kill", "controller")
        lab.verb("start", "controller")
        assert roots(lab)["old"]["id"] == first
        lab.hostmesh("ca", "taint", "--within", "3s")
        eventually(lambda: set(roots(lab)["tainted"]["holders"]) == {"sleeper"}, "all who are there have new ones")

        assert modes(lab, "client") == {"600"}
        refused = lab.hostmesh("ca", "revoke", check=False)
        assert refused.returncode == 1
        assert "sleeper" in refused.stderr
        lab.hostmesh("ca", "revoke", "--force")
        eventually(lambda: len(bundle(lab, "client")) == len(bundle(lab, "server")) == 1, "the old root is gone")
        # Connections that begin now know the new root alone.
        assert all(lab.curl("client", f"http://echo:{PORT}/").status == 200 for _ in range(5))
    assert tally["sent"] > 300
    assert tally["failed"] == 0, tally
    assert len(bundle(lab, "sleeper")) == 1
    assert bundle(lab, "sleeper") != bundle(lab, "client")

    lab.verb("start", "agent/sleeper")
    eventually(lambda: bundle(lab, "sleeper") == bundle(lab, "client"), "the sleeper has the new root")
    eventually(lambda: roots(lab)["active"]["holders"].get("sleeper", 0) >= 3, "and new certificates")
    assert "sleeper" not in roots(lab)["revoked"]["holders"]
    eventually(lambda: lab.curl("sleeper", f"http://echo:{PORT}/").status == 200, "it calls others again")
