"""What is told of listeners of Sidecars, and of destinations that they close."""

import pytest

from checking import findings, istio


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("outboundTrafficPolicy: {mode: REGISTRY_ONLY}", "spec.outboundTrafficPolicy.mode: hosts for which this holds"),
        (
            "egress: [{port: {number: 80, protocol: HTTP, name: http}, bind: 127.0.0.1, hosts: ['*/*']}]",
            "spec.egress[0].bind: calls to loopback addresses are never captured: set captureMode NONE",
        ),
        (
            "ingress: [{port: {number: 80, protocol: HTTP, name: http}, captureMode: NONE}]",
            "spec.ingress[0].defaultEndpoint: Envoy has this port for itself",
        ),
        (
            "ingress: [{port: {number: 80, protocol: HTTP, name: http}, bind: 10.0.0.1}]",
            "spec.ingress[0].bind: connections are captured on whatever address",
        ),
        (
            "ingress: [{port: {number: 443, protocol: HTTPS, name: https}, "
            "tls: {mode: SIMPLE, serverCertificate: /a, privateKey: /b}}]",
            "spec.ingress[0].tls: holds only where a PeerAuthentication turns mutual TLS off",
        ),
    ],
)
def test_what_a_sidecar_means_for_a_host_is_told(spec: str, expected: str) -> None:
    assert any(expected in each for each in findings(istio("Sidecar", "default", spec)))


def test_a_sidecar_that_only_chooses_what_is_seen_is_not_remarked_on() -> None:
    assert findings(istio("Sidecar", "default", "egress: [{hosts: ['./*']}]")) == []
