from pathlib import Path

import pytest

from hostmesh_controller.lab import host as hosts
from hostmesh_controller.lab.components import Component
from hostmesh_controller.lab.controller import config_text
from hostmesh_controller.lab.demo.snapshot import Snapshot, difference
from hostmesh_controller.lab.errors import LabError
from hostmesh_controller.lab.layout import HostFacts, LabFacts, Layout
from hostmesh_controller.lab.space import environment


@pytest.mark.parametrize("text", ["controller", "agent/web", "envoy/web", "host/web"])
def test_a_component_is_named_as_it_is_shown(text: str) -> None:
    assert str(Component.parse(text)) == text


@pytest.mark.parametrize("text", ["", "agent", "agent/", "controller/x", "proxy/web", "host"])
def test_anything_else_is_refused_with_what_there_is(text: str) -> None:
    with pytest.raises(LabError, match="controller, agent/HOST, envoy/HOST, host/HOST"):
        Component.parse(text)


@pytest.mark.parametrize("name", ["Web", "web.", "-web", "web_1", "", "../x", "a" * 64])
def test_a_name_that_is_no_host_name_is_refused(name: str) -> None:
    with pytest.raises(LabError, match="not a host name"):
        hosts.check_names([name], set())


def test_a_host_that_is_named_twice_or_exists_is_refused() -> None:
    with pytest.raises(LabError, match="web is named twice"):
        hosts.check_names(["web", "web"], set())
    with pytest.raises(LabError, match="hostmesh lab start host/web"):
        hosts.check_names(["web"], {"web"})


def test_new_hosts_take_the_lowest_free_addresses() -> None:
    assert hosts.indices(3, {2, 4}) == [3, 5, 6]
    with pytest.raises(LabError, match="room for 252 hosts"):
        hosts.indices(1, set(range(2, 254)))


def test_a_hosts_link_has_its_name_as_far_as_that_fits() -> None:
    assert hosts.link_name(HostFacts("catalog2", 4)) == "v-catalog2"
    long = hosts.link_name(HostFacts("a-name-longer-than-that", 17))
    assert long == "v.17"
    assert len(hosts.link_name(HostFacts("x" * 13, 2))) == 15


def test_nothing_of_the_callers_environment_but_terminal_and_language_reaches_a_host() -> None:
    found = environment({"HTTP_PROXY": "http://p", "TERM": "xterm", "LC_ALL": "C", "PYTHONPATH": "/x", "PATH": "/y"})
    assert set(found) == {"PATH", "TERM", "LC_ALL"}
    assert found["PATH"].endswith(":/run/hostmesh-lab/bin")
    assert "/usr/bin" in found["PATH"]


def test_the_controllers_config_is_one_that_the_controller_reads() -> None:
    from hostmesh_controller.config import parse_config

    lab = LabFacts(id="x", subnet=5, user=False, ipv6=True, made=())
    layout = Layout(Path('/tmp/a "lab"'))
    config = parse_config(config_text(layout, lab), "controller.toml", ())
    assert config.addresses == ("10.201.5.1", "fd10:201:5::1")
    assert str(config.listen.admin) == "10.201.5.1:15014"
    assert config.listen.admin_socket == layout.admin_socket


def test_the_difference_of_two_snapshots_names_what_changed() -> None:
    before = Snapshot((("nft list ruleset", ""), ("/etc/hosts", "a\n")))
    after = Snapshot((("nft list ruleset", "table inet x"), ("/etc/hosts", "a\n")))
    assert difference(before, before) == ""
    assert difference(before, after) == "nft list ruleset, before:\n(nothing)\nafter:\ntable inet x"
