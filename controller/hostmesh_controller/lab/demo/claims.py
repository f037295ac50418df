"""What the mesh promises, each as one function: it returns what it measured, or raises `ClaimError` with the evidence.

They are played in the order of `CLAIMS`, and each leaves the stage as the next one expects it.
"""

import json
import math
import secrets
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from hostmesh_controller.lab import agent, components, controller
from hostmesh_controller.lab.components import Component
from hostmesh_controller.lab.demo import wire
from hostmesh_controller.lab.demo.snapshot import Snapshot, difference
from hostmesh_controller.lab.demo.stage import OUTSIDE, PORT, Answer, Stage, eventually

_CATALOG: Final = f"http://catalog:{PORT}/items"
_RATINGS: Final = f"http://ratings:{PORT}/stars"
# A change of configuration reaches every host well within this.
_PROPAGATION_S: Final = 15.0
_SPLIT_REQUESTS: Final = 500
_SPLIT_SHARE: Final = 0.1
# A correct split fails the test once in two million runs.
_SIGMAS: Final = 5.0


class ClaimError(Exception):
    """The claim does not hold; the text is the evidence."""


@dataclass(frozen=True, slots=True)
class Claim:
    """`hosts` are those whose logs tell more when it fails."""

    text: str
    hosts: tuple[str, ...]
    play: Callable[[Stage, Snapshot], str]


def _demand(holds: bool, evidence: object) -> None:
    if not holds:
        raise ClaimError(str(evidence))


def _succeeds(stage: Stage, host: str, url: str) -> bool:
    return stage.call(host, url).status == 200


def call_by_name(stage: Stage, _: Snapshot) -> str:
    eventually(lambda: _succeeds(stage, "shop", _CATALOG), _PROPAGATION_S)
    answer = stage.call("shop", _CATALOG)
    _demand(answer.status == 200 and answer.json.get("service") == "catalog", answer)
    return f"{answer.json['service']} {answer.json['version']} answers on {answer.json['host']}"


def callee_saw_the_caller(stage: Stage, _: Snapshot) -> str:
    wanted = "spiffe://cluster.local/ns/default/sa/shop"
    answer = stage.call("shop", _CATALOG)
    caller = str(answer.json.get("caller", ""))
    _demand(f"URI={wanted}" in caller.replace(";", ",").split(","), f"x-forwarded-client-cert: {caller!r} in {answer}")
    return wanted


def no_plaintext_on_the_wire(stage: Stage, _: Snapshot) -> str:
    ours, theirs = (f"marker-{who}-{secrets.token_hex(8)}" for who in ("mesh", "plain"))
    address = f"http://{stage.ip('catalog')}:{PORT}/items"
    with wire.capture(stage.world(), stage.layout.root / "demo.pcap") as capture:
        first = stage.call("shop", _CATALOG, f"x-marker: {ours}")
        # After it on the same bridge: once this one is in the capture, the first one would be too.
        second = stage.call(OUTSIDE, address, f"x-marker: {theirs}")
        _demand(first.status == 200, f"shop's request: {first}")
        _demand(second.status == 200, f"the outside host's plain request (PERMISSIVE): {second}")
        _demand(capture.wait_for(theirs, _PROPAGATION_S), "the capture does not even show the outside host's plaintext")
        _demand(not capture.holds(ours), f"{ours} of shop's request was readable on the bridge")
    return "the same request of the host outside was readable"


def split(stage: Stage, _: Snapshot) -> str:
    stage.apply("split.yaml")
    eventually(lambda: stage.load("shop", _CATALOG, 40)["versions"].get("v2", 0) < 14, _PROPAGATION_S)
    found = stage.load("shop", _CATALOG, _SPLIT_REQUESTS, workers=2)
    v1, v2 = (found["versions"].get(version, 0) for version in ("v1", "v2"))
    expected = _SPLIT_REQUESTS * _SPLIT_SHARE
    bound = _SIGMAS * math.sqrt(expected * (1 - _SPLIT_SHARE))
    _demand(found["failed"] == 0, _failures(found))
    _demand(abs(v2 - expected) <= bound, f"v1 {v1}, v2 {v2}: v2 should be {expected:.0f} ± {bound:.0f}")
    return f"v1 {v1}, v2 {v2}"


def retry_hides_failures(stage: Stage, _: Snapshot) -> str:
    eventually(lambda: stage.call("shop", _RATINGS).status in (200, 500), _PROPAGATION_S)
    before = stage.load("shop", _RATINGS, 20)
    _demand(before["failed"] >= 5, f"ratings fails every second request, and shop did not see it: {before}")
    stage.apply("retry.yaml")
    eventually(lambda: stage.load("shop", _RATINGS, 6)["failed"] == 0, _PROPAGATION_S)
    counters = _counters(stage)
    after = stage.load("shop", _RATINGS, 50)
    hidden = _counters(stage)["failed"] - counters["failed"]
    _demand(after["failed"] == 0, _failures(after))
    _demand(hidden >= 10, f"only {hidden} of the 50 requests failed at ratings: nothing to hide")
    return f"without {before['failed']} of 20 failed, with it 0 of 50; ratings failed {hidden} times"


def _counters(stage: Stage) -> dict[str, Any]:
    # On the host itself: the question must not count as a request, nor depend on the mesh.
    answer = stage.call("ratings", f"http://127.0.0.1:{PORT}/counters")
    _demand(answer.status == 200, f"ratings' counters: {answer}")
    return answer.json


def strict_refuses_plaintext(stage: Stage, _: Snapshot) -> str:
    address = f"http://{stage.ip('ratings')}:{PORT}/counters"

    def plain() -> Answer:
        return stage.call(OUTSIDE, address)

    before = plain()
    _demand(before.status == 200, f"while PERMISSIVE: {before}")
    stage.apply("strict.yaml")
    eventually(lambda: plain().status == 0, _PROPAGATION_S)
    after = plain()
    _demand(after.status == 0, f"while STRICT: {after}")
    member = stage.call("shop", f"http://ratings:{PORT}/counters")
    _demand(member.status == 200, f"shop, a member of the mesh: {member}")
    return f"before: status 200, now: {after.problem.removeprefix('curl: ')}; shop is answered"


def policy_says_who_may_do_what(stage: Stage, _: Snapshot) -> str:
    url = f"http://ratings:{PORT}/counters"
    before = stage.call("shop", url, method="POST")
    _demand(before.status not in (0, 403), f"shop's POST before there is a policy: {before}")
    stage.apply("authorize.yaml")
    eventually(lambda: stage.call("shop", url, method="POST").status == 403, _PROPAGATION_S)
    reads, writes = stage.call("shop", url), stage.call("shop", url, method="POST")
    _demand(reads.status == 200, f"shop's GET: {reads}")
    _demand(writes.status == 403, f"shop's POST: {writes}")
    said = stage.hostmesh("authz", "explain", "--from", "shop", "--to", url, "-o", "json")
    rules = [each["by"] for answer in json.loads(said)["answers"] for each in answer["rulings"]]
    _demand(json.loads(said)["allowed"] is True, said)
    return f"shop may GET and not POST; authz explain names {', '.join(filter(None, rules))}"


def root_replaced(stage: Stage, _: Snapshot) -> str:
    with stage.steady_load("shop", _CATALOG) as found:
        stage.hostmesh("ca", "rotate", "--within", "2s")
    states = [each["state"] for each in json.loads(stage.hostmesh("ca", "show", "-o", "json"))["roots"]]
    _demand(found["failed"] == 0, _failures(found))
    _demand(sorted(states) == ["active", "revoked"], f"states of the roots: {states}")
    return f"{found['sent']} requests, 0 failed; nobody trusts the old root any more"


def killed_agent(stage: Stage, _: Snapshot) -> str:
    with stage.steady_load("shop", _CATALOG) as found:
        _pause(stage, 1.0)
        for host in ("shop", "catalog"):
            agent.stop(stage.layout, host, signal.SIGKILL)
        _pause(stage, 2.0)
        for host in ("shop", "catalog"):
            _demand(not agent.processes(stage.layout, host), f"{host}'s agent still runs")
            components.start(stage.layout, stage.lab, Component("agent", host))
        _pause(stage, 0.5)
    _demand(found["failed"] == 0, _failures(found))
    return f"{found['sent']} requests, 0 failed; agents of shop and catalog killed and started again"


def controller_stopped(stage: Stage, _: Snapshot) -> str:
    # What a host has called before it can call after a restart without the controller: the next claim does.
    eventually(lambda: _succeeds(stage, "catalog", _RATINGS), _PROPAGATION_S)
    with stage.steady_load("shop", _CATALOG) as found:
        _pause(stage, 0.5)
        controller.stop(stage.layout, signal.SIGTERM)
        _pause(stage, 2.0)
    _demand(found["failed"] == 0, _failures(found))
    return f"{found['sent']} requests, 0 failed"


def host_restarted(stage: Stage, _: Snapshot) -> str:
    components.restart(stage.layout, stage.lab, Component("host", "catalog"))
    stage.start_program("catalog")

    def serves() -> bool:
        return bool(stage.load("shop", _CATALOG, 10)["failed"] == 0)

    _demand(eventually(serves, _PROPAGATION_S), f"shop's calls: {stage.load('shop', _CATALOG, 20)}")
    found = stage.load("shop", _CATALOG, 100)
    _demand(found["failed"] == 0 and found["versions"].get("v1", 0) > 0, _failures(found))
    calls = stage.load("catalog", _RATINGS, 10)
    _demand(calls["failed"] == 0, f"catalog's own calls after its restart: {_failures(calls)}")
    return f"catalog is back: {found['versions']['v1']} of 100 requests were its own, 0 failed"


def expelled(stage: Stage, _: Snapshot) -> str:
    controller.start(stage.layout, stage.lab)
    stage.wait_for_workloads()
    eventually(lambda: _succeeds(stage, "ratings", _CATALOG), _PROPAGATION_S)
    before = stage.call("ratings", _CATALOG)
    _demand(before.status == 200, f"ratings' call before: {before}")
    with stage.steady_load("shop", _CATALOG) as found:
        stage.hostmesh("host", "expel", "ratings", "--yes", "--reason", "stolen")
        # Two hosts serve the catalog: one that has heard of it is not enough.
        eventually(lambda: stage.load("ratings", _CATALOG, 10)["failed"] == 10, _PROPAGATION_S)
        after = stage.call("ratings", _CATALOG)
    _demand(after.status != 200, f"ratings' call afterwards: {after}")
    _demand(found["failed"] == 0, _failures(found))
    return f"its call: {after.status or after.problem}; {found['sent']} requests of shop, 0 failed"


def leave(stage: Stage, before: Snapshot) -> str:
    done = stage.space("shop").run(["hostmesh-agent", "leave"], timeout_s=60)
    _demand(done.returncode == 0, f"hostmesh-agent leave: {done.stdout}{done.stderr}")
    after = Snapshot.of(stage.space("shop"))
    _demand(after == before, difference(before, after))
    return "also addresses, routes and rules of routing"


def _pause(stage: Stage, seconds: float) -> None:
    """Let the load run on for a while, which is what is measured here."""
    stage.world().run(["sleep", str(seconds)])


def _failures(found: dict[str, Any]) -> str:
    return f"{found['failed']} of {found['sent']} requests failed: {'; '.join(found['errors'])}"


CLAIMS: Final = (
    Claim("shop calls the catalog by its name", ("shop", "catalog"), call_by_name),
    Claim("the catalog saw who called", ("shop", "catalog"), callee_saw_the_caller),
    Claim("a packet capture on the bridge shows nothing of the request", ("shop", "catalog"), no_plaintext_on_the_wire),
    Claim("a 90/10 split over 500 requests", ("shop",), split),
    Claim("a retry hides every second request's failure", ("shop", "ratings"), retry_hides_failures),
    Claim("a STRICT port refuses the host outside", ("ratings",), strict_refuses_plaintext),
    Claim("a policy lets callers read and not write", ("shop", "ratings"), policy_says_who_may_do_what),
    Claim("the root of all certificates is replaced under load", ("shop", "catalog"), root_replaced),
    Claim("kill -9 of agents under load loses no request", ("shop", "catalog"), killed_agent),
    Claim("the controller is stopped: traffic goes on", ("shop", "catalog"), controller_stopped),
    Claim("a host restarted without the controller serves again", ("catalog", "shop"), host_restarted),
    Claim("an expelled host can call nobody, and nobody else notices", ("ratings", "catalog"), expelled),
    Claim("shop leaves: nftables and resolver files are byte for byte as before", ("shop",), leave),
)
