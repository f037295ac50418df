"""Where SSH listens, from what the host's tools print; and whether it has IPv6."""

from pathlib import Path

import pytest

from hostmesh_agent.capture.floor import ipv6_enabled, ports_of_socket_units, ports_of_sshd_config, ssh_ports


def test_port_22_is_always_an_ssh_port() -> None:
    assert 22 in ssh_ports()


def test_ports_and_addresses_of_sshds_own_account_are_read() -> None:
    text = "port 22\nport 2200\naddressfamily any\nlistenaddress [::]:2022\nlistenaddress 0.0.0.0:22\nmaxsessions 10\n"
    assert ports_of_sshd_config(text) == {22, 2200, 2022}


def test_socket_units_are_read_and_unix_sockets_are_not_ports() -> None:
    text = "Listen=[::]:22 (Stream)\n\nListen=2222 (Stream)\nListen=/run/ssh.sock (Stream)\nListen=\n"
    assert ports_of_socket_units(text) == {22, 2222}


@pytest.mark.parametrize(
    ("switches", "on"),
    [
        ({"all": "0", "lo": "0"}, True),
        ({"all": "1", "lo": "0"}, False),
        ({"all": "0", "lo": "1"}, False),
        ({}, False),
    ],
)
def test_ipv6_is_on_only_if_no_switch_says_otherwise(tmp_path: Path, switches: dict[str, str], on: bool) -> None:
    for name, value in switches.items():
        directory = tmp_path / "sys/net/ipv6/conf" / name
        directory.mkdir(parents=True)
        (directory / "disable_ipv6").write_text(f"{value}\n")
    assert ipv6_enabled(tmp_path) is on
