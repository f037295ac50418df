"""GET of URLs that users name: nobody makes the controller ask what answers its machine alone."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from golden.certificates import Authority
from golden.programs import server_tls
from hostmesh_api.dialling import DialPolicy, parse_blocks
from hostmesh_controller.outbound_http import FetchError, OutboundHttp, Resolve, is_of_this_machine
from key_server import KeyServer, key_server

LOCAL = DialPolicy(parse_blocks(["127.0.0.0/8"]))
MAX = 1000


async def got(url: str, http: OutboundHttp | None = None, *, timeout_s: float = 5, etag: str = "") -> bytes | None:
    http = http or OutboundHttp(LOCAL)
    return (await http.get(url, timeout_s=timeout_s, max_bytes=MAX, etag=etag)).body


async def refusal(url: str, http: OutboundHttp | None = None, *, timeout_s: float = 5) -> str:
    with pytest.raises(FetchError) as caught:
        await got(url, http, timeout_s=timeout_s)
    return str(caught.value)


@pytest.fixture
def server() -> Iterator[KeyServer]:
    with key_server() as found:
        found.says("/keys", "secret of this machine")
        yield found


@pytest.mark.parametrize(
    ("address", "what"),
    [
        ("127.0.0.1", "loopback"),
        ("127.8.9.10", "loopback"),
        ("::1", "this machine"),
        ("0.0.0.0", "this machine"),
        ("::", "this machine"),
        ("0.1.2.3", "this machine"),
        ("169.254.169.254", "link-local"),
        ("fe80::1", "link-local"),
        ("224.0.0.1", "multicast"),
        ("ff02::1", "multicast"),
        ("255.255.255.255", "broadcast"),
        ("fd00:ec2::254", "metadata"),
        ("fd20:ce::254", "metadata"),
        ("100.100.100.200", "metadata"),
        ("168.63.129.16", "metadata"),
        ("192.0.0.192", "metadata"),
        ("::ffff:127.0.0.1", "loopback"),
        ("::ffff:169.254.169.254", "link-local"),
        ("::7f00:1", "loopback"),
        ("64:ff9b::a9fe:a9fe", "link-local"),
        ("2002:a9fe:a9fe::1", "link-local"),
        ("2002:7f00:1::", "loopback"),
        ("::ffff:168.63.129.16", "metadata"),
    ],
)
def test_what_answers_this_machine_alone_is_not_dialled(address: str, what: str) -> None:
    assert what in DialPolicy().refusal(address)


@pytest.mark.parametrize("address", ["10.0.0.1", "192.168.1.1", "172.16.0.1", "fd12::1", "93.184.216.34", "2606::1"])
def test_private_and_public_addresses_are_dialled(address: str) -> None:
    assert DialPolicy().refusal(address) == ""


def test_an_operator_allows_blocks_and_no_more() -> None:
    policy = DialPolicy(parse_blocks(["127.0.0.1/32", "169.254.7.0/24"]))
    assert policy.refusal("127.0.0.1") == policy.refusal("::ffff:127.0.0.1") == policy.refusal("169.254.7.9") == ""
    assert policy.refusal("127.0.0.2")
    assert policy.refusal("::1")
    assert policy.refusal("169.254.169.254")
    with pytest.raises(ValueError, match="host bits"):
        parse_blocks(["10.0.0.1/8"])


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "127.1",
        "[::ffff:127.0.0.1]",
        "[::7f00:1]",
        "0",
    ],
)
async def test_this_machine_is_not_asked_however_it_is_written(server: KeyServer, host: str) -> None:
    assert "which is not asked because a configuration says so" in await refusal(server.url(host=host), OutboundHttp())
    assert server.asked == []


def resolving(*answers: list[str]) -> Resolve:
    """Return a resolver that gives each time the next answer, and the last one for ever."""
    left = list(answers)

    async def resolve(host: str, _port: int) -> list[str]:
        if host.replace(".", "").isdigit():
            return [host]
        return left.pop(0) if len(left) > 1 else left[0]

    return resolve


async def test_a_name_that_leads_to_this_machine_is_not_asked(server: KeyServer) -> None:
    http = OutboundHttp(resolve=resolving(["127.0.0.1", "::1"]))
    assert "it leads to 127.0.0.1 (loopback), ::1 (this machine)" in await refusal(
        server.url(host="keys.example.com"), http
    )
    assert server.asked == []


async def test_a_name_that_is_another_address_once_it_was_judged_leads_where_it_was_judged(server: KeyServer) -> None:
    # What is dialled is the address of the first answer: the second, which would be this machine, is never asked for.
    policy = DialPolicy(parse_blocks(["127.0.0.1/32"]))
    http = OutboundHttp(policy, resolve=resolving(["127.0.0.1"], ["127.0.0.2"]))
    assert await got(server.url(host="rebinds.example.com"), http) == b"secret of this machine"
    # And each connection is judged anew.
    assert "127.0.0.2 (loopback)" in await refusal(server.url(host="rebinds.example.com"), http)


async def test_of_several_addresses_only_those_that_may_be_dialled_are(server: KeyServer) -> None:
    policy = DialPolicy(parse_blocks(["127.0.0.1/32"]))
    http = OutboundHttp(policy, resolve=resolving(["169.254.169.254", "127.0.0.2", "127.0.0.1"]))
    assert await http.addresses_of("x", server.port) == ["127.0.0.1"]
    assert await got(server.url(host="several.example.com"), http) == b"secret of this machine"


@pytest.mark.parametrize("to", ["http://127.0.0.2:1/", "http://[::1]:1/", "http://169.254.169.254/latest/meta-data/"])
async def test_a_redirect_is_judged_like_the_first_address(server: KeyServer, to: str) -> None:
    server.redirects("/away", to)
    http = OutboundHttp(DialPolicy(parse_blocks(["127.0.0.1/32"])))
    assert "which is not asked because a configuration says so" in await refusal(server.url("/away"), http)
    assert server.paths() == ["/away"]


@pytest.mark.parametrize(
    "to",
    [
        "file:///etc/passwd",
        "ftp://127.0.0.1/",
        "gopher://x",
        "unix:///run/a",
        "http://a:b@127.0.0.1/",
        "http://[x",
    ],
)
async def test_a_redirect_to_anything_but_http_is_refused(server: KeyServer, to: str) -> None:
    server.redirects("/away", to)
    assert "it redirects to what is no URL" in await refusal(server.url("/away"))


async def test_redirects_are_followed_a_few_times(server: KeyServer) -> None:
    for number in range(5):
        server.redirects(f"/{number}", f"/{number + 1}" if number < 4 else "/keys")
    assert await got(server.url("/2")) == b"secret of this machine"
    assert await refusal(server.url("/0")) == "more than 3 redirects"


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "unix:///run/x.sock", "ftp://127.0.0.1/", "http://", "http://[x"]
)
async def test_only_urls_of_http_are_asked(url: str) -> None:
    assert "it is no URL" in await refusal(url)


async def test_the_controller_does_not_call_itself_even_where_its_addresses_are_allowed(server: KeyServer) -> None:
    http = OutboundHttp(LOCAL, frozenset({server.port}))
    assert "127.0.0.1 (the controller itself)" in await refusal(server.url(), http)
    assert server.asked == []
    assert is_of_this_machine("127.0.0.1")
    assert not is_of_this_machine("192.0.2.1")


async def test_proxies_of_the_environment_are_not_asked(server: KeyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert await got(server.url()) == b"secret of this machine"


async def test_an_answer_is_bounded_in_size_and_tells_nothing_where_it_is_none(server: KeyServer) -> None:
    server.says("/large", b"x" * (MAX + 1))
    assert await refusal(server.url("/large")) == "the answer is larger than 0 KiB"
    server.says("/error", "secret", 500)
    assert await refusal(server.url("/error")) == "HTTP status 500"
    server.says("/packed", b"\x1f\x8b", Content_Encoding="gzip")
    assert "compressed" in await refusal(server.url("/packed"))


async def test_what_has_not_changed_is_not_sent_again(server: KeyServer) -> None:
    server.says("/keys", "x", ETag='"1"')
    http = OutboundHttp(LOCAL)
    first = await http.get(server.url(), timeout_s=5, max_bytes=MAX)
    assert (first.body, first.etag) == (b"x", '"1"')
    assert await got(server.url(), http, etag='"1"') is None
    assert await got(server.url(), http, etag='"2"') == b"x"


@asynccontextmanager
async def slow_server(*parts: bytes) -> AsyncIterator[int]:
    """Say one part after the other, then nothing, and keep the connection."""
    ended = asyncio.Event()

    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for part in parts:
            writer.write(part)
            await writer.drain()
        await ended.wait()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        ended.set()
        server.close()


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx"])
async def test_a_server_that_does_not_end_is_left(said: bytes) -> None:
    async with asyncio.timeout(10), slow_server(said) as port:
        assert await refusal(f"http://127.0.0.1:{port}/", timeout_s=0.2) == "not within 0.2 s"


async def test_headers_without_end_are_refused() -> None:
    async with slow_server(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n" * 100_000) as port:
        assert "not within" not in await refusal(f"http://127.0.0.1:{port}/")


SITE = Authority("site")


@contextmanager
def https(directory: Path, name: str) -> Iterator[KeyServer]:
    pair = SITE.pair(name)
    path = directory / "server.pem"
    path.write_text(pair.certificate + pair.key)
    with key_server(server_tls(path)) as found:
        found.says("/keys", "x")
        yield found


async def test_tls_is_verified_with_the_system_s_roots_and_those_of_the_operator(tmp_path: Path) -> None:
    roots = tmp_path / "ca.pem"
    roots.write_text(SITE.certificate)
    resolve = resolving(["127.0.0.1"])
    with https(tmp_path, "keys.example.com") as server:
        url, other = server.url(host="keys.example.com"), server.url(host="other.example.com")
        trusting = OutboundHttp(LOCAL, ca_file=roots, resolve=resolve)
        assert await got(url, trusting) == b"x"
        assert "certificate" in await refusal(other, trusting)
        assert "certificate" in await refusal(url, OutboundHttp(LOCAL, resolve=resolve))
        missing = OutboundHttp(LOCAL, ca_file=tmp_path / "none.pem", resolve=resolve)
        assert "none.pem: cannot be read" in await refusal(url, missing)
        with key_server() as plain:
            server.redirects("/down", plain.url(host="keys.example.com"))
            assert "from https:// to http://" in await refusal(server.url("/down", "keys.example.com"), trusting)


async def test_nobody_there_is_told_as_it_is() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    assert "onnect" in await refusal(f"http://127.0.0.1:{port}/")
    assert "cannot be looked up" in await refusal("http://nobody.invalid/")
