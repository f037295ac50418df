"""Two programs of one host call the same service under an identity each; neither gets the other's."""

import http.client
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress

import pytest

from golden.live import NEEDS_ROOT, LiveHost, network, vip
from golden.objects import all_ready, mesh_of, obj
from golden.programs import WAIT_S, Programs, talk
from hostmesh_agent.capture import Caller
from hostmesh_api.callers import caller_addresses
from hostmesh_api.wire import OUTBOUND_PORT, VIP6
from hostmesh_controller.mesh import Mesh
from netns.space import as_user

CALLERS, SERVER, OUTSIDER = "10.9.3.1", "10.9.3.2", "10.9.3.9"
A_UID, B_UID, OTHER_UID = 931, 932, 933
A, B = "spiffe://cluster.local/ns/default/sa/a", "spiffe://cluster.local/ns/default/sa/b"
NOBODYS = "spiffe://cluster.local/host/one"
UIDS = {A_UID: A, B_UID: B, OTHER_UID: NOBODYS}

pytestmark = NEEDS_ROOT


def mesh(*, per_workload: bool = True) -> Mesh:
    objects = [
        obj("Host", "one", {"addresses": [CALLERS, "fd09:3::1"], "perWorkloadIdentity": per_workload}),
        obj("Host", "two", {"addresses": [SERVER, "fd09:3::2"]}),
        obj("WorkloadEntry", "a", {"address": CALLERS, "serviceAccount": "a", "ports": {"x": 9001}}),
        obj("WorkloadEntry", "b", {"address": CALLERS, "serviceAccount": "b", "ports": {"x": 9002}}),
        obj("WorkloadEntry", "s", {"address": SERVER, "serviceAccount": "s", "labels": {"app": "s"}}),
        obj(
            "Service",
            "s",
            {
                "selector": {"app": "s"},
                "ports": [{"name": "http", "port": 80, "targetPort": 8080}, {"name": "tcp", "port": 9000}],
            },
        ),
        obj("Service", "only-a", {"selector": {"app": "s"}, "ports": [{"name": "tcp", "port": 9100}]}),
        obj(
            "AuthorizationPolicy",
            "a-alone",
            {
                "selector": {"matchLabels": {"app": "s"}},
                "action": "DENY",
                "rules": [
                    {
                        "from": [{"source": {"notPrincipals": ["cluster.local/ns/default/sa/a"]}}],
                        "to": [{"operation": {"ports": ["9100"]}}],
                    }
                ],
            },
        ),
    ]
    return mesh_of(objects, all_ready(objects, ipv6=True))


class Called:
    """Callers on one host, the service on another."""

    def __init__(self, host: LiveHost, seen: Mesh) -> None:
        self.host, self.mesh = host, seen

    def keep(self, uid: int, *, v6: bool = False) -> http.client.HTTPConnection:
        """Open a connection as a user, to be kept."""
        address = vip(self.mesh, "s", VIP6) if v6 else vip(self.mesh, "s")
        client = http.client.HTTPConnection(address, 80, timeout=WAIT_S)
        with self.host(), as_user(uid):
            client.connect()
        return client

    def tcp(self, uid: int, port: int) -> bytes:
        with self.host(), as_user(uid):
            return talk(vip(self.mesh, "only-a" if port == 9100 else "s"), port, b"hello")


def seen_as(client: http.client.HTTPConnection) -> str:
    """Ask on an open connection, and return as whom the service saw the caller."""
    client.request("GET", "/", headers={"Host": "s"})
    answer = client.getresponse()
    lines = dict(line.split(": ", 1) for line in answer.read().decode().splitlines())
    parts = dict(part.split("=", 1) for part in lines["x-forwarded-client-cert"].split(";"))
    return parts["URI"].strip('"')


@contextmanager
def running(seen: Mesh) -> Iterator[Called]:
    who = (Caller(A, uids=frozenset({A_UID})), Caller(B, uids=frozenset({B_UID})))
    with ExitStack() as stack:
        net = stack.enter_context(network(seen, OUTSIDER, callers=who))
        programs = Programs()
        stack.callback(programs.close)
        with net.hosts["two"]():
            programs.http(8080, "s")
            programs.echo(9000)
            programs.echo(9100)
        yield Called(net.hosts["one"], seen)


@pytest.fixture(scope="module")
def called() -> Iterator[Called]:
    with running(mesh()) as found:
        yield found


@pytest.mark.parametrize("v6", [False, True])
def test_callers_in_turn_over_kept_connections_are_seen_as_themselves(called: Called, v6: bool) -> None:
    with ExitStack() as stack:
        kept = [(uid, stack.enter_context(closing(called.keep(uid, v6=v6)))) for uid in (*UIDS, *UIDS)]
        found = [(UIDS[uid], seen_as(client)) for _ in range(5) for uid, client in kept]
        assert [seen for _, seen in found] == [expected for expected, _ in found]


def test_a_policy_on_tcp_sees_who_calls(called: Called) -> None:
    for _ in range(3):
        assert called.tcp(A_UID, 9100) == b"hello"
        assert called.tcp(B_UID, 9100) == b""
        assert called.tcp(OTHER_UID, 9100) == b""
        assert called.tcp(B_UID, 9000) == b"hello"


@pytest.mark.parametrize("version", [0, 1])
def test_who_dials_envoy_at_another_s_address_gets_nowhere(called: Called, version: int) -> None:
    address = str(caller_addresses(A)[version])
    with called.host(), as_user(B_UID):
        client = socket.create_connection((address, OUTBOUND_PORT), WAIT_S)
    with client:
        client.settimeout(WAIT_S)
        # Envoy ends the connection, read or unread: the kernel tells that as an end or as a reset.
        with suppress(ConnectionResetError):
            client.sendall(b"GET / HTTP/1.1\r\nHost: s.default.svc.cluster.local\r\n\r\n")
            assert client.recv(1024) == b""
