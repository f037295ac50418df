"""What a call would meet: each way it can go, with its reason."""

from typing import Any

import pytest

from golden.objects import all_ready, mesh_of, obj
from hostmesh_controller.explain import Story, explain, parse_call
from hostmesh_controller.explain.outbound import UnknownHostError
from hostmesh_controller.mesh import Mesh
from hostmesh_controller.model.objects import ApiObject

REVIEWS = "reviews.default.svc.cluster.local"


def service(name: str, port: int, protocol: str = "http") -> ApiObject:
    ports = [{"name": protocol, "port": port, "targetPort": 8080}]
    return obj("Service", name, {"selector": {"app": name}, "ports": ports})


def workload(name: str, address: str, **labels: str) -> ApiObject:
    return obj("WorkloadEntry", f"{name}-{address}", {"address": address, "labels": {"app": name, **labels}})


def objects() -> list[ApiObject]:
    return [
        obj("Host", "caller", {"addresses": ["10.0.0.1"]}),
        obj("Host", "server", {"addresses": ["10.0.0.2"]}),
        service("reviews", 9080),
        service("db", 5432, "tcp"),
        workload("reviews", "10.0.0.2", version="v1"),
        workload("db", "10.0.9.9"),
    ]


def the_mesh(*more: ApiObject) -> Mesh:
    return mesh_of([*objects(), *more])


def told(mesh: Mesh, target: str, **options: Any) -> Story:
    return explain(mesh, "caller", parse_call(target, **options))


def stages(story: Story) -> dict[str, str]:
    return {each.stage: each.what for each in story.steps}


def test_a_request_is_followed_from_its_name_to_the_chain_that_takes_it() -> None:
    story = told(the_mesh(), "http://reviews:9080/1")
    found = stages(story)
    assert story.reached
    assert found["name"].startswith(f"reviews is {REVIEWS}, 240.240.")
    assert found["capture"] == "redirected to Envoy, port 15001"
    assert found["listener"] == "0.0.0.0_9080"
    assert found["virtual host"] == "9080/reviews:9080"
    assert found["cluster"] == f"outbound|9080||{REVIEWS}"
    assert found["endpoint"] == "10.0.0.2:8080"
    assert found["inbound"] == "host server, virtualInbound, 0.0.0.0_8080|mtls"


def test_each_share_of_a_weighted_route_is_told_with_the_one_that_fails() -> None:
    subsets = [{"name": each, "labels": {"version": each}} for each in ("v1", "v2")]
    route = [
        {"destination": {"host": "reviews", "subset": "v1"}, "weight": 90},
        {"destination": {"host": "reviews", "subset": "v2"}, "weight": 10},
    ]
    rules = [
        obj("DestinationRule", "reviews", {"host": "reviews", "subsets": subsets}),
        obj("VirtualService", "reviews", {"hosts": ["reviews"], "http": [{"name": "canary", "route": route}]}),
    ]
    story = told(the_mesh(*rules), "http://reviews:9080/")
    assert stages(story)["route"] == "canary"
    assert story.reached
    assert f"outbound|9080|v1|{REVIEWS} (90%)" in story.verdict
    assert "10% fail" in story.verdict
    assert "it has no endpoint" in story.verdict


def test_the_header_that_a_route_asks_for_decides() -> None:
    http = [
        {"match": [{"headers": {"end-user": {"exact": "jason"}}}], "directResponse": {"status": 418}},
        {"route": [{"destination": {"host": "reviews"}}]},
    ]
    mesh = the_mesh(obj("VirtualService", "reviews", {"hosts": ["reviews"], "http": http}))
    assert told(mesh, "http://reviews:9080/", headers={"End-User": "jason"}).verdict == "Envoy answers 418 itself"
    assert "endpoint" in stages(told(mesh, "http://reviews:9080/"))


def test_what_is_outside_the_mesh_is_not_captured_and_says_why() -> None:
    story = told(the_mesh(), "https://93.184.216.34")
    assert stages(story)["capture"] == "not captured"
    assert story.reached
    assert "scope is mesh" in story.steps[-1].why


def test_a_name_that_the_mesh_does_not_know_needs_its_address() -> None:
    story = told(the_mesh(), "https://example.com")
    assert not story.reached
    assert "--address" in story.verdict
    assert told(the_mesh(), "https://example.com", address="93.184.216.34").reached


def test_ssh_is_never_captured() -> None:
    assert told(the_mesh(service("bastion", 22, "tcp")), "bastion:22").steps[-1].why == "SSH is never captured"


def test_raw_tcp_goes_by_its_destination_and_out_of_the_mesh_in_plaintext() -> None:
    story = told(the_mesh(), "db:5432")
    found = stages(story)
    assert found["listener"] == "virtualOutbound"
    assert found["filter chain"] == "mesh"
    assert found["cluster"].startswith("tcp|240.240.")
    assert "inbound" not in found
    assert story.steps[-1].details["mutual_tls"] is False


def test_a_host_header_of_nobody_is_answered_404() -> None:
    story = told(the_mesh(), "http://reviews:9080/", headers={"host": "nobody"})
    assert (story.reached, story.verdict) == (False, "Envoy answers 404")


def test_plaintext_to_a_strict_port_is_told_to_be_refused() -> None:
    strict = obj("PeerAuthentication", "strict", {"mtls": {"mode": "STRICT"}})
    plain = obj("DestinationRule", "plain", {"host": "reviews", "trafficPolicy": {"tls": {"mode": "DISABLE"}}})
    story = told(the_mesh(strict, plain), "http://reviews:9080/")
    assert not story.reached
    assert "no chain takes plaintext" in story.steps[-1].why
    assert "STRICT" in story.steps[-1].why


def test_a_host_whose_agent_has_not_joined_is_reached_without_its_proxy() -> None:
    runtime = {host: each for host, each in all_ready(objects()).items() if host != "server"}
    story = explain(mesh_of(objects(), runtime), "caller", parse_call("http://reviews:9080/"))
    assert story.reached
    assert "has not joined" in story.steps[-1].why


def test_the_port_of_a_gateway_is_envoys_own() -> None:
    server = {"port": {"number": 8080, "name": "http", "protocol": "HTTP"}, "hosts": ["*"]}
    gateway = obj("Gateway", "way-in", {"selector": {"app": "reviews"}, "servers": [server]})
    story = told(the_mesh(gateway), "http://reviews:9080/")
    assert stages(story)["inbound"] == "host server, 0.0.0.0_8080"
    assert story.steps[-1].why == "Envoy itself listens there, for Gateway default/way-in"


def test_a_host_that_is_not_there_is_an_error() -> None:
    with pytest.raises(UnknownHostError, match="'nobody'"):
        explain(the_mesh(), "nobody", parse_call("db:5432"))


@pytest.mark.parametrize(
    ("target", "wrong"),
    [
        ("gopher://a", "unknown scheme"),
        ("http://", "names no host"),
        ("db", "names no port"),
        ("db:99999", "between 1 and"),
    ],
)
def test_a_target_that_is_none_is_refused_with_what_to_write(target: str, wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        parse_call(target)
