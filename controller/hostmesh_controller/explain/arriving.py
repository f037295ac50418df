"""Where an attempt arrives on a host: its filter chain, and what the policies there make of it."""

from dataclasses import replace
from typing import Final

from envoy.config.listener.v3.listener_components_pb2 import FilterChain
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (
    HttpConnectionManager,
)

from hostmesh_controller.explain.attempt import Attempt
from hostmesh_controller.explain.authorization import Verdict, verdict_of
from hostmesh_controller.explain.chains import Connection, chain_for
from hostmesh_controller.explain.paths import seen_path
from hostmesh_controller.explain.sight import Sight, filters_of
from hostmesh_controller.mesh.gateways import NO_GATEWAYS
from hostmesh_controller.mesh.inbound import bound_ports
from hostmesh_controller.names import VIRTUAL_INBOUND, canonical_address
from hostmesh_controller.xds.listeners_inbound import bound_name
from hostmesh_controller.xds.tls import MESH_HTTP, SERVE_TCP

_FORWARDED: Final = "x-forwarded-for"


def listener_at(sight: Sight, address: str, port: int) -> Listener | None:
    """Return the listener that takes connections to an address and port of a host; None: Envoy does not see them."""
    gateway = sight.mesh.gateways.get(sight.host, NO_GATEWAYS).listens(address, port)
    if gateway is not None:
        return sight.listener(gateway.listener)
    for bound in bound_ports(sight.mesh, sight.host):
        if bound.number == port and bound.bind in {address, "0.0.0.0", "[::]", "::"}:  # noqa: S104 - it is compared
            return sight.listener(bound_name(bound))
    captured = port in sight.config().capture.inbound_ports
    return sight.listener(VIRTUAL_INBOUND) if captured else None


def chain_at(listener: Listener, attempt: Attempt, *, own_tls: bool = False) -> FilterChain | None:
    """Return the chain that takes an attempt; `own_tls`: the program's own TLS is in it, not the mesh's."""
    mutual_tls = attempt.identity is not None
    connection = Connection(
        attempt.address,
        attempt.port,
        server_name=attempt.server_name,
        transport_protocol="tls" if mutual_tls or own_tls else "raw_buffer",
        application_protocols=_negotiated(http=attempt.request is not None, mutual_tls=mutual_tls),
        source=attempt.source,
    )
    return chain_for(listener, connection)


def _negotiated(*, http: bool, mutual_tls: bool) -> tuple[str, ...]:
    if not mutual_tls:
        return ("http/1.1",) if http else ()
    return (*MESH_HTTP, *SERVE_TCP) if http else SERVE_TCP


def judged(chain: FilterChain, attempt: Attempt) -> Verdict:
    """Return what the policies of a chain make of an attempt; a request counts only where HTTP is spoken."""
    manager = next((each for each in filters_of(chain) if isinstance(each, HttpConnectionManager)), None)
    if manager is None:
        return verdict_of(chain, replace(attempt, request=None))
    if attempt.request is None:
        return verdict_of(chain, attempt)
    request = replace(attempt.request, path=seen_path(manager, attempt.request.path))
    return verdict_of(chain, replace(attempt, request=request, remote=_remote(manager, attempt)))


def _remote(manager: HttpConnectionManager, attempt: Attempt) -> str:
    """Return who asked first, as the connection manager believes the forwarding header."""
    told = attempt.request.header(_FORWARDED) if attempt.request is not None else None
    entries = [each.strip() for each in (told or "").split(",")]
    hops = manager.xff_num_trusted_hops
    if manager.use_remote_address.value:
        # The peer itself adds the last entry: with no trusted hops it is believed, and nobody before it.
        entries = [*(each for each in entries if each), attempt.source]
    chosen = entries[-1 - hops] if len(entries) > hops else ""
    return canonical_address(chosen) or attempt.remote or attempt.source
