"""Listeners of Sidecars that do less than they seem to, or that the host must be ready for."""

from collections.abc import Iterator
from ipaddress import ip_address

from hostmesh_controller.checks.finding import Finding
from hostmesh_controller.model.listeners import UNIX
from hostmesh_controller.model.sidecar import EgressListener, IngressListener, SidecarSpec


def check_sidecar_listeners(spec: SidecarSpec) -> Iterator[Finding]:
    for index, egress in enumerate(spec.egress):
        yield from _egress(index, egress)
    for index, ingress in enumerate(spec.ingress):
        yield from _ingress(index, ingress)


def _egress(index: int, listener: EgressListener) -> Iterator[Finding]:
    captured = listener.capture_mode != "NONE" and not listener.bind.startswith(UNIX)
    if captured and listener.bind and ip_address(listener.bind).is_loopback:
        message = "calls to loopback addresses are never captured: set captureMode NONE, and Envoy listens there itself"
        yield Finding(("spec", "egress", index, "bind"), message, "ineffective-setting")


def _ingress(index: int, listener: IngressListener) -> Iterator[Finding]:
    path = ("spec", "ingress", index)
    if listener.tls is not None:
        message = (
            "holds only where a PeerAuthentication turns mutual TLS off on this port (mode DISABLE); else callers meet "
            "the mesh's, as in Istio"
        )
        yield Finding((*path, "tls"), message, "ineffective-setting", "info")
    if listener.bind and listener.capture_mode != "NONE":
        message = (
            "connections are captured on whatever address of the workload they come to; bind is for captureMode NONE"
        )
        yield Finding((*path, "bind"), message, "ineffective-setting")
    if listener.capture_mode == "NONE" and not listener.default_endpoint:
        message = "Envoy has this port for itself: the program is called at 127.0.0.1 on the same number"
        yield Finding((*path, "defaultEndpoint"), message, "default-endpoint", "info")
