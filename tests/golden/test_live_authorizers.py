"""CUSTOM policies with real Envoys: an external authorizer is asked about what they mean, and about nothing else."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Final

import grpc
import pytest
from envoy.config.core.v3.base_pb2 import HeaderValue, HeaderValueOption
from envoy.service.auth.v3.external_auth_pb2 import CheckRequest, CheckResponse, DeniedHttpResponse, OkHttpResponse
from envoy.service.auth.v3.external_auth_pb2_grpc import AuthorizationServicer, add_AuthorizationServicer_to_server
from envoy.type.v3.http_status_pb2 import StatusCode
from google.rpc.status_pb2 import Status

from golden.live import NEEDS_ROOT, Network, network, wait_until
from golden.objects import mesh_of, obj
from golden.programs import Handler, Programs, Server, get, talk
from hostmesh_controller.model.objects import ApiObject

CALLER, OUTSIDER = "10.9.1.1", "10.9.1.9"
SERVERS: Final = {
    name: f"10.9.1.{index}" for index, name in enumerate(("grpc", "http", "gone", "nowhere", "two", "open"), start=2)
}
JUDGE: Final = "judge.default.svc.cluster.local"
OK, DENIED = 0, 7

pytestmark = NEEDS_ROOT


def server(name: str, address: str, *providers: str) -> list[ApiObject]:
    ports = [{"name": "http", "port": 80, "targetPort": 8080}, {"name": "tcp", "port": 3306}]
    labels = {"app": name}
    rules = [
        {"to": [{"operation": {"paths": ["/judged*"], "ports": ["8080"]}}]},
        {"to": [{"operation": {"ports": ["3306"]}}]},
    ]
    asked = {"selector": {"matchLabels": labels}, "action": "CUSTOM", "rules": rules}
    return [
        obj("Host", name, {"addresses": [address]}),
        obj("WorkloadEntry", name, {"address": address, "labels": labels}),
        obj("Service", name, {"selector": labels, "ports": ports}),
        *(
            obj("AuthorizationPolicy", f"{name}-{each}", {**asked, "provider": {"name": each}})
            for each in (providers or (name,))
        ),
    ]


PROVIDERS: Final[list[dict[str, Any]]] = [
    {"name": "grpc", "envoyExtAuthzGrpc": {"service": JUDGE, "port": 9191, "timeout": "5s"}},
    {
        "name": "http",
        "envoyExtAuthzHttp": {
            "service": f"default/{JUDGE}",
            "port": 8000,
            "timeout": "5s",
            "pathPrefix": "/check",
            "includeRequestHeadersInCheck": ["x-user"],
            "includeAdditionalHeadersInCheck": {"x-mesh": "hostmesh"},
            "headersToUpstreamOnAllow": ["x-judged"],
            "headersToDownstreamOnDeny": ["x-why"],
        },
    },
    # Nothing listens there.
    {"name": "gone", "envoyExtAuthzGrpc": {"service": JUDGE, "port": 9999, "timeout": "1s", "statusOnError": "503"}},
    {"name": "open", "envoyExtAuthzGrpc": {"service": JUDGE, "port": 9999, "timeout": "1s", "failOpen": True}},
    # There is no such service: what the policy means is refused, whatever failOpen says.
    {"name": "nowhere", "envoyExtAuthzGrpc": {"service": "nobody.example.com", "port": 9191, "failOpen": True}},
]
OBJECTS: Final = [
    obj("MeshConfig", "default", {"extensionProviders": PROVIDERS, "accessLogFile": "/dev/stdout"}),
    obj("Host", "caller", {"addresses": [CALLER]}),
    obj("WorkloadEntry", "caller", {"address": CALLER, "labels": {"app": "caller"}, "serviceAccount": "caller"}),
    obj("WorkloadEntry", "judge", {"address": OUTSIDER, "labels": {"app": "judge"}}),
    obj(
        "Service",
        "judge",
        {
            "selector": {"app": "judge"},
            "ports": [
                {"name": "grpc", "port": 9191},
                {"name": "http", "port": 8000},
                {"name": "grpc-none", "port": 9999},
            ],
        },
    ),
    *(
        each
        for name, address in SERVERS.items()
        for each in server(name, address, *(("grpc", "http") if name == "two" else ()))
    ),
]


class Judge(AuthorizationServicer):
    """Allows requests whose x-user is ann, and connections to whatever it is told; it remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[CheckRequest] = []
        self.takes_connections = True

    def Check(self, request: CheckRequest, context: grpc.ServicerContext) -> CheckResponse:  # noqa: N802 - the protocol's name
        self.asked.append(request)
        seen = request.attributes.request.http
        if not seen.path:
            return CheckResponse(status=Status(code=OK if self.takes_connections else DENIED))
        if seen.headers.get("x-user") == "ann":
            option = HeaderValueOption(header=HeaderValue(key="x-judged", value="yes"))
            return CheckResponse(status=Status(code=OK), ok_response=OkHttpResponse(headers=[option]))
        denied = DeniedHttpResponse(body="not you")
        denied.status.code = StatusCode.Unauthorized
        return CheckResponse(status=Status(code=DENIED), denied_response=denied)


class HttpJudge(Handler):
    """The same by HTTP."""

    asked: Final[list[tuple[str, dict[str, str]]]] = []

    def do_GET(self) -> None:  # noqa: N802 - the library's name
        self.asked.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
        allowed = self.headers.get("x-user") == "ann"
        self.send_response(200 if allowed else 403)
        self.send_header("x-judged" if allowed else "x-why", "because")
        self.send_header("Content-Length", "0")
        self.end_headers()


GRPC_JUDGE: Final = Judge()


@contextmanager
def judging() -> Iterator[None]:
    found = grpc.server(ThreadPoolExecutor(4))
    add_AuthorizationServicer_to_server(GRPC_JUDGE, found)
    assert found.add_insecure_port(f"{OUTSIDER}:9191") == 9191
    found.start()
    by_http = Server(8000, HttpJudge, address=OUTSIDER)
    try:
        yield
    finally:
        by_http.close()
        found.stop(grace=None).wait(10)


MESH: Final = mesh_of(OBJECTS)


@pytest.fixture(scope="module")
def net() -> Iterator[Network]:
    programs = Programs()
    with network(MESH, OUTSIDER) as found:
        for name in SERVERS:
            with found.hosts[name]():
                programs.http(8080, name)
                programs.echo(3306)
        with found.outsider(), judging():
            yield found
        programs.close()


@pytest.fixture(autouse=True)
def _on_the_caller(net: Network) -> Iterator[None]:
    with net.hosts["caller"]():
        yield


def vip(name: str) -> str:
    return f"240.240.0.{MESH.vips[f'{name}.default.svc.cluster.local']}"


def ask(name: str, path: str, user: str = "") -> Any:
    return get(vip(name), 80, name, path, {"x-user": user} if user else {})


@pytest.mark.parametrize("name", ["grpc", "http"])
def test_the_authorizer_decides_about_what_the_policy_means_and_about_nothing_else(name: str) -> None:
    before = len(GRPC_JUDGE.asked) + len(HttpJudge.asked)
    assert ask(name, "/other").status == 200
    assert len(GRPC_JUDGE.asked) + len(HttpJudge.asked) == before
    assert ask(name, "/judged").status in {401, 403}
    allowed = ask(name, "/judged", "ann")
    assert allowed.status == 200
    assert "x-judged" in allowed.got
    assert len(GRPC_JUDGE.asked) + len(HttpJudge.asked) == before + 2


def test_an_authorizer_that_speaks_http_is_shown_and_may_say_what_is_listed() -> None:
    answer = ask("http", "/judged/x", "bob")
    assert (answer.status, answer.headers["x-why"]) == (403, "because")
    path, headers = HttpJudge.asked[-1]
    assert path == "/check/judged/x"
    assert (headers["x-user"], headers["x-mesh"]) == ("bob", "hostmesh")


def test_an_authorizer_that_speaks_grpc_is_told_who_asks_and_answers_in_its_own_words() -> None:
    answer = ask("grpc", "/judged", "bob")
    assert (answer.status, answer.body) == (401, "not you")
    assert GRPC_JUDGE.asked[-1].attributes.source.principal == "spiffe://cluster.local/ns/default/sa/caller"


def test_connections_are_judged_by_grpc_alone() -> None:
    assert talk(vip("grpc"), 3306, b"x") == b"x"
    GRPC_JUDGE.takes_connections = False
    try:
        assert talk(vip("grpc"), 3306, b"x") == b""
    finally:
        GRPC_JUDGE.takes_connections = True
    # As in Istio: an authorizer that speaks HTTP has no word on them.
    assert talk(vip("http"), 3306, b"x") == b"x"


@pytest.mark.parametrize(("name", "status"), [("gone", 503), ("nowhere", 403), ("two", 403)])
def test_what_nobody_can_judge_is_refused(name: str, status: int) -> None:
    assert ask(name, "/judged", "ann").status == status
    assert talk(vip(name), 3306, b"x") == b""
    assert ask(name, "/other").status == 200


def test_istio_s_own_log_format_names_the_policy_that_refused(net: Network) -> None:
    assert ask("nowhere", "/judged").status == 403
    assert talk(vip("nowhere"), 3306, b"x") == b""
    named = "rbac_access_denied_matched_policy[istio-ext-authz-nowhere-ns[default]-policy[nowhere-nowhere]-rule"
    for each in (f'HTTP/1.1" 403 - {named}[0]', f"0 - - {named}[1]"):
        log = net.hosts["nowhere"].directory / "envoy.log"
        wait_until(f"{each} is in the log", lambda each=each, log=log: each in log.read_text())  # type: ignore[misc] # mypy takes no default of a lambda


def test_an_authorizer_that_does_not_answer_lets_through_if_the_provider_says_so() -> None:
    assert ask("open", "/judged").status == 200


def test_an_authorizer_is_asked_once_its_service_is_there(net: Network) -> None:
    entry = {
        "hosts": ["nobody.example.com"],
        "ports": [{"number": 9191, "name": "grpc", "protocol": "GRPC"}],
        "resolution": "STATIC",
        "location": "MESH_EXTERNAL",
        "endpoints": [{"address": OUTSIDER}],
    }
    net.hosts["nowhere"].take(mesh_of([*OBJECTS, obj("ServiceEntry", "nobody", entry)]))
    wait_until("the authorizer is asked", lambda: ask("nowhere", "/judged", "ann").status == 200)
    assert ask("nowhere", "/judged", "bob").status == 401
