"""PeerAuthentication with a real Envoy: workloads of one host have one port on different addresses, and modes apart."""

import ssl
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

import pytest

from golden.live import NEEDS_ROOT, Network, network
from golden.objects import mesh_of, obj
from golden.programs import Programs
from golden.strangers import Stranger

OUTSIDER, CALLER = "10.9.1.9", "spiffe://cluster.local/ns/default/sa/web"
ADDRESSES: Final = {"strict": "10.9.1.3", "permissive": "10.9.1.4", "disable": "10.9.1.5", "by-default": "10.9.1.6"}
OBJECTS: Final = [
    obj("Host", "server", {"addresses": list(ADDRESSES.values())}),
    *(
        obj("WorkloadEntry", name, {"address": address, "labels": {"app": name}, "ports": {"http": 8080, "tcp": 3306}})
        for name, address in ADDRESSES.items()
    ),
    *(
        obj("PeerAuthentication", name, {"selector": {"matchLabels": {"app": name}}, "mtls": {"mode": name.upper()}})
        for name in ("strict", "permissive", "disable")
    ),
]

pytestmark = NEEDS_ROOT


@pytest.fixture(scope="module")
def stranger() -> Iterator[Stranger]:
    programs = Programs()
    with network(mesh_of(OBJECTS), OUTSIDER) as net:
        _serve(net, programs)
        with net.outsider():
            yield Stranger(net.authority)
        programs.close()


def _serve(net: Network, programs: Programs) -> None:
    with net.hosts["server"]():
        programs.http(8080, "server")
        programs.echo(3306)


@pytest.mark.parametrize(
    ("name", "mutual_tls", "plaintext"),
    [("strict", True, False), ("permissive", True, True), ("disable", False, True), ("by-default", True, True)],
)
def test_each_workload_demands_what_its_own_policy_says(
    stranger: Stranger, name: str, mutual_tls: bool, plaintext: bool
) -> None:
    for identity, expected in ((CALLER, mutual_tls), (None, plaintext)):
        status = 0
        with suppress(ConnectionError, ssl.SSLError):
            status = stranger.ask(ADDRESSES[name], 8080, identity=identity)[0]
        assert (status == 200) is expected, identity
        assert stranger.is_echoed(ADDRESSES[name], 3306, identity=identity) is expected, identity
