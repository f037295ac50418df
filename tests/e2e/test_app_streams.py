"""Long conversations run Istio's tasks for TCP, gRPC, WebSocket and TLS by server name on hosts."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from apps.certificates import Company
from apps.stage import App, Caller, app_on, lab_of, wait_for_port

VAULTS = ("gold.vault.example", "silver.vault.example")


@dataclass(frozen=True)
class Streams:
    """`client` calls from a host of the mesh; `ca` is whom TLS callers trust."""

    app: App
    client: Caller
    ca: str


@pytest.fixture(scope="module")
def streams(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Streams]:
    with lab_of("client", "one", "two", outside="outside") as lab:
        app = app_on(lab, "streams")
        company = Company(tmp_path_factory.mktemp("company"))
        _start(app, company)
        app.apply("streams")
        app.apply("subsets")
        lab.wait_for_workloads()
        with Caller(lab, "client") as client:
            yield Streams(app, client, str(company.ca))


def _start(app: App, company: Company) -> None:
    for host in ("one", "two"):
        app.program(host, "streams", "tcp", host, "9000")
        app.program(host, "streams", "grpc", host, "9090")
    app.program("one", "streams", "ws", "one", "9070")
    app.program("two", "streams", "tcp", "two", "9001")
    for name, port in zip(VAULTS, ("7443", "8443"), strict=True):
        app.program("outside", "service", name, "--port", port, "--tls", str(company.issue(name)))
    wait_for_port(app.lab, "one", 9000, 9070, 9090)
    wait_for_port(app.lab, "two", 9000, 9001, 9090)
    wait_for_port(app.lab, "outside", 7443, 8443)


@pytest.mark.parametrize(("service", "port"), [("lines", 9000), ("mystery", 9001)])
def test_a_server_that_speaks_first_is_heard_at_once(streams: Streams, service: str, port: int) -> None:
    """Also the first time, and where the port's name does not say what is spoken."""
    done = streams.client.ask("talk", host=service, port=port, lines=["a", "b"], times=20)
    for greeting, *answers in done["heard"]:
        server = greeting.removeprefix("220 ")
        assert server in {"one", "two"}, done
        assert answers == [f"{server} a", f"{server} b"]


def test_connections_shift_from_one_server_to_the_other(streams: Streams) -> None:
    def reached() -> dict[str, int]:
        servers: dict[str, int] = streams.client.ask("talk", host="lines", port=9000, times=200)["servers"]
        return servers

    for v1, v2, low, high in ((100, 0, 0, 0), (80, 20, 15, 70), (0, 100, 200, 200)):
        streams.app.apply("lines-weights", v1=str(v1), v2=str(v2))
        servers = reached()
        assert sum(servers.values()) == servers.get("220 one", 0) + servers.get("220 two", 0) == 200, servers
        assert low <= servers.get("220 two", 0) <= high, servers
    streams.app.delete("lines-weights", v1="0", v2="100")
    assert set(reached()) == {"220 one", "220 two"}


def test_calls_of_one_grpc_channel_are_spread_over_the_servers(streams: Streams) -> None:
    done = streams.client.ask("grpc", target="echo:9090", calls=40, messages=["a", "b", "c"])
    assert done["code"] == "OK", done
    assert set(done["servers"]) == {"one", "two"}
    assert min(done["servers"].values()) >= 8, done
    (server,) = {each.partition(" ")[0] for each in done["streamed"]}
    assert done["streamed"] == [f"{server} {text}" for text in "abc"]


def test_grpc_calls_are_routed_by_method_and_by_metadata(streams: Streams) -> None:
    with streams.app.configured("echo-routes", attempts="2"):
        done = streams.client.ask("grpc", target="echo:9090", calls=10, messages=["a", "b"])
        assert (done["servers"], done["streamed"]) == ({"one": 10}, ["two a", "two b"])
        done = streams.client.ask("grpc", target="echo:9090", calls=10, metadata={"canary": "yes"})
        assert done["servers"] == {"two": 10}


def test_a_grpc_call_that_fails_is_tried_again(streams: Streams) -> None:
    for attempts, word, code in (("1", "again", "OK"), ("2", "twice", "OK")):
        with streams.app.configured("echo-routes", attempts=attempts):
            assert streams.client.ask("grpc", target="echo:9090", method="Fail", say=word)["code"] == code


def test_a_grpc_call_is_aborted_in_its_own_words(streams: Streams) -> None:
    with streams.app.configured("echo-abort"):
        assert streams.client.ask("grpc", target="echo:9090")["code"] == "RESOURCE_EXHAUSTED"
    assert streams.client.ask("grpc", target="echo:9090")["code"] == "OK"


def test_a_websocket_is_opened_and_stays_open(streams: Streams) -> None:
    done = streams.client.ask("ws", url="http://chat:9070/room", texts=["hello", "world"])
    assert done["first"].startswith("HTTP/1.1 101"), done
    assert (done["accepted"], done["texts"]) == (True, ["one hello", "one world"])


def test_tls_is_routed_by_the_name_that_the_caller_says(streams: Streams) -> None:
    with streams.app.configured("secrets"):
        for name in VAULTS:
            reply = streams.client.get(f"https://{name}/", ca=streams.ca)
            assert (reply.status, reply.who) == (200, f"{name} v1"), reply
