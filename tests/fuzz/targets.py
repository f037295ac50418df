"""What is fuzzed. A target is made by a function, so that its imports can be instrumented; it raises on findings alone.

What a reader says about bad input by its own exceptions is no finding; anything else that it raises is. Where there is
a second opinion (a text that is written again, protobuf's own reading) the two are compared.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Final

Target = Callable[[bytes], None]
NOW: Final = datetime(2026, 1, 1, tzinfo=UTC)
SSH: Final = frozenset({22})


def yaml() -> Target:
    """Users' documents: read, modelled, and judged together."""
    from hostmesh_controller.checks.world import World
    from hostmesh_controller.review import read, review

    world = World()

    def run(data: bytes) -> None:
        review(read([("f.yaml", data.decode(errors="replace"))], "default"), world)

    return run


def csr() -> Target:
    from hostmesh_controller.csr import CsrError, public_key_of

    def run(data: bytes) -> None:
        with suppress(CsrError):
            public_key_of(data)

    return run


def joinstring() -> Target:
    from hostmesh_api.joinstring import JoinString

    def run(data: bytes) -> None:
        with suppress(ValueError):
            found = JoinString.decode(data.decode(errors="replace"))
            assert JoinString.decode(found.encode()) == found

    return run


def token() -> Target:
    """A join token, and the rest of a request to join."""
    from google.protobuf.message import DecodeError

    from hostmesh_api.v1.hostmesh_pb2 import JoinRequest
    from hostmesh_controller.groups import NotAdmittedError, candidate
    from hostmesh_controller.model.objects import ObjectKey
    from hostmesh_controller.peers import peer_address
    from hostmesh_controller.tokens import digest

    group = ObjectKey("WorkloadGroup", "default", "g")

    def run(data: bytes) -> None:
        try:
            request = JoinRequest.FromString(data)
        except DecodeError:
            return
        digest(request.token)
        with suppress(NotAdmittedError):
            peer = peer_address(request.facts.os)
            found = candidate(group, request.name, request.facts.hostname, request.address, peer)
            assert "/" not in found.name
            assert found.name == found.name.lower()

    return run


def report() -> Target:
    """What an agent tells of its host."""
    from google.protobuf.message import DecodeError

    from hostmesh_api.v1.hostmesh_pb2 import HostReport
    from hostmesh_controller.reports import bounded, ready_workloads

    placed = frozenset({("default", "w")})

    def run(data: bytes) -> None:
        try:
            found = HostReport.FromString(data)
        except DecodeError:
            return
        kept = bounded(found)
        assert bounded(kept) == kept
        assert ready_workloads(kept, placed, NOW) <= placed

    return run


def stream() -> Target:
    """Requests of an agent, one behind the other, each behind its length in two bytes."""
    from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest
    from google.protobuf.message import DecodeError

    from fuzz.mesh import small_mesh
    from hostmesh_controller.hub import Hub, TooManyNamesError

    mesh = small_mesh()

    def run(data: bytes) -> None:
        hub = Hub(mesh, 1, max_names=50, max_name_chars=5_000)
        connection = hub.connect("one", "peer", NOW, lambda: None)
        try:
            for part in parts(data):
                hub.receive(connection, DeltaDiscoveryRequest.FromString(part), NOW)
                for _ in hub.pushes(connection):
                    pass
        except (DecodeError, TooManyNamesError):
            pass
        hub.disconnect(connection)
        assert not hub._faulty, hub._faulty

    return run


def hostconfig() -> Target:
    """What the controller tells an agent to do."""
    import json
    from pathlib import Path

    from google.protobuf.message import DecodeError

    from hostmesh_agent.bootstrap import BootstrapInput, build
    from hostmesh_agent.capture import HostFloor
    from hostmesh_agent.converge import Evidence, InForce, RefusedError, check, decide
    from hostmesh_agent.policy_floor.table import load
    from hostmesh_agent.state import HostRecord
    from hostmesh_api.v1.hostmesh_pb2 import HostConfig

    record = HostRecord("one", "cluster.local", ("10.0.0.1:15012",))
    host = HostFloor(envoy_uid=900, ssh_ports=SSH)
    floor = floor_of(load())

    def run(data: bytes) -> None:
        try:
            config = HostConfig.FromString(data)
        except DecodeError:
            return
        config.host, config.trust_domain = record.host, record.trust_domain
        with suppress(RefusedError):
            check(config, record, host)
            ports = frozenset(config.strict_ports)
            decide(config, Evidence(frozenset(), frozenset(config.listeners), InForce(), ports))
        with suppress(ValueError, RecursionError):
            patch = json.loads(config.bootstrap_patch)
            if isinstance(patch, dict):
                floor.bootstrap_problem(patch)
                made = json.loads(build(BootstrapInput("one", Path("/x"), 100, config.bootstrap_patch)))
                assert made["admin"]["address"]["pipe"]["path"] == "admin.sock"
                assert made["node"]["id"] == "one"

    return run


def floor() -> Target:
    """Resources for Envoy: the floor must see what protobuf's own reading sees."""
    from envoy.config.cluster.v3.cluster_pb2 import Cluster
    from envoy.config.listener.v3.listener_pb2 import Listener
    from envoy.config.route.v3.route_components_pb2 import VirtualHost
    from envoy.service.discovery.v3.discovery_pb2 import Resource as ResourceMessage
    from google.protobuf.message import DecodeError

    from fuzz.oracle import reaches
    from hostmesh_agent.policy_floor.table import load
    from hostmesh_api.delta import Resource

    judge = floor_of(load())
    kinds: list[Any] = [Listener, Cluster, VirtualHost]

    def run(data: bytes) -> None:
        kind = kinds[data[0] % len(kinds)] if data else Listener
        type_url = f"type.googleapis.com/{kind.DESCRIPTOR.full_name}"
        wrapped = ResourceMessage(name="x", version="1")
        wrapped.resource.type_url, wrapped.resource.value = type_url, data[1:]
        why = judge.problem(type_url, Resource("x", "1", wrapped.SerializeToString()))
        try:
            read = kind.FromString(data[1:])
        except DecodeError:
            return
        if found := reaches(read, SSH):
            assert why, found

    return run


def exchange() -> Target:
    """What the controller and Envoy say to the relay, in turn: the first byte of a part says who speaks."""
    from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest, DeltaDiscoveryResponse
    from google.protobuf.message import DecodeError

    from hostmesh_agent.exchange import Exchange
    from hostmesh_agent.policy_floor.table import load
    from hostmesh_api.delta import ClientStream

    judge = floor_of(load())

    def run(data: bytes) -> None:
        relay = Exchange(host_refuses=judge.problem, max_chosen=20)
        relay.connected()
        relay.envoy_connected()
        with suppress(DecodeError):
            for part in parts(data):
                if part[:1] < b"\x80":
                    relay.update(ClientStream.update(DeltaDiscoveryResponse.FromString(part[1:])))
                else:
                    relay.receive(DeltaDiscoveryRequest.FromString(part[1:]), NOW)
                relay.pushes()
                relay.settle(NOW)

    return run


def owner() -> Target:
    """What the host's owner and its kernel say: agent.toml and a process's cgroups."""
    from hostmesh_agent.config import parse
    from hostmesh_agent.config_table import ConfigError
    from hostmesh_agent.entitlements import unit_of

    def run(data: bytes) -> None:
        text = data.decode(errors="replace")
        assert unit_of(text).endswith((".service", ".scope")) or not unit_of(text)
        with suppress(ConfigError):
            parse(text, "f")

    return run


def workloadapi() -> Target:
    """What the Workload API is asked, and the PEM that it answers from."""
    from google.protobuf.message import DecodeError

    from hostmesh_agent.workload_api.answers import der_of
    from hostmesh_api.v1.workload_pb2 import X509BundlesRequest, X509SVIDRequest

    def run(data: bytes) -> None:
        for kind in (X509SVIDRequest, X509BundlesRequest):
            with suppress(DecodeError):
                kind.FromString(data)
        with suppress(ValueError):
            der_of(data, b"CERTIFICATE")

    return run


def parts(data: bytes) -> Iterator[bytes]:
    """Yield what is behind lengths of two bytes."""
    at = 0
    while at + 2 <= len(data):
        size = int.from_bytes(data[at : at + 2], "big")
        yield data[at + 2 : at + 2 + size]
        at += 2 + size


def floor_of(table: Any) -> Any:
    from hostmesh_agent.config import FloorSettings
    from hostmesh_agent.policy_floor.floor import Floor

    return Floor(FloorSettings(), table, lambda: SSH)


TARGETS: Final[Mapping[str, Callable[[], Target]]] = {
    "csr": csr,
    "exchange": exchange,
    "floor": floor,
    "hostconfig": hostconfig,
    "joinstring": joinstring,
    "owner": owner,
    "report": report,
    "stream": stream,
    "token": token,
    "workloadapi": workloadapi,
    "yaml": yaml,
}
