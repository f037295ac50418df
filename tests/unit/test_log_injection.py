"""Text of others cannot end a line, drive a terminal or pass for another record: in logs, tables, JSON, the audit."""

import io
import json
import logging
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import pytest
import structlog

from hostmesh_api.v1.hostmesh_pb2 import (
    CaptureState,
    EnvoyState,
    HostFacts,
    HostReport,
    ListeningSocket,
    WorkloadLease,
)
from hostmesh_controller import log
from hostmesh_controller.api.fleet import HostView, host_body, host_details, proxy_body
from hostmesh_controller.cli import hosts, output, proxies
from hostmesh_controller.cli.failure import refused
from hostmesh_controller.cli.output import Format, cell_text, emit, plain
from hostmesh_controller.reports import bounded
from hostmesh_controller.store import HostState
from running_controller import running_app

NASTY = 'a"\n2026-01-01T00:00:00Z [info] root did it\r\x1b[31m\x1b]0;title\x07\x9b2J\u2028\u202e\x00'


def drives(text: str, keep: str = "\n") -> list[str]:
    return [each for each in text if not each.isprintable() and each not in keep]


def test_a_log_line_stays_one_line_whatever_is_in_it(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("info")
    structlog.stdlib.get_logger("x").info("said", host=NASTY, **{"a-key": {NASTY: [NASTY]}})
    logging.getLogger("library").warning("%s", NASTY)
    try:
        raise ValueError(NASTY)
    except ValueError:
        structlog.stdlib.get_logger("x").exception("failed")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert drives("".join(lines), "") == []
    assert json.loads(lines[0])["host"] == NASTY


def test_a_table_and_messages_hold_nothing_that_drives_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(("A", "B", "C"), [(NASTY, [NASTY, NASTY], {"k": NASTY})], empty="")
    assert len(capsys.readouterr().out.splitlines()) == 2
    output.table(("A", "B"), [(NASTY, [NASTY])], empty="")
    output.say(NASTY)
    output.note(str(refused(NASTY, [{"file": NASTY, "message": NASTY, "code": NASTY}])))
    captured = capsys.readouterr()
    assert drives(captured.out + captured.err) == []
    assert "\n" not in cell_text([NASTY])
    assert drives(plain(NASTY)) == []


def test_json_and_yaml_output_escape_what_drives_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    emit({"text": NASTY, NASTY: [NASTY]}, Format.JSON)
    text = capsys.readouterr().out
    assert drives(text) == []
    assert json.loads(text) == {"text": NASTY, NASTY: [NASTY]}
    emit({"text": NASTY}, Format.YAML)
    assert [each for each in drives(capsys.readouterr().out) if each != "\u202e"] == []


async def test_names_in_paths_and_headers_reach_the_audit_plain(tmp_path: Path) -> None:
    async with running_app(tmp_path) as app:
        viewer = await app.as_role("viewer")
        answer = await app.outside.delete("/v1/objects/Service/a%1b%5b31m/x%0aroot%09did", headers=viewer)
        assert answer.status_code == 403
        await app.outside.delete("/v1/hosts/%c2%9b31m%0a", headers={**viewer, "User-Agent": "x\tnasty\x7f"})
        for record in (await app.root.get("/v1/audit", params={"result": "denied"})).json()["items"]:
            assert drives(json.dumps(record, ensure_ascii=False), "") == [], record


@pytest.mark.parametrize("name", ["a\nb", "\x1b[2J", "a b", "ü", "a\x00", "", "-" * 101])
async def test_the_name_of_a_token_is_plain(tmp_path: Path, name: str) -> None:
    async with running_app(tmp_path) as app:
        assert (await app.root.post("/v1/api-tokens", json={"name": name, "role": "viewer"})).status_code == 422


async def test_yaml_that_names_things_nastily_is_refused_in_plain_words(tmp_path: Path) -> None:
    texts = (
        'apiVersion: v1\nkind: Service\nmetadata: {name: "a\\nb\\e[2J"}\nspec: {}\n',
        'apiVersion: v1\nkind: "Serv\\nice\\e[2J"\nmetadata: {name: a}\n',
        'apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {"x\\n\\e[2J": 1}\n',
        'apiVersion: v1\nkind: Service\nmetadata: {name: a, labels: {"x": "\\e[2J"}}\nspec: {ports: [{port: 1}]}\n',
    )
    async with running_app(tmp_path) as app:
        for text in texts:
            answer = await app.apply(text)
            if answer.status_code == 200:
                continue
            error = answer.json()["error"]
            shown = io.StringIO(plain(str(refused(error["message"], error["problems"]))))
            assert drives(shown.getvalue()) == []
        # What an annotation holds is its author's own; it is kept, and printed escaped.
        audit = (await app.root.get("/v1/audit")).text
        assert "\x1b" not in audit


class Answers:
    """A controller that answers what a malicious agent made it believe."""

    def get(self, path: str, _params: object = None) -> dict[str, Any]:
        view = HostView(
            name="h1",
            spec={"addresses": ["10.0.0.1"]},
            labels={},
            state=HostState(report=bounded(REPORT).SerializeToString()),
            proxy=None,
            workloads=("shop/web",),
        )
        shown = {**proxy_body(view, datetime.now(UTC)), "nacks": [NACK]}
        bodies = {"/v1/proxies/h1": shown, "/v1/proxies": {"items": [shown]}, "/v1/hosts": {"items": [host_body(view)]}}
        return {**bodies, "/v1/hosts/h1": host_details(view, ())}[path]


NACK: Final = {"at": "2026-01-01T00:00:00+00:00", "type": NASTY, "names": [NASTY], "message": NASTY}
REPORT: Final = HostReport(
    facts=HostFacts(hostname=NASTY, os=NASTY, kernel=NASTY),
    envoy=EnvoyState(state=NASTY, version=NASTY, last_exit=NASTY),
    capture=CaptureState(state=NASTY, error=NASTY),
    listening=[ListeningSocket(program=NASTY, address=NASTY)],
    leases=[WorkloadLease(namespace="shop", name="web", health=WorkloadLease.UNHEALTHY, health_reason=NASTY)],
    problems=[NASTY],
)


def test_what_an_agent_reports_does_not_drive_the_operators_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    context: Any = SimpleNamespace(obj=Answers())
    for form in Format:
        proxies.status(context, host="h1", output=form)
        proxies.status(context, host=None, output=form)
        hosts.list_hosts(context, output=form)
        hosts.show(context, host="h1", output=form)
        shown = capsys.readouterr().out
        assert "root did it" in shown
        # YAML keeps what only turns the direction of writing.
        assert set(drives(shown)) <= ({"\u202e"} if form is not Format.JSON else set())
        assert not any(line.startswith("2026-01-01T00:00:00Z [info] root did it") for line in shown.splitlines())
