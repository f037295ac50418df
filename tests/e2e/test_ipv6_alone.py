"""A mesh in which no machine has IPv4 on the network: hosts join, call by name, and are reached past the mesh."""

import json

from e2e.driver import PROGRAMS, Lab, eventually

HOSTS = ("client", "server")
MESH = """
apiVersion: v1
kind: Service
metadata: {{name: orders}}
spec:
  selector: {{app: orders}}
  ports: [{{name: http, port: 80, targetPort: 8080}}, {{name: tcp-line, port: 9000}}]
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: orders}}
spec: {{address: "{server}", serviceAccount: orders, labels: {{app: orders}}}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: client}}
spec: {{address: "{client}", serviceAccount: client}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {{name: default}}
spec: {{mtls: {{mode: STRICT}}}}
"""


def take_ipv4(lab: Lab) -> dict[str, str]:
    """Have the controller listen as it does by default, at IPv6 alone, and hosts have no other; return theirs."""
    file = lab.root / "controller" / "controller.toml"
    gateway = lab.status()["bridge"]["address6"]
    lines = [each for each in file.read_text().splitlines() if not each.startswith(("agents", "join", "addresses"))]
    # A setting of the top comes before the first table.
    file.write_text("\n".join([f"addresses = {json.dumps([gateway])}", *lines]))
    lab.verb("stop", "controller")
    lab.verb("start", "controller")
    for host in HOSTS:
        lab.exec(host, "ip", "-4", "addr", "flush", "dev", "eth0")
    return {host: lab.verb("ip", host, "--v6").stdout.strip() for host in HOSTS}


def line(lab: Lab, target: str, port: str) -> str:
    return lab.exec("client", "python3", str(PROGRAMS / "tcp.py"), "call", target, port, check=False).stdout


def test_hosts_that_have_ipv6_alone_join_and_call_each_other_by_name(empty_lab: Lab) -> None:
    lab = empty_lab
    lab.verb("up", "--no-join", "client", "--no-join", "server")
    addresses = take_ipv4(lab)
    for host, address in addresses.items():
        made = lab.hostmesh("register", host, "--address", address, "-o", "json")
        lab.exec(host, "hostmesh-agent", "join", "-", text_in=json.loads(made.stdout)["join_string"])
        lab.verb("start", f"agent/{host}")
    lab.detach("server", "python3", str(PROGRAMS / "http_echo.py"), "8080", "orders", user="app")
    for port in ("9000", "2222"):
        lab.detach("server", "python3", str(PROGRAMS / "tcp.py"), "serve", port, user="app")
    lab.apply(MESH.format(**addresses))
    lab.wait_for_workloads()
    eventually(lambda: lab.curl("client", "http://orders/").status == 200, "client calls orders")
    seen = lab.curl("client", "http://orders/").json["headers"]["x-forwarded-client-cert"]
    assert "URI=spiffe://cluster.local/ns/default/sa/client" in seen
    eventually(lambda: line(lab, "orders", "9000") == "220 welcome\nHELLO\n", "client talks to orders:9000")
    # As SSH does: a port that the mesh does not know, at the host's own address.
    assert line(lab, addresses["server"], "2222") == "220 welcome\nHELLO\n"
    # STRICT: in plaintext nobody gets through, at IPv6 as at IPv4.
    assert line(lab, addresses["server"], "9000") != "220 welcome\nHELLO\n"
    for host in HOSTS:
        assert lab.agent(host)["healthy"], lab.agent(host)
