"""A host of the lab is a gateway: strangers come in by it, programs go out by it, on the ports everybody knows."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from e2e.driver import PROGRAMS, Lab, eventually
from golden.certificates import Authority, Pair

SITE = Authority("site")

MESH = """
apiVersion: v1
kind: Service
metadata: {{name: shop}}
spec:
  selector: {{app: shop}}
  ports:
  - {{name: http, port: 80, targetPort: 8085}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: shop}}
spec: {{address: {server}, labels: {{app: shop}}, serviceAccount: shop}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: edge, namespace: istio-system}}
spec: {{address: {client}, labels: {{istio: ingressgateway}}, serviceAccount: edge}}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {{name: edge, namespace: istio-system}}
spec:
  selector: {{istio: ingressgateway}}
  servers:
  - port: {{number: 80, name: http, protocol: HTTP}}
    hosts: [shop.example.com]
  - port: {{number: 443, name: https, protocol: HTTPS}}
    hosts: [shop.example.com]
    tls: {{mode: SIMPLE, credentialName: shop}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: shop}}
spec:
  hosts: [shop.example.com]
  gateways: [istio-system/edge]
  http:
  - route:
    - destination: {{host: shop}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {{name: default}}
spec: {{mtls: {{mode: STRICT}}}}
"""
SECRET = """
apiVersion: v1
kind: Secret
metadata: {name: shop, namespace: istio-system}
type: kubernetes.io/tls
stringData:
  tls.crt: |
"""


def secret(pair: Pair) -> str:
    indented = [f"    {line}" for line in pair.certificate.splitlines()]
    key = [f"    {line}" for line in pair.key.splitlines()]
    return "\n".join([SECRET.strip("\n"), *indented, "  tls.key: |", *key])


@pytest.fixture(scope="module")
def edge(mesh: Lab) -> Iterator[Lab]:
    """The client's host is the gateway, the shop is on the server's, and strangers on the one outside."""
    mesh.detach("server", "python3", str(PROGRAMS / "http_echo.py"), "8085", "shop", user="app")
    text = MESH.format(client=mesh.ip("client"), server=mesh.ip("server"))
    mesh.apply(text)
    mesh.apply(secret(SITE.pair("shop.example.com")))
    mesh.put("outside", "/etc/site.pem", SITE.certificate)
    mesh.wait_for_workloads()
    yield mesh
    mesh.hostmesh("delete", "-f", "-", text_in=text)
    mesh.hostmesh("delete", "secret", "shop", "-n", "istio-system")


def by_http(lab: Lab, host: str = "shop.example.com") -> int:
    return lab.curl("outside", f"http://{lab.ip('client')}/", "-H", f"Host: {host}").status


def by_https(lab: Lab, *options: str) -> str:
    address = lab.ip("client")
    found = lab.curl(
        "outside",
        "https://shop.example.com/",
        *("--resolve", f"shop.example.com:443:{address}", "--cacert", "/etc/site.pem", *options),
    )
    return found.body if found.status == 200 else ""


def test_strangers_come_in_on_the_ports_everybody_knows(edge: Lab) -> None:
    eventually(lambda: by_http(edge) == 200, "HTTP")
    assert by_http(edge, "nobody.example.com") == 404
    answer = json.loads(eventually(lambda: by_https(edge), "HTTPS"))
    assert answer["name"] == "shop"
    assert answer["headers"]["x-forwarded-for"] == edge.ip("outside")
    assert "spiffe://cluster.local/ns/istio-system/sa/edge" in answer["headers"]["x-forwarded-client-cert"]


def test_a_program_of_the_gateways_host_still_calls_the_same_port_in_the_mesh(edge: Lab) -> None:
    eventually(lambda: edge.curl("client", "http://shop.default/").status == 200, "the service by its name")


def test_a_new_certificate_is_shown_when_it_is_applied(edge: Lab) -> None:
    eventually(lambda: by_https(edge), "HTTPS")
    pair = SITE.pair("shop.example.com", "renewed.example.com")
    edge.apply(secret(pair))

    eventually(lambda: "renewed.example.com" in names_shown(edge), "the new certificate")
    assert by_https(edge)


def names_shown(lab: Lab) -> str:
    """Return the names of the certificate that the gateway shows, as openssl writes them."""
    look = (
        f"openssl s_client -connect {lab.ip('client')}:443 -servername shop.example.com </dev/null 2>/dev/null"
        " | openssl x509 -noout -ext subjectAltName"
    )
    return lab.exec("outside", "sh", "-c", look, check=False).stdout


def test_no_key_is_shown_and_the_hosts_copy_is_roots_alone(edge: Lab) -> None:
    shown = edge.hostmesh("get", "secret", "shop", "-n", "istio-system", "-o", "yaml").stdout
    assert "BEGIN CERTIFICATE" in shown
    assert "PRIVATE KEY" not in shown
    find = "find /var/lib/hostmesh -name 'last-known-good.sqlite*' -exec stat -c %a:%U {} +"
    listed = edge.exec("client", "sh", "-c", find)
    assert set(listed.stdout.split()) == {"600:root"}


def test_a_port_that_somebody_has_is_told_and_the_others_go_on(edge: Lab) -> None:
    edge.detach("client", "python3", str(PROGRAMS / "http_echo.py"), "8086", "first", user="app")
    eventually(lambda: edge.curl("client", "http://127.0.0.1:8086/").status == 200, "the program that has the port")
    taken = """
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: taken, namespace: istio-system}
spec:
  selector: {istio: ingressgateway}
  servers:
  - port: {number: 8086, name: http, protocol: HTTP}
    hosts: ["*"]
  - port: {number: 8087, name: http-free, protocol: HTTP}
    hosts: ["*"]
"""
    edge.apply(taken)
    try:
        told = eventually(lambda: _refused(edge, "0.0.0.0_8086"), "the refusal")
        assert "Address already in use" in told
        eventually(
            lambda: edge.curl("outside", f"http://{edge.ip('client')}:8087/").status == 404, "the listener beside it"
        )
        assert by_http(edge) == 200
        assert edge.curl("client", "http://127.0.0.1:8086/").json["name"] == "first"
    finally:
        edge.hostmesh("delete", "-f", "-", text_in=taken)


def _refused(lab: Lab, name: str) -> str:
    found = json.loads(lab.hostmesh("proxy", "status", "-o", "json").stdout)
    return next(
        (nack["message"] for each in found for nack in each["nacks"] if name in nack["names"] + [nack["message"]]), ""
    )


WAY_OUT = """
apiVersion: v1
kind: Service
metadata: {{name: way-out, namespace: istio-system}}
spec:
  selector: {{istio: ingressgateway}}
  ports:
  - {{name: http, port: 80, targetPort: 8090}}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: site}}
spec:
  hosts: [site.example.org]
  ports:
  - {{number: 80, name: http, protocol: HTTP, targetPort: 8000}}
  location: MESH_EXTERNAL
  resolution: STATIC
  endpoints: [{{address: {outside}}}]
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {{name: way-out, namespace: istio-system}}
spec:
  selector: {{istio: ingressgateway}}
  servers:
  - port: {{number: 8090, name: http, protocol: HTTP}}
    hosts: [site.example.org]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: site}}
spec:
  hosts: [site.example.org]
  gateways: [mesh, istio-system/way-out]
  http:
  - match: [{{gateways: [mesh]}}]
    route:
    - destination: {{host: way-out.istio-system.svc.cluster.local, port: {{number: 80}}}}
  - match: [{{gateways: [istio-system/way-out]}}]
    route:
    - destination: {{host: site.example.org, port: {{number: 80}}}}
"""


def test_programs_go_out_by_the_gateway(edge: Lab) -> None:
    edge.detach("outside", "python3", str(PROGRAMS / "http_echo.py"), "8000", "site", user="app")
    text = WAY_OUT.format(outside=edge.ip("outside"))
    edge.apply(text)
    try:
        answer = eventually(lambda: site(edge), "the site answers")
        assert answer["peer"].endswith(edge.ip("client"))
    finally:
        edge.hostmesh("delete", "-f", "-", text_in=text)


def site(lab: Lab) -> dict[str, Any]:
    """Return what the site saw of a call by a program of the server's host; nothing if it did not answer."""
    answer = lab.curl("server", "http://site.example.org/")
    return answer.json if answer.status == 200 else {}
