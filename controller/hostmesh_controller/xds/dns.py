"""The DNS listener: mesh names and their virtual addresses, as a table inside Envoy.

Names it does not know are answered NXDOMAIN; the agent's rules turn that answer into REFUSED, so that resolvers go on
to the next server. Wildcard hosts are left out: Envoy's table cannot hold them.
"""

from functools import partial
from typing import Final

from envoy.config.core.v3.address_pb2 import Address, SocketAddress
from envoy.config.listener.v3.listener_components_pb2 import ListenerFilter
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.data.dns.v3.dns_table_pb2 import DnsTable
from envoy.extensions.filters.udp.dns_filter.v3.dns_filter_pb2 import DnsFilterConfig
from google.protobuf.any_pb2 import Any

from hostmesh_api import wire
from hostmesh_controller.mesh.memo import Memo
from hostmesh_controller.mesh.records import Service, ServiceId
from hostmesh_controller.names import DNS_LISTENER, is_single, is_v6
from hostmesh_controller.xds.encoding import any_of, duration, length_delimited

ANSWER_TTL_S: Final = 30
"""Virtual addresses are stable; explicit ones may be edited."""
_FILTER: Final = "envoy.filters.udp.dns_filter"


def listener(namespace: str, services: tuple[Service, ...], memo: Memo) -> Listener:
    """Return the DNS listener of the hosts of one namespace.

    Args:
        namespace: whose services are also known by their bare names.
        services: every visible service.
        memo: holds the bytes of each service's names, so that one more service costs one more.
    """
    table = b"".join(part for _, part in _parts(namespace, services, memo).values())
    server = length_delimited(DnsFilterConfig.ServerContextConfig.INLINE_DNS_TABLE_FIELD_NUMBER, table)
    config = DnsFilterConfig(stat_prefix=DNS_LISTENER).SerializeToString(deterministic=True)
    config += length_delimited(DnsFilterConfig.SERVER_CONFIG_FIELD_NUMBER, server)
    return Listener(
        name=DNS_LISTENER,
        address=Address(
            socket_address=SocketAddress(protocol=SocketAddress.UDP, address="127.0.0.1", port_value=wire.DNS_PORT)
        ),
        listener_filters=[
            ListenerFilter(name=_FILTER, typed_config=Any(type_url=any_of(DnsFilterConfig()).type_url, value=config))
        ],
    )


_Parts = dict[ServiceId, tuple[Service, bytes]]


def _parts(namespace: str, services: tuple[Service, ...], memo: Memo) -> _Parts:
    """Return each service with the bytes of its names; nearly all of them are those of the listener before."""

    def make(_: tuple[object, ...], known: _Parts | None) -> _Parts:
        found = known or {}
        result: _Parts = {}
        for service in services:
            part = found.get(service.id)
            result[service.id] = part if part is not None and part[0] is service else made(service)
        return result

    def made(service: Service) -> tuple[Service, bytes]:
        bare = service.short and service.id.namespace == namespace
        return service, memo.get(("dns", service.id, bare), (service,), partial(_domains, service, bare=bare))

    return memo.step(("dns parts", namespace), (services,), make)


def names_of(service: Service, *, bare: bool) -> tuple[str, ...]:
    """Return the names by which a service is looked up; `bare`: from its own namespace."""
    hostname = service.id.hostname
    if service.is_wildcard:
        return ()
    if not service.short:
        return (hostname,)
    name, namespace = hostname.split(".", 2)[:2]
    return (hostname, f"{name}.{namespace}.svc", f"{name}.{namespace}", *((name,) if bare else ()))


def answers(service: Service) -> tuple[str, ...]:
    """Return the addresses a service's name stands for.

    Explicit ones, and the virtual one of a family that has none: both families are always answered, since some
    resolvers take a missing AAAA for a missing name.
    """
    explicit = [prefix.partition("/")[0] for prefix in service.addresses if is_single(prefix)]
    families = {is_v6(address) for address in explicit}
    missing = (vip for vip in (service.vip4, service.vip6) if vip is not None and is_v6(vip) not in families)
    return (*explicit, *missing)


def _domains(service: Service, *, bare: bool) -> bytes:
    addresses = answers(service)
    if not addresses:
        return b""
    table = DnsTable()
    for name in names_of(service, bare=bare):
        domain = table.virtual_domains.add(name=name, answer_ttl=duration(ANSWER_TTL_S))
        domain.endpoint.address_list.address.extend(addresses)
    return table.SerializeToString(deterministic=True)
