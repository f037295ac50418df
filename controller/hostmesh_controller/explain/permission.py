"""May somebody do something? Judged by the very filters that the Envoys of whom it is asked are sent."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from hostmesh_api.identity import parse_identity
from hostmesh_controller.explain.arriving import chain_at, judged, listener_at
from hostmesh_controller.explain.attempt import Attempt, Request
from hostmesh_controller.explain.authorization import Verdict
from hostmesh_controller.explain.call import Call, parse_call
from hostmesh_controller.explain.sight import Sight
from hostmesh_controller.mesh import Mesh
from hostmesh_controller.mesh.gateways import NO_GATEWAYS, Speech
from hostmesh_controller.mesh.inbound import inbound_ports, ports_of
from hostmesh_controller.mesh.records import Mode, Workload, WorkloadKey
from hostmesh_controller.mesh.selection import endpoint_port, identity_of, workloads_behind
from hostmesh_controller.mesh.viewer import Viewer
from hostmesh_controller.mesh.visibility import service_at, service_named
from hostmesh_controller.names import OutboundName, candidates, canonical_address, host_and_port
from hostmesh_controller.suggest import did_you_mean
from hostmesh_controller.xds.host_config import outbound_identity
from hostmesh_controller.xds.rbac_matchers import JWT, PAYLOAD


class UnknownPartyError(ValueError):
    """Nobody of the mesh is meant; the message says who can be."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. `identity` is None for somebody without a certificate, `source` "" where the address is not known."""

    text: str
    identity: str | None
    source: str
    viewer: Viewer


@dataclass(frozen=True, slots=True)
class Wish:
    """What is asked for, besides where: None for fields that were not given. `claims` are of a token that is valid."""

    path: str | None = None
    method: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    port: int | None = None
    server_name: str = ""
    source: str | None = None
    claims: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """One workload, or gateway, that would answer. `server_name` is what a proxy of the mesh says in its handshake."""

    host: str
    address: str
    port: int
    text: str
    mode: Mode
    http: bool
    server_name: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What one of them would say."""

    target: Target
    chain: str
    identity: str | None
    verdict: Verdict

    def body(self) -> dict[str, Any]:
        """Return it ready for JSON."""
        return {
            "host": self.target.host,
            "address": host_and_port(self.target.address, self.target.port),
            "workload": self.target.text,
            "chain": self.chain,
            "identity": self.identity,
            "allowed": self.verdict.allowed,
            "verdict": self.verdict.text,
            "rulings": [each.body() for each in self.verdict.rulings],
        }


def may(mesh: Mesh, who: str, where: str, wish: Wish) -> tuple[Answer, ...]:
    """Return what each workload behind `where` would say to `who`.

    Args:
        mesh: all of it.
        who: a host, a workload (NAMESPACE/NAME), a SPIFFE ID, or an IP address.
        where: a URL, HOST:PORT, or a workload (NAMESPACE/NAME, its port in `wish`).
        wish: what is asked for.

    Raises:
        UnknownPartyError: one of them is nobody.
    """
    caller = _caller(mesh, who, wish)
    workload = _workload_named(mesh, where)
    if workload is not None:
        call = None
        targets = [_of_workload(mesh, workload, _port_of(mesh, workload, wish.port))]
    else:
        call = _call(where, wish)
        targets = list(_targets(mesh, caller, call))
    if not targets:
        raise UnknownPartyError(
            f"{where!r} is no service, workload or gateway of the mesh: see `hostmesh get services`"
        )
    return tuple(_answer(mesh, caller, each, call, wish) for each in targets)


def _call(where: str, wish: Wish) -> Call:
    scheme, mark, rest = where.rpartition("://")
    host = rest.partition("/")[0]
    if wish.port is not None and not host.rpartition("]")[2].partition(":")[1]:
        where = f"{scheme}{mark}{host}:{wish.port}{rest[len(host) :]}"
    try:
        return parse_call(where, headers=wish.headers)
    except ValueError as error:
        raise UnknownPartyError(str(error)) from error


def _caller(mesh: Mesh, who: str, wish: Wish) -> Caller:
    source = canonical_address(wish.source or "") or ""
    if wish.source and not source:
        raise UnknownPartyError(f"{wish.source!r} is not an IP address")
    if "://" in who:
        try:
            identity = parse_identity(who)
        except ValueError as error:
            raise UnknownPartyError(str(error)) from error
        namespace = getattr(identity, "namespace", "")
        return Caller(who, identity.uri, source, Viewer(namespace) if namespace else Viewer())
    address = canonical_address(who)
    if address is not None:
        # What has only an address shows no certificate: no identity can be told from where somebody is.
        return Caller(who, None, source or address, Viewer())
    if who in mesh.hosts:
        host = mesh.hosts[who]
        own = host.addresses[0] if host.addresses else ""
        return Caller(f"host {who}", outbound_identity(mesh, host), source or own, mesh.viewer_of(who))
    workload = _workload_named(mesh, who)
    if workload is not None:
        identity = identity_of(workload, mesh.settings.trust_domain)
        here = mesh.viewer_of(workload.host) if workload.host is not None else Viewer(workload.key.namespace)
        return Caller(f"workload {who}", identity.uri, source or canonical_address(workload.address) or "", here)
    raise UnknownPartyError(
        f"{who!r} is nobody: name a host, a workload (NAMESPACE/NAME), a SPIFFE ID (spiffe://…) or an IP address"
        f"{did_you_mean(who, [*mesh.hosts, *map('/'.join, mesh.workloads)])}"
    )


def _workload_named(mesh: Mesh, name: str) -> Workload | None:
    namespace, slash, own = name.partition("/")
    return mesh.workloads.get(WorkloadKey(namespace, own)) if slash else None


def _port_of(mesh: Mesh, workload: Workload, wanted: int | None) -> int:
    ports = ports_of(mesh, workload)
    if wanted is not None:
        return wanted
    if len(ports) == 1:
        return next(iter(ports))
    listed = ", ".join(map(str, ports)) or "none"
    raise UnknownPartyError(f"workload {'/'.join(workload.key)} has the ports {listed}: give --port")


def _targets(mesh: Mesh, caller: Caller, call: Call) -> Iterator[Target]:
    address = canonical_address(call.host)
    names = candidates(call.host.lower(), caller.viewer.namespace, mesh.settings.domain)
    found = (
        service_at(mesh, address, call.port, caller.viewer)
        if address is not None
        else next(filter(None, (service_named(mesh, name, caller.viewer) for name in names)), None)
    )
    port = found.port(call.port) if found is not None else None
    if found is not None and port is not None:
        for part in found.parts or (found,):
            for key in sorted(workloads_behind(mesh, part)):
                number = endpoint_port(port, mesh.workloads[key].ports)
                if number is not None:
                    name = OutboundName(port.number, "", found.id.hostname).server_name
                    yield replace(_of_workload(mesh, mesh.workloads[key], number), server_name=name)
        return
    if call.host in mesh.hosts:
        yield from (_at(mesh, each, call.port) for each in mesh.hosts[call.host].addresses[:1])
    elif address is not None and mesh.hosts_by_address.get(address):
        yield _at(mesh, address, call.port)


def _of_workload(mesh: Mesh, workload: Workload, port: int) -> Target:
    return _at(mesh, canonical_address(workload.address) or workload.address, port, workload)


def _at(mesh: Mesh, address: str, port: int, workload: Workload | None = None) -> Target:
    """Return who answers on an address and port of a host."""
    host = min(mesh.hosts_by_address.get(address, ()), default="")
    gateway = mesh.gateways.get(host, NO_GATEWAYS).listens(address, port)
    if gateway is not None:
        owners = ", ".join(dict.fromkeys(f"gateway {served.gateway_name}" for served in gateway.servers))
        mode = Mode.STRICT if gateway.demands_mesh_tls else Mode.DISABLE
        return Target(host, address, port, owners, mode, gateway.speech is not Speech.TCP)
    for each in inbound_ports(mesh, host) if host else ():
        if each.number == port and each.workload.address == address:
            spoken = each.protocol.is_http
            return Target(host, address, port, _named(each.workload), each.mode, spoken)
    return Target(host, address, port, _named(workload) if workload is not None else address, Mode.DISABLE, False)


def _named(workload: Workload) -> str:
    return f"workload {'/'.join(workload.key)}"


def _answer(mesh: Mesh, caller: Caller, target: Target, call: Call | None, wish: Wish) -> Answer:
    if not target.host:
        return Answer(target, "", caller.identity, Verdict(True, "it is outside of the mesh: no policy holds there"))
    sight = Sight(mesh, target.host)
    listener = listener_at(sight, target.address, target.port)
    if listener is None:
        text = f"Envoy does not see port {target.port} of host {target.host}: no policy holds there"
        return Answer(target, "", caller.identity, Verdict(True, text))
    identity = caller.identity if target.mode is not Mode.DISABLE else None
    attempt = Attempt(
        target.address,
        target.port,
        identity,
        caller.source,
        server_name=_server_name(target, call, wish, identity),
        request=_request(target, call, wish),
        metadata={} if wish.claims is None else {JWT: {PAYLOAD: wish.claims}},
    )
    chain = chain_at(listener, attempt)
    if chain is None:
        how = "plaintext" if identity is None else "mutual TLS"
        text = f"no filter chain takes {how}: the port is {target.mode.value}"
        return Answer(target, "", identity, Verdict(False, text))
    return Answer(target, chain.name, identity, judged(chain, attempt))


def _server_name(target: Target, call: Call | None, wish: Wish, identity: str | None) -> str:
    if wish.server_name or (identity is not None and target.server_name):
        return wish.server_name or target.server_name
    return call.host if call is not None and call.is_tls and canonical_address(call.host) is None else ""


def _request(target: Target, call: Call | None, wish: Wish) -> Request | None:
    given = wish.path is not None or wish.method is not None or bool(wish.headers)
    if not (target.http or given or (call is not None and (call.is_http or call.scheme == "https"))):
        return None
    headers = {name.lower(): value for name, value in wish.headers.items()}
    authority = headers.get("host") or (call.authority if call is not None else target.address)
    path = wish.path if wish.path is not None else call.path if call is not None else "/"
    return Request((wish.method or "GET").upper(), authority, path if path.startswith("/") else f"/{path}", headers)


def summary(answers: Sequence[Answer]) -> bool | None:
    """Return whether all allow it; None if an authorizer decides at some, and none denies."""
    said = {each.verdict.allowed for each in answers}
    return False if False in said else None if None in said else True
