"""What the policies in a filter chain make of an attempt: filter by filter, from what Envoy is sent."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from envoy.config.listener.v3.listener_components_pb2 import FilterChain
from envoy.config.rbac.v3.rbac_pb2 import RBAC
from envoy.extensions.filters.http.ext_authz.v3.ext_authz_pb2 import ExtAuthz
from envoy.extensions.filters.http.rbac.v3 import rbac_pb2 as http_rbac
from envoy.extensions.filters.network.ext_authz.v3.ext_authz_pb2 import ExtAuthz as NetworkExtAuthz
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (
    HttpConnectionManager,
)
from envoy.extensions.filters.network.rbac.v3 import rbac_pb2 as network_rbac
from google.protobuf.message import Message

from hostmesh_controller.explain.attempt import Attempt
from hostmesh_controller.explain.rbac import Judged, judge
from hostmesh_controller.explain.sight import filters_of
from hostmesh_controller.xds.custom_authorization import PREFIX as ASKS
from hostmesh_controller.xds.messages import unpacked

_NAME: Final = re.compile(r"(?:istio-ext-authz-(?P<provider>.+?)-)?ns\[(.+)\]-policy\[(.+)\]-rule\[(\d+)\].*")
_ACTIONS: Final = {RBAC.ALLOW: "ALLOW", RBAC.DENY: "DENY", RBAC.LOG: "AUDIT"}


@dataclass(frozen=True, slots=True)
class Ruling:
    """What the policies of one filter say.

    Attributes:
        action: ALLOW, DENY, AUDIT or CUSTOM.
        decision: `allow`, `deny`, `ask` (an authorizer decides), or `none` where the filter has no word.
        by: the policy that decides, in Envoy's words; "" if it is that none holds.
        dry_run: nothing comes of it.
        judged: all policies of the filter.
    """

    action: str
    decision: str
    by: str
    judged: tuple[Judged, ...]
    dry_run: bool = False

    def body(self) -> dict[str, Any]:
        return {
            "action": self.action,
            "decision": self.decision,
            "by": policy_text(self.by),
            "dry_run": self.dry_run,
            "policies": [
                {"policy": policy_text(each.policy), "holds": each.holds, "why": each.why} for each in self.judged
            ],
        }


@dataclass(frozen=True, slots=True)
class Verdict:
    """`allowed` is None where an external authorizer decides. `rulings` are in the order of the filters."""

    allowed: bool | None
    text: str
    rulings: tuple[Ruling, ...] = field(default=())


def verdict_of(chain: FilterChain, attempt: Attempt) -> Verdict:
    """Return what a chain's filters make of an attempt, up to the first that refuses it."""
    rulings: list[Ruling] = []
    asked = ""
    for ruling in _rulings(_messages(chain), attempt):
        rulings.append(ruling)
        if ruling.dry_run:
            continue
        if ruling.decision == "deny":
            return Verdict(False, _refusal(ruling), tuple(rulings))
        if ruling.decision == "ask":
            asked = f"the authorizer that {policy_text(ruling.by)} names decides"
    allowing = [each for each in rulings if each.action == "ALLOW" and not each.dry_run]
    said = f"allowed by {policy_text(allowing[-1].by)}" if allowing else "allowed: no policy refuses it"
    return Verdict(None, f"{asked}; else {said}", tuple(rulings)) if asked else Verdict(True, said, tuple(rulings))


def policy_text(name: str) -> str:
    """Return a policy as people write it: `NAMESPACE/NAME rule INDEX`; "" for none."""
    found = _NAME.fullmatch(name)
    return f"{found[2]}/{found[3]} rule {found[4]}" if found else name


def _refusal(ruling: Ruling) -> str:
    if ruling.by and ruling.action == "CUSTOM":
        return f"denied: the authorizer that {policy_text(ruling.by)} names cannot be asked"
    if ruling.by:
        return f"denied by {policy_text(ruling.by)} ({ruling.action})"
    return "denied: there are ALLOW policies, and none of them holds"


def _messages(chain: FilterChain) -> Iterator[Message]:
    """Yield the configurations of a chain's filters in the order in which they are asked."""
    for message in filters_of(chain):
        yield message
        if isinstance(message, HttpConnectionManager):
            for each in message.http_filters:
                inner = unpacked(each.typed_config)
                if inner is not None:
                    yield inner


def _rulings(messages: Iterable[Message], attempt: Attempt) -> Iterator[Ruling]:
    meant: Judged | None = None
    noted: tuple[Judged, ...] = ()
    for message in messages:
        if isinstance(message, http_rbac.RBAC | network_rbac.RBAC):
            if message.shadow_rules_stat_prefix == ASKS:
                noted = judge(message.shadow_rules, attempt)
                meant = _first(noted)
                continue
            if message.HasField("rules"):
                yield _ruling(message.rules, attempt, dry_run=False)
            if message.HasField("shadow_rules"):
                yield _ruling(message.shadow_rules, attempt, dry_run=True)
        elif isinstance(message, ExtAuthz | NetworkExtAuthz):
            by = meant.policy if meant is not None else ""
            yield Ruling("CUSTOM", "ask" if by else "none", by, noted)


def _ruling(rules: RBAC, attempt: Attempt, *, dry_run: bool) -> Ruling:
    judged = judge(rules, attempt)
    found = _first(judged)
    by = found.policy if found is not None else ""
    action = "CUSTOM" if any((named := _NAME.fullmatch(name)) and named["provider"] for name in rules.policies) else ""
    if rules.action == RBAC.ALLOW:
        decision = "allow" if by else "deny"
    else:
        decision = "deny" if by and rules.action == RBAC.DENY else "none"
    return Ruling(action or _ACTIONS[rules.action], decision, by, judged, dry_run)


def _first(judged: Iterable[Judged]) -> Judged | None:
    return next((each for each in judged if each.holds), None)
