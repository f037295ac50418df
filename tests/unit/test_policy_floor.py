"""What a controller that means harm could tell Envoy, and what this host takes of it."""

from typing import Any

import pytest
from envoy.config.accesslog.v3.accesslog_pb2 import AccessLog
from envoy.config.bootstrap.v3.bootstrap_pb2 import Bootstrap
from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.core.v3.base_pb2 import DataSource
from envoy.config.core.v3.config_source_pb2 import ApiConfigSource
from envoy.config.core.v3.extension_pb2 import TypedExtensionConfig
from envoy.config.core.v3.grpc_service_pb2 import GrpcService
from envoy.config.endpoint.v3.endpoint_pb2 import ClusterLoadAssignment
from envoy.config.listener.v3.listener_components_pb2 import Filter, FilterChain, ListenerFilter
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.config.route.v3.route_components_pb2 import DirectResponseAction, Route, RouteMatch, VirtualHost
from envoy.extensions.access_loggers.file.v3.file_pb2 import FileAccessLog
from envoy.extensions.access_loggers.grpc.v3.als_pb2 import CommonGrpcAccessLogConfig, TcpGrpcAccessLogConfig
from envoy.extensions.filters.http.dynamic_modules.v3.dynamic_modules_pb2 import DynamicModuleFilter
from envoy.extensions.filters.http.lua.v3.lua_pb2 import Lua
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (
    HttpConnectionManager,
    HttpFilter,
)
from envoy.extensions.filters.network.tcp_proxy.v3.tcp_proxy_pb2 import TcpProxy
from envoy.extensions.transport_sockets.tls.v3.common_pb2 import (
    CertificateValidationContext,
    TlsCertificate,
)
from envoy.extensions.transport_sockets.tls.v3.secret_pb2 import GenericSecret, Secret
from envoy.extensions.transport_sockets.tls.v3.tls_pb2 import (
    CommonTlsContext,
    DownstreamTlsContext,
    TlsKeyLog,
    UpstreamTlsContext,
)
from envoy.service.discovery.v3.discovery_pb2 import Resource as ResourceMessage
from google.protobuf import any_pb2
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.message import Message
from google.protobuf.wrappers_pb2 import BoolValue
from udpa.type.v1.typed_struct_pb2 import TypedStruct

from hostmesh_agent.bootstrap import patched
from hostmesh_agent.cache import Entry
from hostmesh_agent.config import FloorSettings
from hostmesh_agent.exchange import Exchange
from hostmesh_agent.policy_floor.floor import Floor
from hostmesh_agent.policy_floor.table import load
from hostmesh_api.delta import Resource, Update
from hostmesh_api.wire import (
    CLUSTER_TYPE,
    ENDPOINT_TYPE,
    EXTENSION_TYPE,
    LISTENER_TYPE,
    SECRET_TYPE,
    VIRTUAL_HOST_TYPE,
)
from hostmesh_controller.xds.encoding import any_of
from hostmesh_controller.xds.encoding import resource as encoded

TABLE = load()
SSH = frozenset({22, 2022})
SHADOW = "/etc/shadow"
DOCKER = "/var/run/docker.sock"


def floor(**settings: Any) -> Floor:
    return Floor(FloorSettings(**settings), TABLE, lambda: SSH)


def said(message: Message, **settings: Any) -> str:
    """Return why a host refuses a message as a resource of its own type; "" if it takes it."""
    type_url = f"type.googleapis.com/{message.DESCRIPTOR.full_name}"
    return floor(**settings).problem(type_url, encoded("x", message))


def answering_with_a_file(path: str) -> VirtualHost:
    answer = DirectResponseAction(status=200)
    answer.body.filename = path
    return VirtualHost(name="x", routes=[Route(match=RouteMatch(prefix="/"), direct_response=answer)])


def logging_to(path: str) -> Listener:
    log = AccessLog(name="file", typed_config=any_of(FileAccessLog(path=path)))
    proxy = Filter(name="tcp", typed_config=any_of(TcpProxy(cluster="a", access_log=[log])))
    return Listener(name="x", filter_chains=[FilterChain(filters=[proxy])])


def calling(path: str) -> Cluster:
    cluster = Cluster(name="x")
    cluster.load_assignment.endpoints.add().lb_endpoints.add().endpoint.address.pipe.path = path
    return cluster


def assigned(path: str) -> ClusterLoadAssignment:
    result = ClusterLoadAssignment(cluster_name="x")
    result.endpoints.add().lb_endpoints.add().endpoint.address.pipe.path = path
    return result


def filtering(config: any_pb2.Any) -> TypedExtensionConfig:
    return TypedExtensionConfig(name="x", typed_config=config)


def struct_of(message: Message, *, camel: bool = False) -> any_pb2.Any:
    result = TypedStruct(type_url=f"type.googleapis.com/{message.DESCRIPTOR.full_name}")
    ParseDict(MessageToDict(message, preserving_proto_field_name=not camel), result.value)
    return any_of(result)


def with_key_log(path: str) -> Cluster:
    context = UpstreamTlsContext(common_tls_context=CommonTlsContext(key_log=TlsKeyLog(path=path)))
    cluster = Cluster(name="x")
    cluster.transport_socket.name, config = "tls", cluster.transport_socket.typed_config
    config.CopyFrom(any_of(context))
    return cluster


def elsewhere() -> Listener:
    """A listener whose routes come from another server than the agent."""
    manager = HttpConnectionManager()
    source = manager.rds.config_source.api_config_source
    source.CopyFrom(ApiConfigSource(api_type=ApiConfigSource.GRPC))
    return Listener(name="x", filter_chains=[FilterChain(filters=[Filter(name="h", typed_config=any_of(manager))])])


def logging_over_grpc(target: str) -> Listener:
    service = GrpcService(google_grpc=GrpcService.GoogleGrpc(target_uri=target, stat_prefix="x"))
    config = TcpGrpcAccessLogConfig(common_config=CommonGrpcAccessLogConfig(log_name="x", grpc_service=service))
    return Listener(name="x", access_log=[AccessLog(name="g", typed_config=any_of(config))])


def lua_from(path: str) -> Lua:
    lua = Lua()
    lua.default_source_code.filename = path
    return lua


def secret_of(path: str) -> Secret:
    generic = GenericSecret()
    generic.secret.filename = path
    return Secret(name="x", generic_secret=generic)


def nested_secret(path: str) -> Secret:
    """What is for TLS may lie anywhere; what an extension inside of it reads may not."""
    context = CertificateValidationContext()
    context.custom_validator_config.CopyFrom(TypedExtensionConfig(name="x", typed_config=any_of(lua_from(path))))
    return Secret(name="x", validation_context=context)


LUA = any_of(Lua(inline_code="x"))


@pytest.mark.parametrize(
    ("message", "why", "allowed"),
    [
        (answering_with_a_file(SHADOW), f"it reads '{SHADOW}'", {"files": (SHADOW,)}),
        (answering_with_a_file("/proc/self/environ"), "it reads '/proc/self/environ'", {"files": ("/proc/",)}),
        (answering_with_a_file("../host.json"), "it reads '../host.json'", None),
        (answering_with_a_file("wasm/../../host.json"), "it reads", None),
        (answering_with_a_file("certs/host/svid.pem"), "it reads 'certs/host/svid.pem'", None),
        (answering_with_a_file("./certs//host/svid.pem"), "it reads", None),
        (logging_to("/etc/cron.d/x"), "it writes to '/etc/cron.d/x'", {"files": ("/etc/cron.d/",)}),
        (logging_to("certs/host/svid.pem"), "it writes to", None),
        (with_key_log("/tmp/keys"), "it writes to '/tmp/keys'", {"files": ("/tmp/keys",)}),
        (calling(DOCKER), f"it uses the unix socket '{DOCKER}'", {"unix_sockets": (DOCKER,)}),
        (calling("@dbus"), "it uses the unix socket '@dbus'", None),
        (assigned(DOCKER), f"it uses the unix socket '{DOCKER}'", {"unix_sockets": ("/var/run/",)}),
        (logging_over_grpc(f"unix:{DOCKER}"), "it uses the unix socket", {"unix_sockets": (DOCKER,)}),
        (filtering(any_of(lua_from(SHADOW))), "it reads", {"files": (SHADOW,)}),
        (filtering(struct_of(lua_from(SHADOW))), "it reads", {"files": (SHADOW,)}),
        (filtering(struct_of(lua_from(SHADOW), camel=True)), "it reads", {"files": (SHADOW,)}),
        (secret_of(SHADOW), "it reads", {"files": (SHADOW,)}),
        (nested_secret(SHADOW), "it reads", {"files": (SHADOW,)}),
        (elsewhere(), "configuration from another source than this agent", None),
        (filtering(any_of(DynamicModuleFilter())), "refused by floor.refused_extensions", {"refused_extensions": ()}),
        (filtering(any_pb2.Any(type_url="type.googleapis.com/envoy.Unheard")), "cannot tell what it does", None),
        (Cluster(name="x", load_assignment=assigned("/a/../var/run/docker.sock")), "it uses the unix socket", None),
    ],
)  # fmt: skip
def test_what_reaches_too_far_is_refused_unless_the_hosts_owner_allows_it(
    message: Message, why: str, allowed: dict[str, Any] | None
) -> None:
    assert why in said(message)
    if allowed is not None:
        assert said(message, **allowed) == ""


@pytest.mark.parametrize(
    "message",
    [
        answering_with_a_file("wasm/page.html"),
        logging_to("/dev/stdout"),
        logging_over_grpc("dns:///logs.example.com:443"),
        filtering(LUA),
        filtering(struct_of(Lua(inline_code="x"))),
        Secret(name="x", tls_certificate=TlsCertificate(certificate_chain=DataSource(filename="/etc/certs/chain.pem"))),
        Secret(
            name="x", validation_context=CertificateValidationContext(trusted_ca=DataSource(filename="/etc/ca.pem"))
        ),
    ],
)
def test_what_reaches_no_further_than_usual_is_taken(message: Message) -> None:
    assert said(message) == ""


def test_the_hosts_owner_can_leave_out_extensions_that_run_programs() -> None:
    assert "it uses envoy.extensions.filters.http.lua.v3.Lua" in said(
        filtering(LUA), refused_extensions=("filters.http.lua.",)
    )


def test_a_resource_is_what_it_comes_as() -> None:
    assert "comes as" in floor().problem(CLUSTER_TYPE, encoded("x", Listener(name="x")))


def test_what_cannot_be_read_is_refused() -> None:
    wrapped = encoded("x", calling(DOCKER))
    broken = Resource("x", "1", wrapped.body.replace(b"\x0a\x14/var", b"\x0b\x14/var"))
    assert "cannot read it" in floor().problem(CLUSTER_TYPE, broken)


def test_what_was_harmless_once_is_remembered_and_harm_beside_it_is_seen() -> None:
    one = floor()
    mixed = assigned(DOCKER)
    mixed.endpoints[0].lb_endpoints.add().endpoint.address.socket_address.address = "10.0.0.1"
    harmless = ClusterLoadAssignment(cluster_name="x")
    harmless.endpoints.add().lb_endpoints.append(mixed.endpoints[0].lb_endpoints[1])
    for _ in range(2):
        assert one.problem(ENDPOINT_TYPE, encoded("x", harmless)) == ""
        assert DOCKER in one.problem(ENDPOINT_TYPE, encoded("x", mixed))


# Ports


def bound(*ports: int, **fields: Any) -> Listener:
    made = Listener(name="x", **fields)
    for index, port in enumerate(ports):
        address = made.additional_addresses.add().address if index else made.address
        address.socket_address.address, address.socket_address.port_value = "0.0.0.0", port
    return made


@pytest.mark.parametrize(
    ("settings", "port", "why"),
    [
        ({}, 8080, ""),
        ({}, 2022, "SSH is served on port 2022"),
        ({"listen_ports": (15055,)}, 15055, "port 15055 is the agent's own"),
        ({"never_listen_ports": (3389,)}, 3389, "floor.never_listen_ports"),
        ({"listen_ports": (8443,)}, 8443, ""),
        ({"listen_ports": (8443,)}, 15006, ""),
        ({}, 15106, "that of this host's other Envoy"),
        ({"listen_ports": (8443,)}, 8080, "it listens on port 8080 (allowed with floor.listen_ports"),
        ({"listen_ports": (22,)}, 22, "SSH is served on port 22"),
        ({"min_mtls": "strict"}, 8080, "it listens on port 8080"),
        ({"min_mtls": "strict", "listen_ports": (8080,)}, 8080, ""),
    ],
)
def test_envoy_listens_where_the_hosts_owner_lets_it(settings: dict[str, Any], port: int, why: str) -> None:
    found = said(bound(port), **settings)
    assert why in found
    assert bool(found) is bool(why)


def raw(listener: Listener, extra: bytes) -> Resource:
    """Return a listener with more bytes behind it: protobuf reads both as one message."""
    packed = any_pb2.Any(type_url=LISTENER_TYPE, value=listener.SerializeToString() + extra)
    return Resource("x", "1", ResourceMessage(name="x", version="1", resource=packed).SerializeToString())


def port_22_plus(overflow: int) -> bytes:
    """An address whose port is too large for its field: what does not fit falls off."""
    number, varint = 22 + overflow, b""
    while number >= 0x80:
        varint, number = varint + bytes([number & 0x7F | 0x80]), number >> 7
    socket = b"\x12\x07" + b"0.0.0.0" + b"\x18" + varint + bytes([number])
    address = b"\x0a" + bytes([len(socket)]) + socket
    return b"\x12" + bytes([len(address)]) + address


@pytest.mark.parametrize(
    ("listener", "extra"),
    [
        (Listener(name="x"), port_22_plus(1 << 32)),
        (Listener(name="x"), port_22_plus(1 << 40)),
        # Not bound, and then bound after all: the last word counts.
        (bound(22, bind_to_port=BoolValue(value=False)), b"\xd2\x01\x02\x08\x01"),
        # A port of a type that is none of a port's: it is passed over.
        (bound(22), b"\x12\x04\x0a\x02\x1a\x00"),
    ],
)
def test_what_a_listener_says_is_read_as_envoy_reads_it(listener: Listener, extra: bytes) -> None:
    read = Listener.FromString(listener.SerializeToString() + extra)
    assert read.address.socket_address.port_value == 22
    assert not read.HasField("bind_to_port") or read.bind_to_port.value
    assert "SSH is served on port 22" in floor().problem(LISTENER_TYPE, raw(listener, extra))


# Mutual TLS

ROOTS = {"name": "roots", "sds_config": {"path_config_source": {"path": "certs/roots/sds.json"}}}
VERIFIED = {"combined_validation_context": {"validation_context_sds_secret_config": ROOTS}}


def chain(port: int, common: dict[str, Any] | None = None, *, asks: bool = True, cluster: str = "a") -> FilterChain:
    made = FilterChain(name=f"chain-{port}", filters=[Filter(typed_config=any_of(TcpProxy(cluster=cluster)))])
    made.filter_chain_match.destination_port.value = port
    if common is not None:
        context = ParseDict({"common_tls_context": common, "require_client_certificate": asks}, DownstreamTlsContext())
        made.transport_socket.name, config = "tls", made.transport_socket.typed_config
        config.CopyFrom(any_of(context))
    return made


def inbound(*chains: FilterChain, **fields: Any) -> Listener:
    here = chain(15006, cluster="BlackHoleCluster")
    return bound(15006, filter_chains=[here, *chains], **fields)


MUTUAL, PLAIN = chain(9080, VERIFIED), chain(9080)
NOT_ASKED = chain(9080, VERIFIED, asks=False)
UNTRUSTED = chain(
    9080,
    {
        "combined_validation_context": {
            "default_validation_context": {"trust_chain_verification": "ACCEPT_UNTRUSTED"},
            "validation_context_sds_secret_config": ROOTS,
        }
    },
)
OTHER_ROOTS = chain(9080, {"validation_context": {"trusted_ca": {"filename": "wasm/mine.pem"}}})
ANY_ROOTS = chain(9080, {"combined_validation_context": {}})


@pytest.mark.parametrize(
    ("listener", "strict", "permissive"),
    [
        (inbound(MUTUAL), True, True),
        (inbound(MUTUAL, PLAIN), False, True),
        (inbound(PLAIN), False, False),
        (inbound(MUTUAL, chain(9090)), False, False),
        (inbound(NOT_ASKED), False, False),
        (inbound(UNTRUSTED), False, False),
        (inbound(OTHER_ROOTS), False, False),
        (inbound(ANY_ROOTS), False, False),
        (inbound(MUTUAL, default_filter_chain=FilterChain(name="rest")), False, False),
        (inbound(MUTUAL, chain(15006, cluster="inbound|9080||")), False, False),
        (inbound(MUTUAL, use_original_dst=BoolValue(value=True)), False, False),
        (inbound(MUTUAL, filter_chain_matcher={"on_no_match": {"action": {"name": "x"}}}), False, False),
        (inbound(MUTUAL, listener_filters=[ListenerFilter(name="x")]), True, True),
    ],
)
def test_the_listener_of_captured_connections_asks_for_at_least_what_the_hosts_owner_says(
    listener: Listener, strict: bool, permissive: bool
) -> None:
    assert (said(listener, min_mtls="strict") == "") is strict
    assert (said(listener, min_mtls="permissive") == "") is permissive
    assert said(listener) == ""


def test_the_cluster_that_leads_nowhere_leads_nowhere() -> None:
    leading = calling("x")
    leading.name = "BlackHoleCluster"
    resource = encoded("BlackHoleCluster", leading)
    assert "leads somewhere" in floor(min_mtls="strict").problem(CLUSTER_TYPE, resource)
    empty = encoded("BlackHoleCluster", Cluster(name="BlackHoleCluster"))
    assert floor(min_mtls="strict").problem(CLUSTER_TYPE, empty) == ""


# Bootstrap

LUA_FROM_SHADOW = {"@type": f"a/{Lua.DESCRIPTOR.full_name}", "default_source_code": {"filename": SHADOW}}


@pytest.mark.parametrize(
    ("patch", "why"),
    [
        ({"static_resources": {"listeners": [MessageToDict(bound(22))]}}, "SSH is served on port 22"),
        ({"staticResources": {"listeners": [{"address": {"socketAddress": {"portValue": "22"}}}]}}, "port 22"),
        ({"static_resources": {"listeners": [MessageToDict(bound(15006))]}}, "port 15006"),
        ({"static_resources": {"clusters": [MessageToDict(calling(DOCKER))]}}, DOCKER),
        ({"static_resources": {"clusters": [{"name": "hostmesh-relay"}]}}, "hostmesh-relay is the agent's own"),
        ({"layered_runtime": {"layers": [{"name": "x", "disk_layer": {"symlink_root": "/etc"}}]}}, "it reads '/etc'"),
        ({"hdsConfig": {"api_type": "GRPC"}}, "another source"),
        ({"perf_tracing_file_path": "/etc/x"}, "it writes to '/etc/x'"),
        ({"bootstrap_extensions": [{"name": "x", "typed_config": {"@type": "a/envoy.Unheard"}}]}, "cannot tell"),
        ({"certificate_provider_instances": {"x": {"typed_config": LUA_FROM_SHADOW}}}, SHADOW),
        ({"static_resources": "x"}, "cannot read it"),
        ({"stats_config": {"stats_tags": []}}, ""),
    ],
)  # fmt: skip
def test_a_patch_of_the_bootstrap_cannot_reach_further_either(patch: dict[str, Any], why: str) -> None:
    found = floor(min_mtls="none").bootstrap_problem(patch)
    assert why in found
    assert bool(found) is bool(why)


def test_no_spelling_of_a_patch_changes_what_the_agent_depends_on() -> None:
    ours = {"admin": {"address": 1}, "dynamic_resources": {"ads_config": 1}, "static_resources": {"clusters": [1]}}
    patch = {
        "dynamicResources": {},
        "DynamicResources": {},
        "admin": {},
        "node": {},
        "staticResources": {"clusters": [2]},
    }
    assert patched(ours, patch) == {**ours, "static_resources": {"clusters": [1, 2]}}
    assert {"admin", "dynamic_resources", "node"} <= set(Bootstrap.DESCRIPTOR.fields_by_name)


# In the exchange


def test_what_ran_goes_on_running_and_the_controller_is_told_by_name() -> None:
    before = encoded("x", Cluster(name="x"))
    exchange = Exchange([Entry(CLUSTER_TYPE, False, before)], host_refuses=floor().problem)
    exchange.connected()
    exchange.envoy_connected()
    exchange.update(Update(CLUSTER_TYPE, "u1", (encoded("x", calling(DOCKER)), encoded("y", calling(DOCKER))), ()))
    held = exchange.answer(CLUSTER_TYPE, "x")
    assert held is not None
    assert held.resource == before
    assert not exchange.has_refused()
    assert {each.name for each in exchange.refusals} == set()
    exchange.update(Update(CLUSTER_TYPE, "u2", (), ("x",)))
    exchange.update(Update(SECRET_TYPE, "u3", (encoded("s", secret_of(SHADOW)),), ()))
    answer = exchange.answer(SECRET_TYPE, "s")
    assert answer is not None
    assert answer.resource is None


def test_what_is_on_disk_is_held_against_the_floor_of_today() -> None:
    entries = [Entry(CLUSTER_TYPE, False, encoded("x", calling(DOCKER)))]
    assert Exchange(entries, host_refuses=floor().problem).accepted() == {}
    allowed = floor(unix_sockets=(DOCKER,))
    assert Exchange(entries, host_refuses=allowed.problem).accepted() == {CLUSTER_TYPE: 1}


def test_an_extension_and_a_virtual_host_are_judged_as_what_they_are() -> None:
    http = HttpFilter(name="x", typed_config=any_of(lua_from(SHADOW)))
    manager = HttpConnectionManager(http_filters=[http])
    listener = Listener(name="x", filter_chains=[FilterChain(filters=[Filter(typed_config=any_of(manager))])])
    assert SHADOW in said(listener)
    for type_url, message in (
        (EXTENSION_TYPE, filtering(any_of(lua_from(SHADOW)))),
        (VIRTUAL_HOST_TYPE, answering_with_a_file(SHADOW)),
    ):
        assert SHADOW in floor().problem(type_url, encoded("x", message))
