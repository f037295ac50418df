"""The doctor and the bug report on hosts of a lab: well, ill, and with nobody alive; no secret leaves the host."""

import base64
import json
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from e2e.driver import PROGRAMS, Lab, eventually, new_lab
from golden.certificates import Authority

PAIR = Authority("site").pair("shop.example.com")
CANARY = "Zq8vK2nRt5yWcanary"
OBJECTS = """
apiVersion: v1
kind: Service
metadata: {{name: web}}
spec:
  selector: {{app: web}}
  ports: [{{name: http, port: 80, targetPort: 8080}}]
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: web, namespace: default}}
spec: {{address: {address}, serviceAccount: web, labels: {{app: web}}}}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {{name: edge, namespace: default}}
spec:
  selector: {{app: web}}
  servers:
  - port: {{number: 443, name: https, protocol: HTTPS}}
    hosts: [shop.example.com]
    tls: {{mode: SIMPLE, credentialName: shop}}
"""
ILL = f"""
kill -STOP $(pgrep -x envoy)
nft add table ip foe
nft 'add chain ip foe out {{ type nat hook output priority -150; }}'
nft add rule ip foe out tcp dport 9999 redirect to :1
chmod 640 /var/lib/hostmesh/identity/key.pem
printf '%s\\n' 'authorization: Bearer {CANARY}' 'joined by hm1.{CANARY}' >> /var/lib/hostmesh/envoy/envoy.log
cat /var/lib/hostmesh/identity/key.pem >> /var/lib/hostmesh/envoy/envoy.log
base64 -w0 /var/lib/hostmesh/identity/key.pem >> /var/lib/hostmesh/envoy/envoy.log
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """One host, a gateway with a key of its own, which the tests make worse and worse."""
    with new_lab() as lab:
        lab.verb("up", "web")
        lab.detach("web", "python3", str(PROGRAMS / "http_echo.py"), "8080", "web", user="app")
        lab.apply(OBJECTS.format(address=lab.ip("web")))
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "shop", "namespace": "default"}}
        data = {"type": "kubernetes.io/tls", "stringData": {"tls.crt": PAIR.certificate, "tls.key": PAIR.key}}
        lab.apply(json.dumps(secret | data))
        lab.wait_for_workloads()
        yield lab


def codes(lab: Lab) -> dict[str, str]:
    """Codes of what is wrong, with their severities."""
    done = lab.exec("web", "hostmesh-agent", "doctor", "-o", "json", check=False)
    found = json.loads(done.stdout)
    assert done.returncode == (0 if found["healthy"] else 1)
    return {each["code"]: each["severity"] for each in found["findings"]}


def secrets(lab: Lab) -> dict[str, bytes]:
    """Every private key on the host's disk, and that of the Secret, as PEM."""
    disk = lab.root / "hosts/web/disk/var-lib/upper/hostmesh"
    files = {str(path): path.read_bytes() for path in disk.rglob("*.pem")}
    found = {name: data for name, data in files.items() if b"PRIVATE KEY" in data}
    assert len(found) >= 2
    return found | {"the gateway's": PAIR.key.encode()}


def forms(pem: bytes) -> list[bytes]:
    """What of a key must be nowhere: any line of it with something of its own, and its bytes in other writings."""
    body = b"".join(pem.split(b"PRIVATE KEY-----")[1].split(b"-----END")[0].split())
    der = base64.b64decode(body)
    lines = [body[at : at + 32] for at in range(48, len(body) - 32, 16)]
    return [*lines, der[40:72], der[40:72].hex().encode(), base64.b64encode(pem)[64:128]]


def report(lab: Lab, name: str) -> dict[str, bytes]:
    path = Path(lab.root.parent, f"{name}.tar.gz")
    lab.exec("web", "hostmesh-agent", "bugreport", "--output", str(path))
    assert path.stat().st_mode & 0o777 == 0o600
    texts = {}
    with tarfile.open(path) as archive:
        for member in archive:
            file = archive.extractfile(member)
            assert file is not None
            texts[member.name.partition("/")[2]] = file.read()
    again = lab.exec("web", "hostmesh-agent", "bugreport", "--output", str(path), check=False)
    assert (again.returncode, "File exists" in again.stderr) == (1, True)
    return texts


def assert_no_secret(lab: Lab, texts: dict[str, bytes]) -> None:
    for name, pem in secrets(lab).items():
        for form in forms(pem):
            assert not [text for text, data in texts.items() if form in data], name
    assert not [text for text, data in texts.items() if CANARY.encode() in data]
    assert not [text for text, data in texts.items() if b"PRIVATE KEY-----\n" in data]


def test_a_host_that_is_well_has_notes_at_most(lab: Lab) -> None:
    found: dict[str, str] = {}

    def well() -> bool:
        found.clear()
        found.update(codes(lab))
        return set(found.values()) <= {"note"}

    with suppress(AssertionError):
        eventually(well, "nothing is wrong", timeout_s=40)
    assert set(found.values()) <= {"note"}, found
    shown = lab.exec("web", "hostmesh-agent", "status", "-o", "json").stdout
    assert {each["severity"] for each in json.loads(shown)["findings"]} <= {"note"}


def test_the_logs_of_a_joined_host_hold_no_secret(lab: Lab) -> None:
    logs = [lab.root / "hosts/web/agent.log", lab.root / "hosts/web/disk/var-lib/upper/hostmesh/envoy/envoy.log"]
    assert_no_secret(lab, {str(path): path.read_bytes() for path in logs})


def test_a_report_of_a_host_that_is_well_tells_what_helps_and_no_secret(lab: Lab) -> None:
    texts = report(lab, "well")
    assert json.loads(texts["status.json"])["host"]["name"] == "web"
    assert b"chain inbound" in texts["rules/hostmesh.txt"]
    assert b"virtualInbound" in texts["envoy/envoy/listeners.txt"]
    assert b"1.40.0" in texts["envoy/envoy/server_info.txt"]
    assert b"nameserver 127.240.240.53" in texts["files/etc/resolv.conf"]
    assert b"spiffe://cluster.local" in texts["envoy/envoy/certs.txt"]
    assert_no_secret(lab, texts)


def test_an_ill_host_is_told_what_it_has_and_its_secrets_are_hidden_in_the_report(lab: Lab) -> None:
    lab.exec("web", "sh", "-c", ILL)
    found = codes(lab)
    assert found.keys() >= {"HM-E102", "HM-R103", "HM-C106", "HM-D102"}
    texts = report(lab, "ill")
    assert b"foe" in texts["rules/nft.txt"]
    assert b"[redacted]" in texts["envoy/envoy/envoy.log"]
    assert_no_secret(lab, texts)


def test_with_everybody_dead_both_still_work(lab: Lab) -> None:
    lab.exec("web", "sh", "-c", 'kill -KILL $(pgrep -x envoy) $(pgrep -f "[h]ostmesh-agent run")')
    lab.verb("stop", "controller")
    found = codes(lab)
    assert found.keys() >= {"HM-A102", "HM-E101", "HM-N101"}
    texts = report(lab, "dead")
    assert json.loads(texts["status.json"])["agent"] == {"running": False}
    assert_no_secret(lab, texts)
