"""Wasm modules on a host: fetched from files and over HTTP, verified, kept, and what Envoy gets without them."""

import asyncio
import gzip
import hashlib
import io
import json
import os
import stat
import sys
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from envoy.config.core.v3.extension_pb2 import TypedExtensionConfig
from envoy.service.discovery.v3.discovery_pb2 import Resource as ResourceMessage

from golden.objects import obj
from hostmesh_agent import modules, wasm_fetch
from hostmesh_agent.modules import Modules
from hostmesh_agent.wasm import want_of, with_file, without_module
from hostmesh_api.delta import Resource
from hostmesh_api.dialling import DialPolicy, parse_blocks
from hostmesh_controller.envoy_values import parsed
from hostmesh_controller.xds.encoding import resource as encoded
from hostmesh_controller.xds.messages import as_json
from hostmesh_controller.xds.wasm import configuration
from http_servers import serving
from wasm.module import MODULE, SHA256

WAIT_S = 20


def plugin(url: str, name: str = "mine", **spec: Any) -> Resource:
    """Return what the controller sends of a WasmPlugin."""
    made = configuration(obj("WasmPlugin", name, {"url": url, **spec}))
    return encoded(made.name, made)


def told(resource: Resource | None) -> dict[str, Any]:
    """Return the configuration that Envoy gets."""
    assert resource is not None
    config = TypedExtensionConfig()
    assert ResourceMessage.FromString(resource.body).resource.Unpack(config)
    found: dict[str, Any] = as_json(config)["typedConfig"]
    return found


def code(resource: Resource | None) -> dict[str, Any]:
    found: dict[str, Any] = told(resource)["config"]["vmConfig"]["code"]
    return found


def on_disk(directory: Path) -> dict[str, int]:
    """Return names and modes; that of the directory itself is `.`."""
    found = {each.name: each for each in directory.iterdir()} | {".": directory}
    return {name: stat.S_IMODE(each.stat().st_mode) for name, each in found.items()}


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True)
    path.write_text(text)


def remove(path: Path) -> None:
    path.unlink()


class Web(BaseHTTPRequestHandler):
    """Answers each path from `pages`: a status and a body, one after the other; the last one stays."""

    pages: dict[str, list[tuple[int, bytes]]]
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        answers = self.pages.get(self.path, [(404, b"")])
        status, body = answers.pop(0) if len(answers) > 1 else answers[0]
        self.send_response(status)
        if 300 <= status < 400:
            self.send_header("Location", body.decode())
            body = b""
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def web(**pages: list[tuple[int, bytes]]) -> Iterator[tuple[str, list[str]]]:
    handler = type("Handler", (Web,), {"pages": {f"/{name}": list(each) for name, each in pages.items()}, "asked": []})
    with serving(handler) as port:
        yield f"http://127.0.0.1:{port}", handler.asked  # type: ignore[attr-defined] # made above


LOCAL = DialPolicy(parse_blocks(["127.0.0.0/8"]))


class Host:
    """One life of an agent, which may fetch from its host itself."""

    def __init__(self, directory: Path) -> None:
        self.decided: asyncio.Queue[str] = asyncio.Queue()
        self.modules = Modules(directory, os.getgid(), self.decided.put_nowait, LOCAL)

    async def get(self, resource: Resource) -> Resource:
        """Return the first thing that Envoy gets."""
        found = self.modules.given(resource)
        if found is None:
            await self.again(resource)
            found = self.modules.given(resource)
        assert found is not None
        return found

    async def again(self, resource: Resource) -> None:
        async with asyncio.timeout(WAIT_S):
            assert await self.decided.get() == resource.name


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "envoy" / "wasm"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "module.wasm"
    path.write_bytes(MODULE)
    return path


async def test_a_file_is_copied_to_where_envoy_reads_it_and_only_root_writes(directory: Path, file: Path) -> None:
    host = Host(directory)
    given = await host.get(plugin(f"file://{file}", sha256=SHA256))
    assert code(given) == {"local": {"filename": f"wasm/{SHA256}.wasm"}}
    assert on_disk(directory) == {f"{SHA256}.wasm": 0o640, "index.json": 0o644, ".": 0o750}
    assert (directory / f"{SHA256}.wasm").read_bytes() == MODULE
    host.modules.close()


async def test_variables_for_the_agent_are_not_told_to_the_module(directory: Path, file: Path) -> None:
    env = [{"name": "MINE", "value": "x"}, {"name": "HOME", "valueFrom": "HOST"}]
    resource = plugin(f"file://{file}", imagePullPolicy="Always", vmConfig={"env": env})
    host = Host(directory)
    variables = told(await host.get(resource))["config"]["vmConfig"]["environmentVariables"]
    assert variables == {"keyValues": {"MINE": "x"}, "hostEnvKeys": ["HOME"]}
    host.modules.close()


async def test_a_module_comes_over_http_by_redirects_and_after_errors_that_pass(directory: Path) -> None:
    with web(a=[(302, b"/b")], b=[(503, b""), (500, b""), (200, MODULE)]) as (url, asked):
        host = Host(directory)
        given = await host.get(plugin(f"{url}/a", sha256=SHA256))
        assert code(given)["local"]["filename"] == f"wasm/{SHA256}.wasm"
        assert asked == ["/a", "/b"] * 3
        host.modules.close()


async def test_a_start_without_a_network_finds_the_module_on_disk(directory: Path, tmp_path: Path, file: Path) -> None:
    with web(a=[(200, MODULE)]) as (url, _):
        resources = [
            plugin(f"{url}/a", "with", sha256=SHA256),
            plugin(f"{url}/a", "without"),
            plugin(f"{url}/a", "always", imagePullPolicy="Always"),
            plugin(f"file://{file}", "file"),
        ]
        first = Host(directory)
        given = [await first.get(each) for each in resources]
        first.modules.close()
    remove(file)
    second = Host(directory)
    assert [await second.get(each) for each in resources] == given
    second.modules.close()


async def test_if_not_present_asks_once_and_always_asks_for_each_change_of_the_plugin(directory: Path) -> None:
    newer = MODULE + b"\0\1\0"
    with web(a=[(200, MODULE), (200, newer)]) as (url, asked):
        host = Host(directory)
        await host.get(plugin(f"{url}/a"))
        await host.get(plugin(f"{url}/a", pluginName="changed"))
        assert len(asked) == 1
        given = await host.get(plugin(f"{url}/a", imagePullPolicy="Always"))
        assert len(asked) == 2
        assert code(given)["local"]["filename"] == f"wasm/{hashlib.sha256(newer).hexdigest()}.wasm"
        host.modules.close()


@pytest.mark.parametrize(
    ("page", "sha256", "reason"),
    [
        ([(200, MODULE)], "0" * 64, f"its sha256 is {SHA256}, wanted is {'0' * 64}"),
        ([(200, b"not a module")], "", "it is not a Wasm module"),
        ([(404, b"")], SHA256, "HTTP status 404 Not Found"),
        ([(302, b"file:///etc/passwd")], "", "HTTP status 302"),
    ],
)
async def test_what_is_not_the_module_is_refused_and_the_reason_told(
    directory: Path, page: list[tuple[int, bytes]], sha256: str, reason: str
) -> None:
    with web(a=page) as (url, _):
        host = Host(directory)
        resource = plugin(f"{url}/a", sha256=sha256)
        assert told(await host.get(resource)) == {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC",
            "rules": {},
            "rulesStatPrefix": "wasm-default-deny",
        }
        [state] = host.modules.states()
        assert (state.there, reason in state.error) == (False, True)
        assert on_disk(directory) == {".": 0o750}
        host.modules.close()


async def test_fail_open_lets_everything_pass_and_a_network_plugin_has_its_own_stand_in(directory: Path) -> None:
    host = Host(directory)
    given = told(await host.get(plugin("file:///none", failStrategy="FAIL_OPEN")))
    assert given == {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC",
        "rulesStatPrefix": "wasm-default-allow",
    }
    given = told(await host.get(plugin("file:///none", "other", type="NETWORK", failStrategy="FAIL_RELOAD")))
    assert given == {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC",
        "rules": {},
        "statPrefix": "wasm-default-deny",
    }
    host.modules.close()


async def test_a_module_that_comes_late_takes_the_place_of_what_stood_for_it(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modules, "LATER_S", (0.05,))
    host, path = Host(directory), tmp_path / "late.wasm"
    resource = plugin(f"file://{path}")
    before = await host.get(resource)
    assert "rules" in told(before)
    path.write_bytes(MODULE)
    await host.again(resource)
    after = host.modules.given(resource)
    assert code(after) == {"local": {"filename": f"wasm/{SHA256}.wasm"}}
    assert after is not None
    # Envoy and the agent must see that it is another one, though the controller has sent nothing new.
    assert after.version != before.version
    host.modules.close()


async def test_a_module_that_the_disk_has_spoilt_is_fetched_again(directory: Path, file: Path) -> None:
    first = Host(directory)
    resource = plugin(f"file://{file}", sha256=SHA256)
    await first.get(resource)
    first.modules.close()
    (directory / f"{SHA256}.wasm").write_bytes(MODULE[:100])
    second = Host(directory)
    await second.get(resource)
    assert (directory / f"{SHA256}.wasm").read_bytes() == MODULE
    second.modules.close()


async def test_an_index_that_cannot_be_read_is_made_anew(directory: Path, file: Path) -> None:
    write(directory / "index.json", "{")
    host = Host(directory)
    await host.get(plugin(f"file://{file}"))
    assert list(json.loads((directory / "index.json").read_text())) == [f"file://{file}"]
    host.modules.close()


async def test_what_envoy_refuses_is_replaced_until_there_is_another(directory: Path, file: Path) -> None:
    host = Host(directory)
    resource = plugin(f"file://{file}", failStrategy="FAIL_OPEN")
    await host.get(resource)
    host.modules.refused(resource, "Unable to create Wasm plugin")
    await host.again(resource)
    assert told(host.modules.given(resource))["rulesStatPrefix"] == "wasm-default-allow"
    [state] = host.modules.states()
    assert (state.there, state.error) == (False, "Envoy refuses it: Unable to create Wasm plugin")
    assert "local" in code(await host.get(plugin(f"file://{file}", pluginName="another")))
    host.modules.close()


async def test_a_plugin_of_an_envoy_filter_may_be_a_free_form_struct(directory: Path, file: Path) -> None:
    remote = {"http_uri": {"uri": f"file://{file}", "cluster": "_", "timeout": "5s"}, "sha256": SHA256}
    struct = {
        "@type": "type.googleapis.com/udpa.type.v1.TypedStruct",
        "type_url": "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm",
        "value": {"config": {"root_id": "mine", "vm_config": {"code": {"remote": remote}}}},
    }
    message = parsed("EXTENSION_CONFIG", {"name": "mine", "typed_config": struct}).message
    host = Host(directory)
    config = told(await host.get(encoded("mine", message)))["config"]
    assert (config["rootId"], config["vmConfig"]["code"]["local"]["filename"]) == ("mine", f"wasm/{SHA256}.wasm")
    host.modules.close()


async def test_a_disk_that_takes_nothing_leaves_nothing_open(directory: Path, file: Path) -> None:
    write(directory.parent / "wasm", "a file where the directory should be")
    host = Host(directory)
    assert told(await host.get(plugin(f"file://{file}")))["rulesStatPrefix"] == "wasm-default-deny"
    [state] = host.modules.states()
    assert "wasm" in state.error
    host.modules.close()


async def test_few_modules_are_fetched_at_the_same_time(directory: Path) -> None:
    leave, counting, full = threading.Semaphore(0), threading.Lock(), asyncio.Event()
    loop, now_and_most = asyncio.get_running_loop(), [0, 0]

    class Slow(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with counting:
                now_and_most[0] += 1
                now_and_most[1] = max(now_and_most)
            if now_and_most[0] == modules.AT_ONCE:
                loop.call_soon_threadsafe(full.set)
            leave.acquire(timeout=WAIT_S)
            with counting:
                now_and_most[0] -= 1
            self.send_response(404)
            self.end_headers()

    count = modules.AT_ONCE + 3
    with serving(Slow) as port:
        host = Host(directory)
        for number in range(count):
            url = f"http://127.0.0.1:{port}/{number}"
            assert host.modules.given(plugin(url, f"p{number}")) is None
        async with asyncio.timeout(WAIT_S):
            await full.wait()
            # Others would be there by now: these begin after them and end.
            for _ in range(3):
                command = (
                    sys.executable,
                    "-I",
                    "-S",
                    wasm_fetch.__file__,
                    str(directory),
                    "0",
                    "",
                    "file:///none",
                    "",
                    "",
                )
                done = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.DEVNULL)
                assert await done.wait() == wasm_fetch.EXIT_NEVER
            leave.release(count)
            for _ in range(count):
                await host.decided.get()
        host.modules.close()
    assert now_and_most == [0, modules.AT_ONCE]


def tar(data: bytes) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        member = tarfile.TarInfo("../../plugin.wasm")
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))
    return made.getvalue()


def test_a_module_may_be_in_gzip_and_tar() -> None:
    for boxed in (MODULE, gzip.compress(MODULE), tar(MODULE), gzip.compress(tar(MODULE))):
        assert wasm_fetch.unboxed(boxed) == MODULE
    for broken in (gzip.compress(MODULE)[:50], b"\x1f\x8b\x08" + bytes(7) + b"\xff" * 100):
        with pytest.raises(wasm_fetch.NeverError, match="unpacked"):
            wasm_fetch.unboxed(broken)


def test_nothing_is_told_of_a_file_that_is_no_module() -> None:
    for wanted in ("", "0" * 64):
        with pytest.raises(wasm_fetch.NeverError, match=r"^it is not a Wasm module$"):
            wasm_fetch.checked(b"root:secret:1:0", wanted)


def test_what_is_too_large_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wasm_fetch, "MAX_BYTES", 1 << 20)
    with pytest.raises(wasm_fetch.NeverError, match="larger than 1 MiB"):
        wasm_fetch.unboxed(gzip.compress(bytes(2 << 20)))


@pytest.mark.parametrize(
    "address",
    [
        *("169.254.169.254", "fe80::1%eth0", "fd00:ec2::254", "fd20:ce::254", "100.100.100.200", "168.63.129.16"),
        *("::ffff:169.254.169.254", "::ffff:100.100.100.200", "64:ff9b::169.254.169.254", "2002:a9fe:a9fe::"),
        *("127.0.0.1", "::1", "0.0.0.0", "::", "::ffff:127.0.0.1", "224.0.0.1"),
    ],
)
def test_no_configuration_makes_the_agent_ask_what_answers_its_host_alone(address: str) -> None:
    assert not wasm_fetch.Rules(*DialPolicy().as_arguments()).allow(address)


def test_the_process_judges_addresses_as_everybody_does() -> None:
    policy = DialPolicy(parse_blocks(["127.0.0.0/8", "169.254.7.0/24"]))
    rules = wasm_fetch.Rules(*policy.as_arguments())
    for address in ("127.0.0.1", "::ffff:127.0.0.1", "169.254.7.1", "169.254.8.1", "10.0.0.1", "::1", "2606::1"):
        assert rules.allow(address) == (not policy.refusal(address)), address


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "[::ffff:127.0.0.1]"])
async def test_a_module_is_not_fetched_from_this_host_unless_its_owner_allows_it(directory: Path, host: str) -> None:
    with web(a=[(200, MODULE)]) as (url, asked):
        there = plugin(f"{url.replace('127.0.0.1', host)}/a")
        decided: asyncio.Queue[str] = asyncio.Queue()
        careful = Modules(directory, os.getgid(), decided.put_nowait)
        assert careful.given(there) is None
        async with asyncio.timeout(WAIT_S):
            await decided.get()
        [state] = careful.states()
        assert "that is for the host alone; wasm.allow_cidrs in agent.toml can allow it" in state.error
        assert (state.there, asked) == (False, [])
        careful.close()


async def test_a_redirect_to_this_host_is_refused(directory: Path) -> None:
    with (
        web(b=[(200, MODULE)]) as (inside, asked),
        web(a=[(302, f"{inside.replace('127.0.0.1', '127.0.0.2')}/b".encode())]) as (url, _),
    ):
        decided: asyncio.Queue[str] = asyncio.Queue()
        only = DialPolicy(parse_blocks(["127.0.0.1/32"]))
        careful = Modules(directory, os.getgid(), decided.put_nowait, only)
        assert careful.given(plugin(f"{url}/a")) is None
        async with asyncio.timeout(WAIT_S):
            await decided.get()
        assert "127.0.0.2: that is for the host alone" in careful.states()[0].error
        assert asked == []
        careful.close()


def test_what_names_no_address_is_left_as_it_is() -> None:
    resource = plugin("file:///x")
    local = with_file(resource, "wasm/x.wasm", "x")
    assert want_of(local) is None
    assert with_file(local, "other", "y") is local
    assert without_module(local) is local


def test_agent_and_process_mean_the_same_by_an_exit_code() -> None:
    assert (modules._EXIT_NEVER, modules._EXIT_LATER) == (wasm_fetch.EXIT_NEVER, wasm_fetch.EXIT_LATER)
