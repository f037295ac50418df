"""What the mesh's names have in common, read from the DNS listener that Envoy has. Pure.

systemd-resolved is told domains, not names: a domain sends it to one server, and no other is asked about what is below
it. So it is told the mesh's own domain, below which nobody else has names, and never by itself a host like
`api.example.com`: then `v2.api.example.com`, which is not of the mesh, could no longer be found.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from hostmesh_agent import wire_fields
from hostmesh_api.delta import Resource

# Numbers of fields: Resource.resource, Any.value, Listener.listener_filters, ListenerFilter.typed_config,
# DnsFilterConfig.server_config, ServerContextConfig.inline_dns_table, DnsTable.virtual_domains, DnsVirtualDomain.name
_TO_DOMAINS: Final = (2, 2, 9, 3, 2, 2, 1, 2)
_NAME: Final = 1
DNS_LISTENER: Final = "dns"
_SERVICE: Final = "svc"


@dataclass(frozen=True, slots=True)
class MeshNames:
    """The names of the mesh as this host sees it.

    Attributes:
        domain: the mesh's own ("cluster.local"); "" where no service has a name below one.
        namespace: whose services are known by their bare names; "" where there is none.
        outside: names that are not below the domain ("api.example.com"), sorted.
    """

    domain: str = ""
    namespace: str = ""
    outside: tuple[str, ...] = ()

    def search(self) -> tuple[str, ...]:
        """Return the domains in which short names are to be looked for, as for a program in Kubernetes."""
        if not self.domain:
            return ()
        services = f"{_SERVICE}.{self.domain}"
        return (*((f"{self.namespace}.{services}",) if self.namespace else ()), services, self.domain)


def of_listener(resource: bytes) -> MeshNames:
    """Return what the names in a DNS listener have in common; `resource` is as it came over ADS.

    Raises:
        ValueError: there is no listener in it.
    """
    return of_names(_names(resource))


def of_names(names: Iterable[str]) -> MeshNames:
    """Return what names have in common: a service has its full name and the short ones of it, all in the table."""
    known = set(names)
    domain, namespace = "", ""
    short: set[str] = set()
    for name in known:
        parts = name.split(".", 3)
        if len(parts) < 4 or parts[2] != _SERVICE or name.removesuffix(f".{parts[3]}") not in known:
            continue
        domain = parts[3]
        short |= {parts[0], f"{parts[0]}.{parts[1]}", f"{parts[0]}.{parts[1]}.{_SERVICE}"}
        if parts[0] in known:
            namespace = parts[1]
    outside = known - short
    if domain:
        outside = {name for name in outside if not name.endswith(f".{domain}")}
    return MeshNames(domain, namespace, tuple(sorted(outside)))


def _names(resource: bytes) -> Iterator[str]:
    messages = [resource]
    for number in _TO_DOMAINS:
        messages = [each for message in messages for each in wire_fields.inside(message, number)]
    for message in messages:
        for name in wire_fields.inside(message, _NAME):
            yield name.decode(errors="replace").rstrip(".").lower()


class AcceptedNames:
    """The names in the DNS listener that Envoy has, read again only when it has another."""

    def __init__(self, accepted: Callable[[], Resource | None]) -> None:
        self._accepted = accepted
        self._read: tuple[str, MeshNames] | None = None

    def now(self) -> MeshNames:
        """Return them; nothing, where there is no listener or it cannot be read."""
        resource = self._accepted()
        if resource is None:
            return MeshNames()
        if self._read is None or self._read[0] != resource.version:
            try:
                names = of_listener(resource.body)
            except ValueError:
                names = MeshNames()
            self._read = (resource.version, names)
        return self._read[1]
