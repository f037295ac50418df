"""A proxy tries a request again at its own program where that is safe, and counts what its limits have left."""

from typing import Any

import pytest
from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.config.route.v3.route_components_pb2 import Route
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (
    HttpConnectionManager,
)

from golden.objects import mesh_of, obj
from hostmesh_api import wire
from hostmesh_controller import xds
from hostmesh_controller.model.objects import ApiObject
from hostmesh_controller.names import VIRTUAL_INBOUND
from hostmesh_controller.xds.messages import message_of


def inbound_route(protocol: str = "http", *more: ApiObject) -> Route:
    mesh = mesh_of(
        [
            obj("Host", "one", {"addresses": ["10.0.0.1"]}),
            obj("WorkloadEntry", "web", {"address": "10.0.0.1", "labels": {"app": "web"}}),
            obj("Service", "web", {"selector": {"app": "web"}, "ports": [{"name": protocol, "port": 80}]}),
            *more,
        ]
    )
    found = xds.resource(mesh, "one", wire.LISTENER_TYPE, VIRTUAL_INBOUND)
    assert found is not None
    listener = message_of(found)
    assert isinstance(listener, Listener)
    manager = HttpConnectionManager()
    chain = next(each for each in listener.filter_chains if each.name == "0.0.0.0_80|mtls")
    assert chain.filters[0].typed_config.Unpack(manager)
    return manager.route_config.virtual_hosts[0].routes[0]


def mesh_wide(**retries: Any) -> ApiObject:
    return obj("MeshConfig", "default", {"defaultInboundHttpRetryPolicy": retries})


def test_a_request_that_the_program_never_saw_is_sent_again() -> None:
    policy = inbound_route().route.retry_policy
    assert (policy.retry_on, policy.num_retries.value) == ("reset-before-request", 2)
    # There is one program: no other endpoint is looked for.
    assert not policy.retry_host_predicate
    assert not policy.host_selection_retry_max_attempts


def test_streams_of_grpc_are_not_begun_anew() -> None:
    assert not inbound_route("grpc").route.HasField("retry_policy")
    assert inbound_route("http2").route.HasField("retry_policy")


def test_the_mesh_says_what_is_tried_again_and_how_often() -> None:
    policy = inbound_route("http", mesh_wide(attempts=4, retryOn="reset,503", backoff="20ms")).route.retry_policy
    assert (policy.retry_on, policy.num_retries.value) == ("reset,retriable-status-codes", 4)
    assert list(policy.retriable_status_codes) == [503]
    assert policy.retry_back_off.base_interval.ToMilliseconds() == 20
    assert inbound_route("http", mesh_wide(attempts=5)).route.retry_policy.retry_on == "reset-before-request"


def test_the_mesh_turns_it_off() -> None:
    assert not inbound_route("http", mesh_wide(attempts=0)).route.HasField("retry_policy")


@pytest.mark.parametrize("name", ["inbound|80||", "outbound|80||web.default.svc.cluster.local", "PassthroughCluster"])
def test_what_the_limits_of_a_cluster_have_left_is_counted(name: str) -> None:
    mesh = mesh_of(
        [
            obj("Host", "one", {"addresses": ["10.0.0.1"]}),
            obj("WorkloadEntry", "web", {"address": "10.0.0.1", "labels": {"app": "web"}}),
            obj("Service", "web", {"selector": {"app": "web"}, "ports": [{"name": "http", "port": 80}]}),
        ]
    )
    found = xds.resource(mesh, "one", wire.CLUSTER_TYPE, name)
    assert found is not None
    cluster = message_of(found)
    assert isinstance(cluster, Cluster)
    assert [each.track_remaining for each in cluster.circuit_breakers.thresholds] == [True]
