"""Questions over TCP, as messages; what a table's names have in common; what is wrong with name resolution."""

import struct
from dataclasses import replace
from pathlib import Path

import pytest
from envoy.config.listener.v3.listener_components_pb2 import ListenerFilter
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.extensions.filters.udp.dns_filter.v3.dns_filter_pb2 import DnsFilterConfig
from envoy.service.discovery.v3.discovery_pb2 import Resource as ResourceMessage
from hypothesis import given
from hypothesis import strategies as st

from hostmesh_agent import dns_message
from hostmesh_agent.config import AgentConfig, DnsSettings
from hostmesh_agent.dns import Resolver
from hostmesh_agent.doctor import look_names
from hostmesh_agent.mesh_names import AcceptedNames, MeshNames, of_listener, of_names
from hostmesh_agent.name_findings import NameFacts, findings
from hostmesh_agent.resolved import domains
from hostmesh_api.delta import Resource
from hostmesh_controller.xds.encoding import any_of

NAME = b"\x07rEvIeWs\x07DEFAULT\x03svc\x07cluster\x05local\x00"
ASKED = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x01" + NAME + b"\x00\x01\x00\x01"
OPTIONS = b"\x00\x00\x29\x04\xd0\x00\x00\x00\x00\x00\x00"


def answer_to(message: bytes, flags: int = 0x8180) -> bytes:
    record = message[12 : 12 + len(NAME)] + struct.pack(">HHIH", 1, 1, 30, 4) + bytes([240, 240, 0, 9])
    return message[:2] + struct.pack(">HHHHH", flags, 1, 1, 0, 0) + message[12 : 12 + len(NAME) + 4] + record


def test_envoy_is_asked_in_lower_case_and_answers_in_the_case_of_the_question() -> None:
    asked = dns_message.question(ASKED + OPTIONS)
    assert asked is not None
    assert asked.for_envoy() == (ASKED + OPTIONS).replace(NAME, NAME.lower())
    assert asked.answered(answer_to(asked.for_envoy())) == answer_to(ASKED)


@pytest.mark.parametrize(
    "answer",
    [b"", ASKED, b"\x12\x35" + answer_to(ASKED)[2:], answer_to(ASKED, 0x8380)],
    ids=["nothing", "no answer", "to another", "cut off"],
)
def test_what_does_not_answer_the_question_is_none(answer: bytes) -> None:
    asked = dns_message.question(ASKED)
    assert asked is not None
    assert asked.answered(answer) is None


@pytest.mark.parametrize(
    "message",
    [
        b"",
        ASKED[:12],
        ASKED[:-3],
        answer_to(ASKED),
        ASKED[:4] + b"\0\2" + ASKED[6:],
        ASKED[:12] + b"\xc0\x0c\0\1\0\1",
        ASKED + bytes(5000),
    ],
    ids=["nothing", "no question", "half a question", "an answer", "two questions", "a pointer", "too long"],
)
def test_what_no_resolver_asks_is_no_question(message: bytes) -> None:
    assert dns_message.question(message) is None


@given(st.binary(max_size=600))
def test_any_bytes_are_a_question_or_none(message: bytes) -> None:
    asked = dns_message.question(message)
    assert asked is None or len(asked.for_envoy()) == len(message)


TABLE = ("reviews.default.svc.cluster.local", "reviews.default.svc", "reviews.default", "reviews")
OTHER = ("db.prod.svc.cluster.local", "db.prod.svc", "db.prod")


def test_the_domain_and_the_namespace_are_read_from_the_names_of_services() -> None:
    names = of_names([*TABLE, *OTHER, "api.example.com", "own.cluster.local"])
    assert names == MeshNames("cluster.local", "default", ("api.example.com",))
    assert names.search() == ("default.svc.cluster.local", "svc.cluster.local", "cluster.local")
    assert of_names(OTHER).search() == ("svc.cluster.local", "cluster.local")


def test_without_services_there_is_no_domain() -> None:
    names = of_names(["api.example.com", "a.b.svc.example.com"])
    assert names == MeshNames("", "", ("a.b.svc.example.com", "api.example.com"))
    assert names.search() == ()


def test_systemd_resolved_is_told_the_mesh_s_domain_and_what_the_owner_adds_and_no_host_by_itself() -> None:
    names = of_names([*TABLE, "example.com"])
    assert domains(names, ()) == names.search()
    assert domains(names, ("example.org",)) == (*names.search(), "~example.org")


def test_names_are_read_again_only_where_envoy_has_another_listener() -> None:
    body = b"not a listener"
    assert AcceptedNames(lambda: None).now() == MeshNames()
    assert AcceptedNames(lambda: Resource("dns", "1", body)).now() == MeshNames()
    with pytest.raises(ValueError, match=r"\w"):
        of_listener(b"\xff")


FACTS = NameFacts(
    wanted=True,
    in_place=True,
    detail="",
    envoy_answers=True,
    front_answers=True,
    resolv_conf="nameserver 127.240.240.53\nnameserver 10.0.0.2\n",
    names_resolved=False,
    nsswitch="hosts: files dns\n",
    resolved=False,
)


def codes(facts: NameFacts) -> list[str]:
    return [each.code for each in findings(facts)]


def test_where_all_is_well_or_nothing_is_wanted_nothing_is_found() -> None:
    assert codes(FACTS) == []
    assert codes(replace(FACTS, wanted=False, in_place=False, envoy_answers=False)) == []


@pytest.mark.parametrize(
    ("facts", "code"),
    [
        (replace(FACTS, in_place=False, detail="the file is immutable"), "names-not-in-place"),
        (replace(FACTS, envoy_answers=False), "names-not-answered"),
        (replace(FACTS, detail="asks others about api.example.com"), "names-partly"),
        (replace(FACTS, front_answers=False), "names-not-over-tcp"),
        (replace(FACTS, resolv_conf=str(FACTS.resolv_conf) + "nameserver 1.1.1.1\n" * 2), "resolvers-out-of-reach"),
        (replace(FACTS, resolv_conf="nameserver 10.0.0.2\nnameserver 127.240.240.53\n"), "mesh-not-first"),
        (replace(FACTS, changed_behind="../run/resolv.conf"), "resolvers-changed"),
        (replace(FACTS, names_resolved=True, resolved=False), "resolved-absent"),
        (replace(FACTS, nsswitch="hosts: files resolve dns\n"), "nss-resolve-without-resolved"),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_each_thing_that_is_wrong_has_a_code_and_a_cure(facts: NameFacts, code: str) -> None:
    (found,) = findings(facts)
    assert found.code == code
    assert found.what
    assert found.cure


def test_other_resolvers_where_the_link_led_are_found_while_no_agent_follows_them(tmp_path: Path) -> None:
    path, target = tmp_path / "resolv.conf", tmp_path / "of-the-network"
    target.write_text("nameserver 127.0.0.8\n")
    path.symlink_to("of-the-network")
    config = AgentConfig(state_dir=tmp_path / "state", dns=DnsSettings(resolv_conf=path))
    Resolver(path, config.state_dir).apply()
    assert "resolvers-changed" not in codes(look_names.look(config, {})[0])
    target.write_text("nameserver 127.0.0.9\n")
    facts, _ = look_names.look(config, {})
    assert "resolvers-changed" in codes(facts)
    assert "names-not-in-place" not in codes(facts)
    running = {"dns": {"in_place": True, "detail": ""}, "capture": {"state": "on"}}
    assert "resolvers-changed" not in codes(look_names.look(config, running)[0])


def test_the_names_are_those_of_the_listener_as_it_came_over_ads() -> None:
    filter_config = DnsFilterConfig()
    for name in (*TABLE, "API.example.com"):
        filter_config.server_config.inline_dns_table.virtual_domains.add(name=name)
    listener = Listener(name="dns", listener_filters=[ListenerFilter(name="dns", typed_config=any_of(filter_config))])
    body = ResourceMessage(name="dns", version="1", resource=any_of(listener)).SerializeToString()
    wanted = MeshNames("cluster.local", "default", ("api.example.com",))
    assert of_listener(body) == wanted
    assert AcceptedNames(lambda: Resource("dns", "1", body)).now() == wanted
