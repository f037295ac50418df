"""Wasm plugins in real Envoys: a module on disk, as the agent leaves it, and what stands for one that is not there."""

from collections.abc import Iterator
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from golden.live import NEEDS_ROOT, LiveHost, Network, network, wait_until
from golden.objects import mesh_of, obj
from golden.programs import Programs, get, talk
from hostmesh_agent.wasm import want_of, with_file, without_module
from hostmesh_api.delta import Resource
from hostmesh_controller.mesh import Mesh, update
from hostmesh_controller.model.objects import ApiObject
from wasm.module import HEADER, MODULE, SHA256

WEB, DB, OUTSIDER = "10.9.0.1", "10.9.0.2", "10.9.0.9"
DB_VIP = "240.240.0.1"
THERE, MISSING, BROKEN = "file:///there.wasm", "file:///missing.wasm", "file:///broken.wasm"

pytestmark = NEEDS_ROOT


def plugin(name: str, url: str, port: int, app: str = "db", **more: Any) -> ApiObject:
    match = [{"mode": "SERVER" if app == "db" else "CLIENT", "ports": [{"number": port}]}]
    return obj("WasmPlugin", name, {"url": url, "match": match, "selector": {"matchLabels": {"app": app}}, **more})


PORTS = {"plain": 80, "closed": 81, "open": 82, "client": 83, "broken": 84}
OBJECTS = [
    obj("Host", "web", {"addresses": [WEB]}),
    obj("Host", "db", {"addresses": [DB]}),
    obj("WorkloadEntry", "web", {"address": WEB, "labels": {"app": "web"}, "serviceAccount": "web"}),
    obj("WorkloadEntry", "db", {"address": DB, "labels": {"app": "db"}, "serviceAccount": "db"}),
    obj(
        "Service",
        "db",
        {
            "selector": {"app": "db"},
            "ports": [
                *({"name": f"http-{name}", "port": port, "targetPort": 8000 + port} for name, port in PORTS.items()),
                {"name": "tcp", "port": 3306},
                {"name": "tcp-closed", "port": 3307},
            ],
        },
    ),
    plugin("there", THERE, 8080, pluginConfig={"a": 1, "b": [1.5, True]}, phase="AUTHN", priority=5),
    plugin("closed", MISSING, 8081),
    plugin("open", MISSING, 8082, failStrategy="FAIL_OPEN"),
    plugin("client", THERE, 83, app="web"),
    plugin("tcp", THERE, 3306, type="NETWORK"),
    plugin("tcp-closed", MISSING, 3307, type="NETWORK"),
]


@pytest.fixture(scope="module")
def mesh() -> Mesh:
    return mesh_of(OBJECTS)


@pytest.fixture(scope="module")
def net(mesh: Mesh) -> Iterator[Network]:
    programs = Programs()
    with TemporaryDirectory(prefix="hostmesh-wasm-") as found:
        directory = Path(found)
        directory.chmod(0o755)
        (directory / "there.wasm").write_bytes(MODULE)

        def as_an_agent(resource: Resource) -> Resource:
            want = want_of(resource)
            if want is None or want.url == MISSING:
                return without_module(resource)
            return with_file(resource, str(directory / Path(want.url).name), SHA256)

        with network(mesh, OUTSIDER, extension=as_an_agent) as running:
            with running.hosts["db"]():
                for port in PORTS.values():
                    programs.http(8000 + port, "db")
                programs.echo(3306)
                programs.echo(3307)
            yield running
        programs.close()


def test_a_plugin_of_the_called_adds_its_header_with_its_configuration(web: LiveHost) -> None:
    assert get(DB_VIP, PORTS["plain"], "db").got[HEADER] == '{"a":1,"b":[1.5,true]}'


def test_a_plugin_of_the_caller_runs_on_the_port_of_the_service(web: LiveHost) -> None:
    assert get(DB_VIP, PORTS["client"], "db").got[HEADER] == "yes"


def test_without_its_module_a_plugin_refuses_or_passes_as_it_says(web: LiveHost) -> None:
    assert get(DB_VIP, PORTS["closed"], "db").status == 403
    answer = get(DB_VIP, PORTS["open"], "db")
    assert (answer.status, HEADER in answer.got) == (200, False)


def test_a_network_plugin_stands_before_connections(net: Network, web: LiveHost) -> None:
    assert talk(DB_VIP, 3306, b"hello") == b"hello"
    assert talk(DB_VIP, 3307, b"hello") == b""
    assert net.hosts["db"].stat(r".*wasm-default-deny\.rbac\.denied") > 0


def test_an_edited_plugin_changes_what_runs_and_no_listener(net: Network, web: LiveHost, mesh: Mesh) -> None:
    db = net.hosts["db"]
    pushed = len(db.ads.pushed)
    changed = plugin("there", THERE, 8080, pluginConfig={"a": 2}, phase="AUTHN", priority=5)
    after, touched = update(mesh, {changed.key: changed}, mesh.vips, mesh.runtime)
    assert touched.hosts == {"db"}
    db.take(after)
    wait_until("it has its new configuration", lambda: get(DB_VIP, 80, "db").got.get(HEADER) == '{"a":2}')
    assert {type_url.rpartition(".")[2] for type_url, _, _ in db.ads.pushed[pushed:]} == {"TypedExtensionConfig"}


def test_a_plugin_that_comes_later_is_in_place_before_it_counts(net: Network, web: LiveHost, mesh: Mesh) -> None:
    new = plugin("late", THERE, 8084, pluginConfig={"late": True})
    after, _ = update(mesh, {new.key: new}, mesh.vips, mesh.runtime)
    net.hosts["db"].take(after)

    def runs() -> bool:
        # A second after the change, which is all the time that it has here, Envoy cuts what goes on in the old chain.
        with suppress(HTTPException):
            return get(DB_VIP, 84, "db").got.get(HEADER) == '{"late":true}'
        return False

    wait_until("it runs", runs)
