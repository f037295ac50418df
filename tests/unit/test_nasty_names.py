"""Names that would be options, paths or more than one line are refused where they come in, or do no harm."""

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from hostmesh_agent import probe_exec
from hostmesh_agent.child import PYTHON, running
from hostmesh_agent.probe_ways import http_request
from hostmesh_api.identity import parse_identity
from hostmesh_api.joinstring import JoinString
from hostmesh_api.v1.hostmesh_pb2 import Probe
from hostmesh_controller.cli.connection import part
from hostmesh_controller.groups import NotAdmittedError, candidate, group_key
from hostmesh_controller.load import load_documents

NASTY: Final = {
    "an option": "-rf",
    "a long option": "--config=/etc/passwd",
    "the parent": "..",
    "a path": "../../etc/passwd",
    "an absolute path": "/etc/passwd",
    "a NUL": "a\0b",
    "a line break": "a\nb",
    "an escape": "a\x1b[2J",
    "a space": "a b",
    "a letter of another script": "\u0430dmin",
    "what turns the direction": "a\u202eb",
    "nothing but dots": "...",
    "a shell's word": "$(id)",
    "a quote": "a'b\"",
    "a percent sign": "a%2f..",
    "a very long name": "a" * 300,
}


def faults(document: dict[str, Any]) -> list[str]:
    found, problems = load_documents(json.dumps(document), "x")
    return [each.path for each in problems] or [f"accepted: {item.to_dict()}" for item in found]


def host(**fields: Any) -> dict[str, Any]:
    return {"apiVersion": "hostmesh.io/v1", "kind": "Host", "metadata": {"name": "h"}, "spec": fields}


def entry(metadata: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    return {
        "apiVersion": "networking.istio.io/v1",
        "kind": "WorkloadEntry",
        "metadata": {"name": "w", "namespace": "n", **(metadata or {})},
        "spec": {"address": "10.0.0.1", **fields},
    }


PLACES: Final = {
    "the name of a host": lambda name: {**host(), "metadata": {"name": name}},
    "the namespace of a host": lambda name: host(namespace=name),
    "an address of a host": lambda name: host(addresses=[name]),
    "a namespace that a host is open to": lambda name: host(workloadNamespaces=[name]),
    "the identity of a host's programs": lambda name: host(outboundIdentity=f"spiffe://cluster.local/ns/{name}/sa/x"),
    "the name of a workload": lambda name: entry({"name": name}),
    "the namespace of a workload": lambda name: entry({"namespace": name}),
    "a service account": lambda name: entry(serviceAccount=name),
    "an address": lambda name: entry(address=name),
    "the name of a port": lambda name: entry(ports={name: 80}),
    "a label's name": lambda name: entry(labels={name: "x"}),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("what", NASTY)
def test_what_would_be_something_else_is_no_name(place: str, what: str) -> None:
    found = faults(PLACES[place](NASTY[what]))
    assert not any(each.startswith("accepted") for each in found), found


@pytest.mark.parametrize("path", ["/run/a\0b", "/run/a\nb", "/run/\x1b[2J", "/run/../etc/x", "relative", "@\n"])
def test_the_path_of_a_unix_socket_is_plain(path: str) -> None:
    found = faults(entry(address=f"unix://{path}"))
    assert not any(each.startswith("accepted") for each in found), found


@pytest.mark.parametrize("what", NASTY)
def test_a_host_that_joins_a_group_has_a_plain_name(what: str) -> None:
    wanted = group_key("shop/web")
    assert wanted is not None
    for name, hostname in ((NASTY[what], "h"), ("", NASTY[what])):
        with pytest.raises(NotAdmittedError) as caught:
            candidate(wanted, name, hostname, "", "10.0.0.1")
        assert str(caught.value).isprintable()


@pytest.mark.parametrize("what", NASTY)
def test_an_identity_is_of_plain_names_so_that_its_directory_is_one(what: str) -> None:
    name = NASTY[what]
    for text in (
        f"spiffe://cluster.local/ns/{name}/sa/x",
        f"spiffe://cluster.local/ns/n/sa/{name}",
        f"spiffe://cluster.local/host/{name}",
        f"spiffe://{name}/ns/n/sa/x",
    ):
        with pytest.raises(ValueError, match=r"is no|not |must"):
            parse_identity(text)


@pytest.mark.parametrize("endpoint", ["a b:1", "a\nb:1", "../x:1", "unix:/run/x:1", "dns:///x:1", "[::1]/x:1"])
def test_an_endpoint_of_a_join_string_is_a_host_and_a_port(endpoint: str) -> None:
    with pytest.raises(ValueError, match="is not host:port"):
        JoinString((endpoint,), b"x", "t")


@pytest.mark.parametrize("what", NASTY)
def test_the_command_line_keeps_a_name_one_part_of_a_path(what: str) -> None:
    url = httpx.URL(f"http://h/v1/hosts/{part(NASTY[what])}")
    assert url.raw_path.count(b"/") == 3
    assert b"?" not in url.raw_path
    assert url.raw_path.startswith(b"/v1/hosts/")
    assert url.raw_path not in {b"/v1/hosts/..", b"/v1/hosts/."}


def test_a_probe_cannot_smuggle_a_second_request() -> None:
    get = Probe.HttpGet(path="/x HTTP/1.1\r\nHost: evil\r\n\r\nGET /y", port=80)
    assert http_request(get, "127.0.0.1").count(b"\r\n\r\n") == 1
    assert b"evil\r\n" not in http_request(get, "127.0.0.1")


@pytest.mark.parametrize("field", ["serverCertificate", "privateKey", "caCertificates"])
@pytest.mark.parametrize("path", ["/etc/a\nb", "/etc/\x1b[2J", "/etc/../root/key.pem", "/etc/a\0b"])
def test_the_path_of_a_file_is_plain(field: str, path: str) -> None:
    server = {
        "port": {"number": 443, "name": "https", "protocol": "HTTPS"},
        "hosts": ["a.example.com"],
        "tls": {"mode": "MUTUAL", "serverCertificate": "/a", "privateKey": "/b", "caCertificates": "/c", field: path},
    }
    document = {
        "apiVersion": "networking.istio.io/v1",
        "kind": "Gateway",
        "metadata": {"name": "g", "namespace": "n"},
        "spec": {"selector": {"a": "b"}, "servers": [server]},
    }
    assert faults(document) == [f"spec.servers[0].tls.{field}"]


async def test_what_begins_with_a_dash_is_an_argument_of_the_probes_program(tmp_path: Path) -> None:
    program = await asyncio.to_thread(make_program, tmp_path / "-c")
    command = (*PYTHON, probe_exec.__file__, str(os.getuid()), str(os.getgid()), program, "-c", "--help")
    async with running(*command, stdout=asyncio.subprocess.PIPE) as process:
        out, _ = await process.communicate()
    assert out == b"['-c', '--help']\n"


def make_program(path: Path) -> str:
    path.write_text(f"#!{sys.executable}\nimport sys\nprint(sys.argv[1:])\n")
    path.chmod(0o755)
    return str(path)
