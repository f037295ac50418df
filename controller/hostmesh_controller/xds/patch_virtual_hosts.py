"""Patches of virtual hosts, which Envoy asks for one by one and by names that are not Istio's."""

from collections.abc import Iterator
from typing import Final

from envoy.config.route.v3.route_components_pb2 import VirtualHost

from hostmesh_api import wire
from hostmesh_api.delta import Resource
from hostmesh_controller.mesh.index import Mesh
from hostmesh_controller.mesh.viewer import Viewer
from hostmesh_controller.names import VirtualHostName, domain_closeness, parse_virtual_host, split_header
from hostmesh_controller.xds.encoding import absent
from hostmesh_controller.xds.encoding import resource as encoded
from hostmesh_controller.xds.messages import message_of
from hostmesh_controller.xds.of_virtual_hosts import meant_hostname
from hostmesh_controller.xds.patch_routes import patch_virtual_host, table_matches
from hostmesh_controller.xds.patch_set import OUTBOUND, Patch, PatchSet

_CONTEXTS: Final = frozenset({OUTBOUND})
_ALLOW_ANY: Final = "allow_any"


def patched_virtual_host(
    mesh: Mesh, viewer: Viewer, name: str, made: Resource | None, patches: PatchSet
) -> Resource | None:
    """Return the virtual host of a name as patches leave it; what they add is for hosts that nothing else has."""
    parsed = parse_virtual_host(name)
    if parsed is None or made is None:
        return made
    hostname = meant_hostname(mesh, viewer, parsed)

    def make() -> Resource:
        found = _own(mesh, parsed, hostname, made, patches) if hostname else _added(parsed, made, patches)
        if found is None:
            return absent(name)
        # Envoy asked by this name, for requests with this header: a patch that says otherwise would not be found.
        found.name = name
        found.domains[:] = [parsed.header]
        result = encoded(name, found, aliases=(name,))
        return made if result.version == made.version else result

    return mesh.memo.get(("patched", wire.VIRTUAL_HOST_TYPE, name, viewer, hostname), (made, patches), make)


def _own(mesh: Mesh, parsed: VirtualHostName, hostname: str, made: Resource, patches: PatchSet) -> VirtualHost | None:
    """Return a service's virtual host patched under its name in Istio: `HOST:PORT`."""
    host = message_of(made)
    if not isinstance(host, VirtualHost):
        return None
    host.name = f"{hostname}:{parsed.port}"
    host.domains[:] = sorted(_domains(mesh, parsed, hostname))
    return patch_virtual_host(host, _of(patches, "VIRTUAL_HOST", parsed), _of(patches, "HTTP_ROUTE", parsed))


def _of(patches: PatchSet, apply_to: str, parsed: VirtualHostName) -> list[Patch]:
    table = str(parsed.port)
    return [each for each in patches.of(apply_to) if each.is_for(_CONTEXTS) and table_matches(table, each, _CONTEXTS)]


def _domains(mesh: Mesh, parsed: VirtualHostName, hostname: str) -> set[str]:
    """Return all the names under which Istio's virtual host of a service answers."""
    found = {parsed.header, split_header(parsed.header)[0], hostname}
    short, suffix, _ = hostname.partition(f".svc.{mesh.settings.domain}")
    if suffix:
        found |= {short, f"{short}.svc", short.partition(".")[0]}
    return found | {f"{each}:{parsed.port}" for each in found if not each.endswith(f":{parsed.port}")}


def _added(parsed: VirtualHostName, made: Resource, patches: PatchSet) -> VirtualHost | None:
    """Return what a host that is nobody's gets: an added virtual host, or as before (nothing, or what lies beyond)."""
    hosts = _of(patches, "VIRTUAL_HOST", parsed)
    found: list[tuple[int, VirtualHost]] = []
    for patch in hosts:
        if patch.operation == "ADD" and isinstance(patch.value, VirtualHost):
            fits = [_closeness(domain, parsed) for domain in patch.value.domains]
            if any(fits):
                found.append((max(fits), patch.value))
    if found:
        result = VirtualHost()
        result.CopyFrom(max(found, key=lambda each: each[0])[1])
        return result
    host = message_of(made)
    if not isinstance(host, VirtualHost):
        return None
    host.name, host.domains[:] = _ALLOW_ANY, ["*"]
    return patch_virtual_host(host, hosts, _of(patches, "HTTP_ROUTE", parsed))


def _closeness(domain: str, parsed: VirtualHostName) -> int:
    """Return how closely a domain names the header, as Envoy looks: exactly, by its end, by its start, as any; or 0."""
    return max(domain_closeness(domain.lower(), header) for header in _spellings(parsed))


def _spellings(parsed: VirtualHostName) -> Iterator[str]:
    yield parsed.header
    host, port = split_header(parsed.header)
    yield host if port is not None else f"{parsed.header}:{parsed.port}"
