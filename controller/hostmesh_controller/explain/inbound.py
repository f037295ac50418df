"""What a call meets at the host of an endpoint."""

from hostmesh_controller.explain.arriving import judged
from hostmesh_controller.explain.attempt import Attempt, Request
from hostmesh_controller.explain.call import Call
from hostmesh_controller.explain.chains import Connection, chain_for
from hostmesh_controller.explain.sight import Sight
from hostmesh_controller.explain.story import Step
from hostmesh_controller.mesh import Mesh
from hostmesh_controller.mesh.gateways import NO_GATEWAYS
from hostmesh_controller.mesh.inbound import bound_ports
from hostmesh_controller.mesh.records import Host, Mode
from hostmesh_controller.names import VIRTUAL_INBOUND, host_and_port
from hostmesh_controller.xds.host_config import outbound_identity
from hostmesh_controller.xds.tls import MESH_HTTP, SERVE_TCP


def arrival(
    mesh: Mesh, caller: str, call: Call, address: str, port: int, *, mutual_tls: bool
) -> tuple[list[Step], bool]:
    """Return the steps at an endpoint, and whether a call from the host `caller` is let in; none outside the mesh."""
    names = mesh.hosts_by_address.get(address)
    if not names:
        return [], True
    name = min(names)
    sight = Sight(mesh, name)
    runtime = mesh.runtime_of(name)
    if not runtime.joined:
        return [Step("inbound", f"host {name}", "its agent has not joined: straight to the program")], True
    gateway = mesh.gateways.get(name, NO_GATEWAYS).listens(address, port)
    if gateway is not None:
        owners = ", ".join(sorted({f"Gateway {served.gateway_name}" for served in gateway.servers}))
        return [Step("inbound", f"host {name}, {gateway.listener}", f"Envoy itself listens there, for {owners}")], True
    if any(each.number == port for each in bound_ports(mesh, name)):
        return [Step("inbound", f"host {name}", f"Envoy itself listens on port {port}, for a Sidecar's ingress")], True
    if port not in sight.config().capture.inbound_ports:
        return [Step("inbound", f"host {name}", f"port {port} is not captured: straight to the program")], True
    listener = sight.listener(VIRTUAL_INBOUND)
    connection = Connection(
        address,
        port,
        transport_protocol="tls" if mutual_tls or call.is_tls else "raw_buffer",
        application_protocols=_negotiated(call, mutual_tls=mutual_tls),
    )
    chain = chain_for(listener, connection) if listener is not None else None
    why = _policy(mesh, address, port)
    if chain is None:
        how = "mutual TLS" if mutual_tls else "plaintext"
        return [Step("inbound", f"host {name}, {VIRTUAL_INBOUND}", f"no chain takes {how}: {why}")], False
    taken = Step("inbound", f"host {name}, {VIRTUAL_INBOUND}, {chain.name}", why)
    verdict = judged(chain, _attempt(mesh, mesh.hosts[caller], call, address, port, mutual_tls=mutual_tls))
    if not verdict.rulings:
        return [taken], True
    details = {"see": f"hostmesh authz explain --from {caller} --to {host_and_port(address, port)}"}
    return [taken, Step("authorization", verdict.text, "", details)], verdict.allowed is not False


def _attempt(mesh: Mesh, caller: Host, call: Call, address: str, port: int, *, mutual_tls: bool) -> Attempt:
    return Attempt(
        address,
        port,
        outbound_identity(mesh, caller) if mutual_tls else None,
        caller.addresses[0] if caller.addresses else "",
        request=Request(call.method, call.authority, call.path, call.headers) if call.is_http else None,
    )


def _negotiated(call: Call, *, mutual_tls: bool) -> tuple[str, ...]:
    if not mutual_tls:
        return ("http/1.1",) if call.is_http else ()
    return (*MESH_HTTP, *SERVE_TCP) if call.is_http else SERVE_TCP


def _policy(mesh: Mesh, address: str, port: int) -> str:
    found = [mesh.workloads[key] for key in sorted(mesh.workloads_by_address.get(address, ()))]
    modes = {mesh.mode_of(workload, port) for workload in found}
    names = ", ".join(f"{each.key.namespace}/{each.key.name}" for each in found)
    mode = modes.pop() if len(modes) == 1 else Mode.PERMISSIVE
    return f"workload {names}; PeerAuthentication mode {mode.value}"
