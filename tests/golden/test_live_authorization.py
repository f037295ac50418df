"""AuthorizationPolicy with real Envoys: who may do what, over mutual TLS, in plaintext, and without HTTP."""

import random
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Final

import pytest
from envoy.config.listener.v3.listener_pb2 import Listener

from golden.live import NEEDS_ROOT, LiveHost, Network, network, wait_until
from golden.objects import mesh_of, obj
from golden.programs import Programs
from golden.strangers import Stranger
from hostmesh_controller.explain.arriving import chain_at, judged, listener_at
from hostmesh_controller.explain.attempt import Attempt, Request
from hostmesh_controller.explain.authorization import Verdict
from hostmesh_controller.explain.permission import Wish, may
from hostmesh_controller.explain.sight import Sight
from hostmesh_controller.model.objects import ApiObject

SERVER, EDGE, OUTSIDER = "10.9.1.3", "10.9.1.4", "10.9.1.9"
LOG_FORMAT: Final = (
    "%RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% %DYNAMIC_METADATA(envoy.common:access_log_hint)% "
    "%DYNAMIC_METADATA(envoy.filters.http.rbac)%"
)
WEB, JOB, BANK = (f"spiffe://cluster.local/ns/{each}" for each in ("default/sa/web", "prod/sa/job", "bank/sa/web"))
OLD_WEB = "spiffe://old.example.org/ns/default/sa/web"

pytestmark = NEEDS_ROOT

Rule = dict[str, Any]


def answer(connection: socket.socket) -> None:
    """Answer every request alike; none has a body."""
    with connection, suppress(OSError):
        unread = b""
        while data := connection.recv(65536):
            unread += data
            while b"\r\n\r\n" in unread:
                unread = unread.partition(b"\r\n\r\n")[2]
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nhere")


def serve(listener: socket.socket) -> None:
    with suppress(OSError):
        while True:
            threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()


class Ports:
    """A workload for each of some sets of policies, all on one host: an HTTP port and a TCP port each."""

    def __init__(self, policies: Mapping[str, list[tuple[Rule, dict[str, str]]]]) -> None:
        self.http = {name: 8100 + index for index, name in enumerate(policies)}
        self.tcp = {name: 8300 + index for index, name in enumerate(policies)}
        self.objects: list[ApiObject] = []
        for name, specs in policies.items():
            labels = {"app": name}
            ports = {"http": self.http[name], "tcp": self.tcp[name]}
            self.objects.append(obj("WorkloadEntry", name, {"address": SERVER, "labels": labels, "ports": ports}))
            for index, (spec, annotations) in enumerate(specs):
                selected = {"selector": {"matchLabels": labels}, **spec}
                self.objects.append(obj("AuthorizationPolicy", f"{name}-{index}", selected, annotations=annotations))

    @contextmanager
    def served(self) -> Iterator[None]:
        programs = Programs()
        for port in self.tcp.values():
            programs.echo(port)
        listeners = [socket.create_server(("0.0.0.0", port)) for port in self.http.values()]
        for each in listeners:
            threading.Thread(target=serve, args=(each,), daemon=True).start()
        try:
            yield
        finally:
            programs.close()
            for each in listeners:
                each.shutdown(socket.SHUT_RDWR)
                each.close()


def source(**fields: Any) -> Rule:
    return {"from": [{"source": fields}]}


def operation(**fields: Any) -> Rule:
    return {"to": [{"operation": fields}]}


def when(key: str, *values: str, **more: Any) -> Rule:
    return {"when": [{"key": key, "values": list(values), **more}]}


def policy(action: str, *rules: Rule, dry_run: bool = False) -> tuple[Rule, dict[str, str]]:
    return {"action": action, "rules": list(rules)}, {"istio.io/dry-run": "true"} if dry_run else {}


def allow(*rules: Rule) -> tuple[Rule, dict[str, str]]:
    return policy("ALLOW", *rules)


def deny(*rules: Rule) -> tuple[Rule, dict[str, str]]:
    return policy("DENY", *rules)


POLICIES: Final[dict[str, list[tuple[Rule, dict[str, str]]]]] = {
    "nobody": [({}, {})],
    "everybody": [allow({})],
    "principals": [allow(source(principals=["cluster.local/ns/default/sa/web"]))],
    "anyone-known": [allow(source(principals=["*"]))],
    "namespaces": [allow(source(namespaces=["prod"]))],
    "accounts": [allow(source(serviceAccounts=["web", "prod/job"]))],
    "not-principals": [deny(source(notPrincipals=["cluster.local/ns/default/sa/web"]))],
    "paths": [allow(operation(paths=["/exact", "/prefix*", "*.js", "/one/{*}/end", "/any/{**}", "/k=v/{*}"]))],
    "not-admin": [allow({}), deny(operation(paths=["/admin*"]))],
    "methods": [allow(operation(methods=["GET", "P*"]))],
    "hosts": [allow(operation(hosts=["Shop.example.com", "*.example.org", "shop.*"]))],
    "headers": [allow(when("request.headers[X-Role]", "admin", "team-*", notValues=["team-x"]))],
    "addresses": [allow(source(ipBlocks=[f"{OUTSIDER}/32"], remoteIpBlocks=["192.0.2.0/24"]))],
    "names": [allow(when("connection.sni", "*.example.com"))],
    "http-and-port": [deny(operation(paths=["/admin"], ports=["1"]))],
    "deny-http-only": [deny(operation(paths=["/admin"]))],
    "deny-before-allow": [allow(source(namespaces=["default"])), deny(source(principals=["*/sa/web"]))],
    "tokens": [allow(source(requestPrincipals=["*"]))],
    "audited": [policy("AUDIT", operation(paths=["/audited"])), allow({})],
    "tried": [
        policy("ALLOW", operation(paths=["/ok"]), dry_run=True),
        policy("DENY", operation(paths=["/bad"]), dry_run=True),
    ],
    "unguarded": [],
}


def random_policies(seed: int) -> Iterator[tuple[Rule, dict[str, str]]]:
    """Yield one to three policies that use a bit of everything."""
    dice = random.Random(seed)

    def some(values: list[str]) -> list[str]:
        return dice.sample(values, dice.randint(1, 2))

    principals = ["cluster.local/ns/default/sa/web", "*/sa/job", "cluster.local/ns/prod/*", "*", "old.example.org/*"]
    fields: dict[str, list[str]] = {
        "principals": principals,
        "notPrincipals": principals,
        "requestPrincipals": ["*", "issuer/subject"],
        "notRequestPrincipals": ["*", "issuer/*"],
        "namespaces": ["default", "pro*", "*ank", "d*t"],
        "notNamespaces": ["default", "prod"],
        "trustDomains": ["cluster.local", "old.example.org", "*.org"],
        "notTrustDomains": ["cluster.local", "cluster*"],
        "ipBlocks": [OUTSIDER, "10.9.0.0/16", "192.0.2.0/24"],
        "notIpBlocks": ["10.9.1.8/30", "::/0"],
        "remoteIpBlocks": [OUTSIDER, "192.0.2.0/24", "198.51.100.7"],
        "notRemoteIpBlocks": ["192.0.2.9", "0.0.0.0/1"],
    }
    accounts = {"serviceAccounts": ["web", "prod/job"], "notServiceAccounts": ["web", "bank/web"]}
    asked = {
        "hosts": ["shop.example.com", "*.COM", "shop*", "*"],
        "notHosts": ["shop.example.com", "*.org"],
        "methods": ["GET", "P*", "*T", "*"],
        "notMethods": ["POST", "D*"],
        "paths": ["/admin", "/a*", "*n", "/{*}", "/a/{*}/c", "/a/{**}", "/{**}/n", "*"],
        "notPaths": ["/admin", "/a/*", "/{*}/n"],
        "ports": ["8100", "8300", "8000"],
        "notPorts": ["8101", "8301"],
    }
    keys = {
        "request.headers[X-Role]": ["admin", "team-*", "*-x", "*"],
        "source.ip": [OUTSIDER, "10.0.0.0/30"],
        "remote.ip": ["192.0.2.0/24", OUTSIDER],
        "source.namespace": ["default", "p*d"],
        "source.principal": principals,
        "source.serviceAccount": ["web", "prod/job"],
        "source.trustDomain": ["cluster.local", "old*"],
        "request.auth.claims[group][name]": ["a", "*"],
        "request.auth.audiences": ["a"],
        "destination.ip": [SERVER, "10.9.1.0/31"],
        "destination.port": ["8102", "8302"],
        "connection.sni": ["a.example.com", "*.com", "*"],
    }

    def pairs(chosen: dict[str, list[str]], most: int) -> dict[str, list[str]]:
        names = dice.sample(sorted(chosen), dice.randint(1, most))
        return {name: some(chosen[name]) for name in names}

    def rule() -> Rule:
        made: Rule = {}
        if dice.random() < 0.6:
            sources = [pairs(accounts if dice.random() < 0.15 else fields, 2) for _ in range(dice.randint(1, 2))]
            made["from"] = [{"source": each} for each in sources]
        if dice.random() < 0.6:
            made["to"] = [{"operation": pairs(asked, 3)} for _ in range(dice.randint(1, 2))]
        if dice.random() < 0.35:
            key = dice.choice(sorted(keys))
            made["when"] = [{"key": key, dice.choice(["values", "notValues"]): some(keys[key])}]
        return made

    for _ in range(dice.randint(1, 3)):
        action = dice.choice(["ALLOW", "ALLOW", "DENY", "AUDIT"])
        rules = [rule() for _ in range(dice.randint(1, 3))]
        yield policy(action, *rules, dry_run=action != "AUDIT" and dice.random() < 0.1)


RANDOM: Final = 40
SEED: Final = 20261128


def chance(index: int) -> str:
    return f"chance-{index}"


def at_the_edge() -> Iterator[ApiObject]:
    """Yield a gateway with a policy of its own, in front of what everybody may call."""
    labels = {"app": "edge"}
    servers = [
        {"hosts": ["*"], "port": {"number": number, "name": f"{protocol.lower()}-{number}", "protocol": protocol}}
        for number, protocol in ((8080, "HTTP"), (9000, "TCP"), (9001, "TCP"))
    ]
    ports = [{"name": "http", "port": 80, "targetPort": 8101}, {"name": "tcp", "port": 81, "targetPort": 8301}]
    http, tcp = ({"destination": {"host": "everybody", "port": {"number": number}}} for number in (80, 81))
    yield obj("Host", "edge", {"addresses": [EDGE]})
    yield obj("WorkloadEntry", "edge", {"address": EDGE, "labels": labels, "serviceAccount": "edge"})
    yield obj("Service", "everybody", {"selector": {"app": "everybody"}, "ports": ports})
    yield obj("Gateway", "edge", {"selector": labels, "servers": servers})
    yield obj(
        "VirtualService",
        "edge",
        {"hosts": ["*"], "gateways": ["edge"], "http": [{"route": [http]}], "tcp": [{"route": [tcp]}]},
    )
    remote, direct = source(remoteIpBlocks=["192.0.2.0/24"]), source(ipBlocks=["10.9.1.0/24"])
    rules = [remote | operation(paths=["/remote"]), direct | operation(paths=["/direct"]), operation(ports=["9000"])]
    yield obj("AuthorizationPolicy", "edge", {"selector": {"matchLabels": labels}, "rules": rules})


ALL: Final = Ports(POLICIES | {chance(index): [*random_policies(SEED + index)] for index in range(RANDOM)})
OBJECTS: Final = [
    obj("Host", "server", {"addresses": [SERVER]}),
    obj(
        "MeshConfig",
        "default",
        {
            "trustDomainAliases": ["old.example.org"],
            "defaultConfig": {"gatewayTopology": {"numTrustedProxies": 1}},
            "accessLogFile": "/dev/stdout",
            "accessLogFormat": LOG_FORMAT,
        },
    ),
    *ALL.objects,
    *at_the_edge(),
]
MESH: Final = mesh_of(OBJECTS)


@pytest.fixture(scope="module")
def net() -> Iterator[Network]:
    with network(MESH, OUTSIDER) as found, ExitStack() as stack:
        with found.hosts["server"]():
            stack.enter_context(ALL.served())
        with found.outsider():
            yield found


@pytest.fixture(scope="module")
def stranger(net: Network) -> Stranger:
    return Stranger(net.authority)


def status(stranger: Stranger, name: str, path: str = "/", **more: Any) -> int:
    return stranger.ask(SERVER, ALL.http[name], path, **more)[0]


def echoed(stranger: Stranger, name: str, **more: Any) -> bool:
    return stranger.is_echoed(SERVER, ALL.tcp[name], **more)


@pytest.mark.parametrize(
    ("name", "asked", "expected"),
    [
        ("nobody", {"identity": WEB}, 403),
        ("everybody", {}, 200),
        ("unguarded", {}, 200),
        ("principals", {"identity": WEB}, 200),
        ("principals", {"identity": OLD_WEB}, 200),
        ("principals", {"identity": JOB}, 403),
        ("principals", {"identity": BANK}, 403),
        ("principals", {}, 403),
        ("anyone-known", {"identity": JOB}, 200),
        ("anyone-known", {}, 403),
        ("namespaces", {"identity": JOB}, 200),
        ("namespaces", {"identity": WEB}, 403),
        ("accounts", {"identity": WEB}, 200),
        ("accounts", {"identity": JOB}, 200),
        ("accounts", {"identity": BANK}, 403),
        ("not-principals", {"identity": WEB}, 200),
        ("not-principals", {"identity": OLD_WEB}, 200),
        ("not-principals", {}, 403),
        ("paths", {"path": "/exact"}, 200),
        ("paths", {"path": "/exact?query"}, 200),
        ("paths", {"path": "/Exact"}, 403),
        ("paths", {"path": "/prefixed/x"}, 200),
        ("paths", {"path": "/a/b.js"}, 200),
        ("paths", {"path": "/one/two/end"}, 200),
        ("paths", {"path": "/one/two/three/end"}, 403),
        ("paths", {"path": "/any/two/three"}, 200),
        ("paths", {"path": "/k=v/a=b"}, 200),
        ("paths", {"path": "/one/a=b/end"}, 200),
        ("not-admin", {"path": "/other"}, 200),
        ("not-admin", {"path": "/admin/x"}, 403),
        ("not-admin", {"path": "/x/../admin"}, 403),
        ("not-admin", {"path": "/%61dmin"}, 403),
        ("not-admin", {"path": "/x/..;y/admin"}, 403),
        ("methods", {"method": "GET"}, 200),
        ("methods", {"method": "PUT"}, 200),
        ("methods", {"method": "DELETE"}, 403),
        ("hosts", {"host": "shop.EXAMPLE.com"}, 200),
        ("hosts", {"host": "a.example.org"}, 200),
        ("hosts", {"host": "shop.internal:80"}, 200),
        ("hosts", {"host": "bad.internal"}, 403),
        ("headers", {"headers": {"x-role": "admin"}}, 200),
        ("headers", {"headers": {"x-role": "team-a"}}, 200),
        ("headers", {"headers": {"x-role": "team-x"}}, 403),
        ("headers", {}, 403),
        ("addresses", {"headers": {"x-forwarded-for": "192.0.2.7"}}, 200),
        ("addresses", {"headers": {"x-forwarded-for": "192.0.2.7, 203.0.113.1"}}, 403),
        ("addresses", {}, 403),
        ("names", {"identity": WEB, "server_name": "a.example.com"}, 200),
        ("names", {"identity": WEB, "server_name": "a.example.org"}, 403),
        ("names", {}, 403),
        ("deny-before-allow", {"identity": WEB}, 403),
        ("tokens", {"identity": WEB}, 403),
        ("audited", {"path": "/audited"}, 200),
        ("tried", {"path": "/bad"}, 200),
    ],
)
def test_a_request_is_allowed_or_denied_as_in_istio(
    stranger: Stranger, name: str, asked: dict[str, Any], expected: int
) -> None:
    assert status(stranger, name, **asked) == expected


@pytest.mark.parametrize(
    ("name", "asked", "expected"),
    [
        ("nobody", {"identity": WEB}, False),
        ("everybody", {}, True),
        ("principals", {"identity": WEB}, True),
        ("principals", {"identity": OLD_WEB}, True),
        ("principals", {"identity": JOB}, False),
        ("principals", {}, False),
        ("not-principals", {}, False),
        # An ALLOW rule that asks for HTTP allows no bare connection; a DENY rule denies them all.
        ("paths", {"identity": WEB}, False),
        ("deny-http-only", {"identity": WEB}, False),
        # Unless it names another port.
        ("http-and-port", {"identity": WEB}, True),
        ("names", {"identity": WEB, "server_name": "a.example.com"}, True),
        ("names", {"identity": WEB, "server_name": "a.example.org"}, False),
        ("deny-before-allow", {"identity": WEB}, False),
        ("tokens", {"identity": WEB}, False),
    ],
)
def test_a_connection_without_http_is_allowed_or_denied_as_in_istio(
    stranger: Stranger, name: str, asked: dict[str, Any], expected: bool
) -> None:
    assert echoed(stranger, name, **asked) is expected


@pytest.mark.parametrize(
    ("path", "forwarded", "expected"),
    [
        ("/direct", "", 200),
        ("/remote", "", 403),
        # One proxy before the gateway is believed: what it says is the last entry.
        ("/remote", "192.0.2.7", 200),
        ("/remote", "192.0.2.7, 203.0.113.1", 403),
        ("/remote", "203.0.113.1, 192.0.2.7", 200),
        ("/other", "192.0.2.7", 403),
    ],
)
def test_a_gateway_knows_callers_by_what_trusted_proxies_say(
    stranger: Stranger, path: str, forwarded: str, expected: int
) -> None:
    headers = {"x-forwarded-for": forwarded} if forwarded else {}
    assert stranger.ask(EDGE, 8080, path, host="shop.test", headers=headers)[0] == expected
    wish = Wish(path=path, headers=headers, source=OUTSIDER)
    (answer,) = may(MESH, OUTSIDER, f"http://{EDGE}:8080", wish)
    assert answer.verdict.allowed is (expected == 200)


def test_a_gateway_judges_connections_too(stranger: Stranger) -> None:
    assert stranger.is_echoed(EDGE, 9000)
    assert not stranger.is_echoed(EDGE, 9001)


def log_of(host: LiveHost) -> str:
    return (host.directory / "envoy.log").read_text()


def test_a_refusal_names_its_policy_to_operators_and_not_to_the_caller(net: Network, stranger: Stranger) -> None:
    server = net.hosts["server"]
    answer = stranger.ask(SERVER, ALL.http["not-admin"], "/admin")
    assert answer == (403, "RBAC: access denied")
    assert not echoed(stranger, "deny-before-allow", identity=WEB)
    assert status(stranger, "nobody") == 403
    for each in (
        "rbac_access_denied_matched_policy[ns[default]-policy[not-admin-1]-rule[0]]",
        "rbac_access_denied_matched_policy[ns[default]-policy[deny-before-allow-1]-rule[0]]",
        "rbac_access_denied_matched_policy[none]",
    ):
        wait_until(f"{each} is in the log", lambda each=each: each in log_of(server))  # type: ignore[misc] # mypy takes no default of a lambda


def test_what_is_audited_is_marked_for_the_access_log(net: Network, stranger: Stranger) -> None:
    assert status(stranger, "audited", "/audited") == 200
    wait_until("the mark is in the log", lambda: "via_upstream - true" in log_of(net.hosts["server"]))
    assert status(stranger, "audited", "/other") == 200
    wait_until("its absence is in the log", lambda: "via_upstream - false" in log_of(net.hosts["server"]))


def test_a_policy_that_is_only_tried_tells_what_it_would_do(net: Network, stranger: Stranger) -> None:
    server, port = net.hosts["server"], ALL.http["tried"]

    def shadows(what: str) -> int:
        return server.stat(rf"http\.inbound_0\.0\.0\.0_{port}\.rbac\.istio_dry_run_{what}")

    before = {each: shadows(each) for each in ("allow_.shadow_denied", "deny_.shadow_denied", "allow_.shadow_allowed")}
    assert status(stranger, "tried", "/bad") == 200
    assert status(stranger, "tried", "/ok") == 200
    assert shadows("allow_.shadow_denied") == before["allow_.shadow_denied"] + 1
    assert shadows("allow_.shadow_allowed") == before["allow_.shadow_allowed"] + 1
    assert shadows("deny_.shadow_denied") == before["deny_.shadow_denied"] + 1
    wait_until(
        "the policy is in the log",
        lambda: (
            '"istio_dry_run_deny_shadow_effective_policy_id":"ns[default]-policy[tried-1]-rule[0]"' in log_of(server)
        ),
    )


IDENTITIES: Final = (WEB, JOB, BANK, OLD_WEB, None)
PATHS: Final = (
    "/",
    "/admin",
    "/a/b/c",
    "/a/x",
    "/ADMIN",
    "/x/n",
    "/a/../admin",
    "//admin",
    "/%61dmin?q=1",
    "/a//n",
    "/a=b",
    "/x/..;y/admin",
    "/a/%2e%2e;y/n",
    "/a/.;/x",
)
HOSTS: Final = ("shop.example.com", "SHOP.example.org", "server:80")
HEADERS: Final[tuple[dict[str, str], ...]] = (
    {},
    {"x-role": "admin"},
    {"X-Role": "team-x"},
    {"x-forwarded-for": "192.0.2.9"},
    {"x-forwarded-for": "192.0.2.1, 198.51.100.7", "x-role": ""},
)
NAMES: Final = ("", "a.example.com", "b.org")


@pytest.fixture(scope="module")
def listener() -> Listener:
    found = listener_at(Sight(MESH, "server"), SERVER, ALL.http["nobody"])
    assert found is not None
    return found


def expected(listener: Listener, attempt: Attempt) -> Verdict:
    chain = chain_at(listener, attempt)
    assert chain is not None
    return judged(chain, attempt)


def test_random_requests_meet_what_the_evaluation_of_their_policies_says(
    stranger: Stranger, listener: Listener
) -> None:
    dice, both = random.Random(SEED), set()
    for index in range(RANDOM):
        port = ALL.http[chance(index)]
        for _ in range(25):
            identity, path, host = dice.choice(IDENTITIES), dice.choice(PATHS), dice.choice(HOSTS)
            method, headers = dice.choice(("GET", "POST", "DELETE", "PUT")), dice.choice(HEADERS)
            name = dice.choice(NAMES) if identity is not None else ""
            lower = {key.lower(): value for key, value in headers.items()}
            request = Request(method, host, path, lower)
            attempt = Attempt(SERVER, port, identity, OUTSIDER, server_name=name, request=request)
            verdict = expected(listener, attempt)
            found, _ = stranger.ask(
                SERVER, port, path, identity=identity, method=method, host=host, headers=headers, server_name=name
            )
            assert found == (200 if verdict.allowed else 403), (index, attempt, verdict)
            both.add(found)
    assert both == {200, 403}


def test_random_connections_meet_what_the_evaluation_of_their_policies_says(
    stranger: Stranger, listener: Listener
) -> None:
    dice, both = random.Random(SEED), set()
    for index in range(RANDOM):
        port = ALL.tcp[chance(index)]
        for identity in IDENTITIES:
            name = dice.choice(NAMES) if identity is not None else ""
            attempt = Attempt(SERVER, port, identity, OUTSIDER, server_name=name)
            verdict = expected(listener, attempt)
            found = stranger.is_echoed(SERVER, port, identity=identity, server_name=name)
            assert found is verdict.allowed, (index, attempt, verdict)
            both.add(found)
    assert both == {True, False}
