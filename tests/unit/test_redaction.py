"""No secret of this host, and nothing that looks like one, is left in a text that somebody else reads."""

import base64
import json
import socket
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from hostmesh_agent.keys import key_pem, new_key
from hostmesh_agent.redaction import HIDDEN, Redactor
from unit.test_agent_certs import BOUND_S, envoy_binary, typed

CANARY = "Zq8vK2nRt5yWcanary"
KEY = key_pem(new_key())
BODY = b"".join(KEY.split(b"-----")[2].split()).decode()
DER = base64.b64decode(BODY)

FORMS = {
    "PEM": KEY.decode(),
    "PEM in JSON": json.dumps({"inline_string": KEY.decode()}),
    "PEM, its begin cut off": KEY.decode()[60:],
    "PEM, its end cut off": KEY.decode()[:-60],
    "one line of it": KEY.decode().splitlines()[2],
    "body": BODY,
    "body among others": f"x={BODY};y",
    "base64 of the PEM": base64.b64encode(KEY).decode(),
    "base64 of DER inside other bytes": base64.b64encode(b"ab" + DER + b"xyz").decode(),
    "url-safe base64": base64.urlsafe_b64encode(DER).decode(),
    "hex": DER.hex(),
    "HEX with colons": DER.hex(":").upper(),
}


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_key_of_this_host_is_found_in_every_form(form: str) -> None:
    redactor = Redactor([KEY])
    found = redactor.clean(f"before\n{FORMS[form]}\nafter\n")
    assert redactor.count
    assert found.startswith("before\n") or HIDDEN in found
    assert found.rstrip().endswith("after") or HIDDEN in found
    for text in (FORMS[form], BODY, DER.hex(), DER.hex(":").upper()):
        for at in range(0, len(text) - 16, 16):
            piece = text[at : at + 16]
            if piece.strip("-") in {"", "BEGIN PRIVATE K"} or "PRIVATE" in piece or "inline" in piece:
                continue
            assert piece not in found, (form, at)


@pytest.mark.parametrize(
    "line",
    [
        f"Authorization: Bearer {CANARY}",
        f"authorization: {CANARY} and more {CANARY}",
        f'"authorization": "Bearer {CANARY}"',
        f'{{"headers": "{{\\"Authorization\\": \\"Basic {CANARY}\\"}}"}}',
        f"':authority', 'x'\n'authorization', 'Bearer {CANARY}'",
        f"Cookie: session={CANARY}; other={CANARY}",
        f"token = '{CANARY}'",
        f"HOSTMESH_API_TOKEN={CANARY}",
        f'"client_secret": "{CANARY}"',
        f"db_password: {CANARY}",
        f"postgres://user:{CANARY}@db/x",
        f"hm1.{CANARY}_-x",
        f"eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJ4In0.{CANARY}",
        f'{{"kty": "EC", "d": "{CANARY}"}}',
        f"-----BEGIN EC PRIVATE KEY-----\n{CANARY}\n-----END EC PRIVATE KEY-----",
        f"-----BEGIN RSA PRIVATE KEY-----\\n{CANARY}\\n-----END RSA PRIVATE KEY-----",
        "k3" + CANARY * 3,
        # As Envoy logs headers (debug, trace), and as its bootstrap and the text of a message have them.
        f"'authorization', 'ApiKey {CANARY}'",
        f"'cookie', 'a='b'; sid={CANARY}'",
        f"'set-cookie', 'sid={CANARY}; Path=/'",
        f"'x-csrf-token', '{CANARY}'",
        f'"x-api-key", "a\\"{CANARY}"',
        json.dumps({"said": f'["x-api-key", "{CANARY}"]'}),
        f"completed header: key=X-Api-Key value=ApiKey {CANARY}",
        f'{{"key": "x-api-key", "value": "{CANARY}"}}',
        f'{{"append": false, "key": "x-api-key", "raw_value": "{CANARY}"}}',
        json.dumps({"header": {"key": "x-token", "value": f'"{CANARY}'}}, indent=1),
        json.dumps({"said": json.dumps({"key": "x-token", "value": CANARY})}),
        f'header {{\n  key: "x-token"\n  value: "{CANARY}"\n}}',
        f'{{"name": "x-api-key", "string_match": {{"exact": "{CANARY}"}}}}',
        f'headers {{\n  name: "cookie"\n  string_match {{\n    contains: "{CANARY}"\n  }}\n}}',
    ],
)
def test_what_looks_like_a_secret_is_hidden_whoever_owns_it(line: str) -> None:
    redactor = Redactor([])
    assert CANARY not in redactor.clean(f"a\n{line}\nb")
    assert redactor.count


@pytest.mark.parametrize(
    "line",
    [
        "cluster.outbound|80||web.default.svc.cluster.local.upstream_cx_total: 17",
        "sds.default.update_success: 3",
        "http.inbound.jwt_authn.token_bucket: 5",
        "rules_hash 8aa137a7d00994ce43f613556f5a120709229f63bedb86eedde5ccbc402c2b80",
        "drwxr-x--- 0:994 4096 2026-01-02T03:04:05+00:00 /var/lib/hostmesh/envoy/certs/default-web/svid.pem",
        "type.googleapis.com/envoy.config.listener.v3.Listener",
        "spiffe://cluster.local/ns/default/sa/web",
        '"not_after": "2026-01-02T03:04:05+00:00"',
        "'content-type', 'application/json'",
        '{"key": "x-request-id", "value": "0f8fad5b-d9cb-469f-a165-70867728950e"}',
        '{"name": "x-api-key", "present_match": true}',
        "completed header: key=X-Request-Id value=5",
        "ip saddr 10.0.0.0/8 tcp dport 80 redirect to :15001",
    ],
)
def test_what_helps_stays(line: str) -> None:
    assert Redactor([KEY]).clean(line) == line


def test_a_token_that_is_known_is_found_wherever_it_is() -> None:
    redactor = Redactor([b"tok-1234567890ab\n"])
    assert redactor.clean("x=tok-1234567890ab") == f"x={HIDDEN}"


@pytest.mark.parametrize("shift", [0, 1, 2])
def test_a_piece_of_a_keys_base64_is_found_however_it_lies_in_what_was_encoded(shift: int) -> None:
    encoded = base64.b64encode(b"x" * shift + DER).decode()
    piece = encoded[80:110]
    assert piece not in Redactor([KEY]).clean(f"id={piece}")
    assert Redactor([]).clean(f"id={piece}") == f"id={piece}"


def bootstrap() -> str:
    """Return that of an Envoy that calls itself, and adds secrets to what passes."""
    added = {"header": {"key": "x-token", "value": f"to-{CANARY}"}}
    cookies = [
        {"header": {"key": "set-cookie", "value": f"sid={CANARY}; Path=/"}},
        {"header": {"key": "x-api-key", "value": f"from-{CANARY}"}},
    ]
    routes = [
        {"match": {"path": "/end"}, "direct_response": {"status": 200}, "response_headers_to_add": cookies},
        {
            "match": {"prefix": "/"},
            "route": {"cluster": "itself", "prefix_rewrite": "/end"},
            "request_headers_to_add": [added],
        },
    ]
    manager = typed(
        "filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="in",
        route_config={"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
        http_filters=[{"name": "router", "typed_config": typed("filters.http.router.v3.Router")}],
    )
    pipe = {"pipe": {"path": "in.sock"}}
    listener = {
        "name": "in",
        "address": pipe,
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }
    itself = {
        "name": "itself",
        "type": "STATIC",
        "load_assignment": {
            "cluster_name": "itself",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": pipe}}]}],
        },
    }
    document = {"static_resources": {"listeners": [listener], "clusters": [itself]}}
    return json.dumps(document, sort_keys=True, indent=1)


def test_what_a_real_envoy_logs_of_headers_holds_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the name of a socket must be short
    Path("bootstrap.json").write_text(bootstrap())
    asked = "\r\n".join(
        [
            *("GET / HTTP/1.1", "Host: x", "Connection: close"),
            *(f"Cookie: a='b'; sid={CANARY}", f"Authorization: ApiKey {CANARY}", f"X-Auth-Token: it's\"{CANARY}"),
            *("", ""),
        ]
    )
    with ExitStack() as stack:
        log = stack.enter_context(Path("log").open("wb"))
        command = [str(envoy_binary()), "-c", "bootstrap.json", "--disable-hot-restart", "--concurrency", "1"]
        process = subprocess.Popen([*command, "-l", "trace"], stdout=log, stderr=log)
        stack.callback(process.wait, BOUND_S)
        stack.callback(process.terminate)
        answered = b""
        until = time.monotonic() + BOUND_S
        while not answered:
            assert time.monotonic() < until
            with socket.socket(socket.AF_UNIX) as caller:
                caller.settimeout(BOUND_S)
                try:
                    caller.connect("in.sock")
                except OSError:
                    time.sleep(0.02)
                    continue
                caller.sendall(asked.encode())
                while some := caller.recv(65536):
                    answered += some
        assert answered.startswith(b"HTTP/1.1 200 ")
        assert answered.count(CANARY.encode()) == 2
    logged = Path("log").read_text()
    for form in (f"'cookie', 'a='b'; sid={CANARY}'", f"key=Authorization value=ApiKey {CANARY}"):
        assert form in logged
    for text in (logged, Path("bootstrap.json").read_text()):
        assert CANARY not in Redactor([]).clean(text)
