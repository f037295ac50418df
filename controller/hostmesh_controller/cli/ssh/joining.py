"""One host joined over SSH, step by step; what fails takes everything back that was done by this run.

    connect (host key, login, sudo) ▶ check ▶ install ▶ register (only now is there a token) ▶ join ▶ start ▶ wait
        ▶ verify

A host that has joined already is told to the mesh anew: what is named is set, all else stays.

The proof at the end has two halves. The controller says that the host's agent is connected, that its Envoy has
acknowledged all that is meant for it, and that each workload on it is vouched for. And the host makes a real request
(`verifying`).
"""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from hostmesh_controller.cli.connection import Connection, part
from hostmesh_controller.cli.failure import CliError
from hostmesh_controller.cli.ssh import facts, steps
from hostmesh_controller.cli.ssh.installing import Installing, installed
from hostmesh_controller.cli.ssh.packages import AGENT, Manager, Source, manager_of
from hostmesh_controller.cli.ssh.session import Access, Doorway
from hostmesh_controller.cli.ssh.shell import Shell
from hostmesh_controller.cli.ssh.steps import HostResult, StepError, Undo
from hostmesh_controller.cli.ssh.verifying import NOTHING_ASKED, Asked, call, try_services

JOIN_S: Final = 210
"""The agent asks three times at each of the controller's addresses, for 15 s: of four, with what else it does."""
START_S: Final = 360
"""More than the agent's unit may take (TimeoutStartSec), so that systemd says what went wrong."""
_WAIT_S: Final = 90
_VERIFY_S: Final = 60
_TTL_S: Final = 600
"""A join string is used within seconds; should taking it back fail, it is worth nothing in ten minutes."""
_GONE: Final = frozenset({"unknown", "withdrawn"})
"""Leases of hosts that live no more, as far as the controller knows."""
UNIT: Final = "hostmesh-agent.service"
_UNITS: Final = f"hostmesh-guard.service {UNIT}"
_NOT_OFFERED: Final = (
    "which has read of no repository that has it: unless that is old, name --repository, --package or --bundle"
)


@dataclass(frozen=True, slots=True)
class Wanted:
    """A host as it is to be: `body` is what POST /v1/register takes, `verify` a URL that it calls at the end.

    Without `addresses` in the body a new host has that of `access`, and one that is registered keeps its own.
    """

    name: str
    access: Access
    body: Mapping[str, Any]
    source: Source = field(default_factory=Source)
    verify: str = ""


@dataclass(slots=True)
class Joining:
    """The joining of one host. `tell` is given a line for each step."""

    wanted: Wanted
    connection: Connection
    tell: Callable[[str], None]
    halted: threading.Event = field(default_factory=threading.Event)
    dry_run: bool = False
    undo: Undo = field(default_factory=Undo)
    _step: str = steps.CONNECT
    _shell: Shell = field(init=False)
    _asked: Asked = NOTHING_ASKED

    def __post_init__(self) -> None:
        self._shell = Shell(Doorway(self.wanted.access, self.halted))

    def halt(self) -> None:
        """End what runs; `run` then takes back what was done."""
        self.halted.set()
        self._shell.halt()

    def run(self) -> HostResult:
        """Join the host, or take everything back."""
        try:
            outcome = self._all()
        except (StepError, CliError) as error:
            return self._failed(str(error).removeprefix("error: "), getattr(error, "cure", ""))
        except Exception as error:  # a bug of ours must not leave a host half joined
            return self._failed(f"{type(error).__name__}: {error}", "this is a bug of hostmesh: report it")
        finally:
            self._shell.door.close()
        return HostResult(self.wanted.name, outcome, request=self._asked.said, lacks=self._asked.lacks)

    def _failed(self, message: str, cure: str) -> HostResult:
        if self.halted.is_set():
            message, cure = "interrupted", "repeat it"
        step = self._step
        self._shell.take_back()
        left = self.undo.all(self.tell)
        if left:
            cure = f"{cure}; then: hostmesh host remove {self.wanted.name} --ssh {self.wanted.access.place}".strip("; ")
        return HostResult(self.wanted.name, "failed", step, message, cure, left)

    def _begin(self, step: str) -> None:
        if self.halted.is_set():
            raise StepError("interrupted")
        self._step = step
        self.tell(step)

    def _all(self) -> str:
        self._begin(steps.CONNECT)
        self._shell.open()
        self._begin(steps.CHECK)
        found = facts.read_facts(self._shell.run(facts.ASK).out)
        manager = manager_of(found.manager)
        before = installed(self._shell, manager) if manager else {}
        facts.check(found, sudo=self.wanted.access.sudo, installed=AGENT in before)
        assert manager is not None
        joined = facts.joined_as(self._shell.root(facts.ASK_AS_ROOT))
        self._not_another(joined)
        installing = Installing(self._shell, manager, self.wanted.source, before, self.undo)
        if AGENT not in before:
            installing.check()
        # What the controller refuses, by its name or its addresses, it refuses before anything is done.
        self.connection.post("/v1/register", {**self._body(has_joined=joined is not None), "dry_run": True})
        if self.dry_run:
            return self._plan(found, manager, before, joined)
        if AGENT not in before:
            self._begin(steps.INSTALL)
            installing.install()
        self._begin(steps.REGISTER)
        string, told = self._register(has_joined=joined is not None)
        if joined is None:
            self._begin(steps.JOIN)
            self.undo.add("the host's identity", self._leave)
            # Its start has a step of its own, which takes longer and has another cure.
            self._shell.root(
                "hostmesh-agent join - --no-start",
                text_in=f"{string}\n",
                within_s=JOIN_S,
                cure="see the host's clock and its way to the controller",
            )
        changed = joined is None or AGENT not in before
        changed |= self._start()
        self._begin(steps.WAIT)
        self._shell.root(
            f"hostmesh-agent wait --timeout {_WAIT_S}", within_s=_WAIT_S + 10, cure="on the host: hostmesh-agent doctor"
        )
        self._begin(steps.VERIFY)
        self._verify()
        return "joined" if changed else "updated" if told else "unchanged"

    def _not_another(self, joined: str | None) -> None:
        if joined is None:
            self._not_taken()
            return
        name = self.wanted.name
        leave = "on the host: hostmesh-agent leave --purge"
        if joined != name:
            raise StepError(
                f"this host has joined already, as {joined or 'somebody that its damaged state hides'}", leave
            )
        if self._state() != "joined":
            raise StepError(f"this host has joined a mesh as {name}, and this controller does not know of it", leave)

    def _not_taken(self) -> None:
        """This machine has joined nothing: it is not given the name of another that lives, which would be put out.

        A machine that was made anew is at the address of the one before, whose agent is away.

        Raises:
            StepError: the name is another's, or nobody's to have.
        """
        host = known(self.connection, self.wanted.name)
        name, place = self.wanted.name, self.wanted.access.place
        if host is None or host["state"] in {"registered", "left"}:
            return
        if host["state"] != "joined":
            raise StepError(f"{name} is {host['state']}", f"hostmesh host readmit {name}")
        if host["connected"] or (host["lease"] not in _GONE and place.ip not in host["addresses"]):
            how = "is connected" if host["connected"] else f"may live (lease: {host['lease']})"
            raise StepError(
                f"another machine has joined as {name} and {how} ({', '.join(host['addresses'])}), not {place}",
                f"choose another name; if {name} is to be this machine: hostmesh host remove {name}",
            )

    def _state(self) -> str:
        host = known(self.connection, self.wanted.name)
        return "" if host is None else str(host["state"])

    def _plan(self, found: facts.Facts, manager: Manager, before: Mapping[str, str], joined: str | None) -> str:
        parts = [found.os, f"{found.free_mib} MiB free"]
        if AGENT in before:
            parts.append(f"has {AGENT} {before[AGENT]}")
        else:
            named = self.wanted.source != Source()
            lacking = "" if named or self._shell.run(manager.offered()).out.strip() else f" ({_NOT_OFFERED})"
            parts.append(f"would install {AGENT} by {found.manager}{lacking}")
        parts.append("has joined; would be told to the mesh anew" if joined else "would join, start and verify")
        return "dry run: " + ", ".join(parts)

    # Joining

    def _body(self, *, has_joined: bool) -> dict[str, Any]:
        name, place = self.wanted.name, self.wanted.access.place
        addresses = self.wanted.body.get("addresses") or ([] if self._state() else [place.ip] if place.ip else [])
        return {**self.wanted.body, "addresses": addresses, "host": name, "token": not has_joined, "ttl_s": _TTL_S}

    def _register(self, *, has_joined: bool) -> tuple[str, bool]:
        """Make the objects, and a token for a host that has not joined; return its string, and whether any changed."""
        if not has_joined:
            self._not_taken()  # since it was looked an installation may have taken minutes
        answer = self.connection.post("/v1/register", self._body(has_joined=has_joined))
        for each in answer["objects"]:
            if each["action"] == "created":
                self.undo.add(f"{each['kind']} {each['name']}", lambda each=each: self._delete(each))  # type: ignore[misc]
        for document in answer["before"]:
            what = f"{document['kind']} {document['metadata']['name']}"
            self.undo.add(what, lambda document=document: self._put_back(document, answer["revision"]))  # type: ignore[misc]
        if not has_joined:
            self.undo.add("the join token", lambda: self._revoke(answer["id"]))
        changed = any(each["action"] != "unchanged" for each in answer["objects"])
        return str(answer.get("join_string", "")), changed

    def _put_back(self, document: Mapping[str, Any], revision: int) -> None:
        """Write an object as it was, unless somebody else has written it since."""
        meta = document["metadata"]
        path = f"/v1/objects/{part(document['kind'])}/{part(meta.get('namespace') or '-')}/{part(meta['name'])}"
        if self.connection.get(path)["revision"] != revision:
            raise StepError("somebody else has changed it since")
        self.connection.request("PUT", path, body=document)

    def _delete(self, key: Mapping[str, Any]) -> None:
        namespace = key.get("namespace") or "-"
        with suppress_missing():
            self.connection.delete(f"/v1/objects/{part(key['kind'])}/{part(namespace)}/{part(key['name'])}")

    def _revoke(self, token: str) -> None:
        with suppress_missing():
            self.connection.delete(f"/v1/tokens/{part(token)}")

    def _leave(self) -> None:
        self._shell.root("systemctl --quiet stop hostmesh-agent.service; hostmesh-agent leave --purge", within_s=120)

    def _start(self) -> bool:
        """Start the unit; tell whether it was not running."""
        self._begin(steps.START)
        if self._shell.run(f"systemctl --quiet is-active {UNIT}", root=True).code == 0:
            return False
        self._shell.root(
            f"systemctl enable {_UNITS} && systemctl start {UNIT}",
            within_s=START_S,
            cure=f"on the host: journalctl -u {UNIT}",
        )
        return True

    # The proof

    def _verify(self) -> None:
        until = time.monotonic() + _VERIFY_S
        while lacking := self._lacks():
            if time.monotonic() > until:
                raise StepError(f"the controller says: {lacking}", f"hostmesh host show {self.wanted.name}")
            if self.halted.wait(0.5):
                raise StepError("interrupted")
        if self.wanted.verify:
            self._asked = call(self._shell, self.wanted.name, self.wanted.verify)
        else:
            self._asked = try_services(self._shell, self.wanted.name, self.connection)

    def _lacks(self) -> str:
        host = self.connection.get(f"/v1/hosts/{part(self.wanted.name)}")
        if host["state"] != "joined" or not host["connected"]:
            return f"the host is {host['state']}, and its agent is {'' if host['connected'] else 'not '}connected"
        if host["envoy_down"]:
            return "its Envoy is down"
        if not self.connection.get(f"/v1/proxies/{part(self.wanted.name)}")["settled"]:
            return "its Envoy has not acknowledged its configuration"
        waiting = sorted(set(host["workloads"]) - set(host["ready"]))
        return f"not vouched for yet: {', '.join(waiting)}" if waiting else ""


def known(connection: Connection, host: str) -> dict[str, Any] | None:
    """Return what the controller says of a host; None where none is registered under that name."""
    try:
        return connection.get(f"/v1/hosts/{part(host)}")
    except CliError as error:
        if error.code == "not_found":
            return None
        raise


class suppress_missing:  # noqa: N801 - it stands where contextlib.suppress does
    """What is to go and is not there has gone."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        return isinstance(error, CliError) and error.code == "not_found"
