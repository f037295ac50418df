"""Rules of a VirtualService that no request can reach, and matches that an earlier one takes."""

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from hostmesh_controller.checks.finding import Finding
from hostmesh_controller.model import Path
from hostmesh_controller.model.schema import Spec
from hostmesh_controller.model.virtual_service import HttpMatch, HttpRoute, StringMatch, VirtualServiceSpec


class _Rule(NamedTuple):
    """What the order of rules is about, whatever their protocol."""

    name: str
    matches: Sequence[Spec]


def check_route_order(spec: VirtualServiceSpec) -> Iterator[Finding]:
    """Yield rules that are never used and matches that have no effect, as Istio's webhook warns of them."""
    yield from _check_rules(
        "http", [_Rule(_name(each.name, index), each.match) for index, each in enumerate(spec.http)]
    )
    yield from _check_prefixes(spec.http)
    yield from _check_rules("tls", [_Rule(f"#{index}", each.match) for index, each in enumerate(spec.tls)])
    yield from _check_rules("tcp", [_Rule(f"#{index}", each.match) for index, each in enumerate(spec.tcp)])


def _name(name: str | None, index: int) -> str:
    return repr(name) if name else f"#{index}"


def _check_rules(protocol: str, rules: Sequence[_Rule]) -> Iterator[Finding]:
    first: dict[str, str] = {}
    catch_all: str | None = None
    for index, rule in enumerate(rules):
        path: Path = ("spec", protocol, index)
        if catch_all is not None:
            message = f"rule {catch_all} before it has no match and takes everything; move this rule before it"
            yield Finding(path, f"this rule is never used: {message}", "unreachable-rule", istio_code="IST0130")
        if not rule.matches:
            catch_all = catch_all or rule.name
            continue
        if catch_all is not None:
            continue
        taken = 0
        for place, match in enumerate(rule.matches):
            content = _content(match)
            if content in first:
                taken += 1
                message = f"rule {first[content]} has the same match before it: this one has no effect; remove it"
                yield Finding((*path, "match", place), message, "ineffective-match", "info", "IST0131")
            else:
                first[content] = rule.name
        if taken == len(rule.matches):
            message = (
                "this rule is never used: rules before it have all its matches; remove it, or change what it matches"
            )
            yield Finding(path, message, "unreachable-rule", istio_code="IST0130")


def _content(match: Spec) -> str:
    return json.dumps({key: value for key, value in match.to_dict().items() if key != "name"}, sort_keys=True)


class _Prefix(NamedTuple):
    """A match by the beginning of the path, with what else it asks for; as Istio compares them."""

    path: Path
    rule: str
    prefix: str
    match: HttpMatch


def _check_prefixes(rules: Sequence[HttpRoute]) -> Iterator[Finding]:
    earlier: defaultdict[str, list[_Prefix]] = defaultdict(list)
    for later in _prefixes(rules):
        shorter = (later.prefix[:end] for end in range(1, len(later.prefix)))
        covering = next((each for text in shorter for each in earlier.get(text, ()) if _covers(each, later)), None)
        earlier[later.prefix].append(later)
        if covering is not None:
            message = (
                f"rule {covering.rule} before it matches the prefix {covering.prefix!r} and so all that this one does: "
                "move the longer prefix first"
            )
            yield Finding(later.path, message, "ineffective-match", "info", "IST0131")


def _prefixes(rules: Sequence[HttpRoute]) -> Iterator[_Prefix]:
    for index, rule in enumerate(rules):
        for place, match in enumerate(rule.match):
            if match.uri is not None and match.uri.prefix:
                yield _Prefix(("spec", "http", index, "match", place), _name(rule.name, index), match.uri.prefix, match)


def _covers(earlier: _Prefix, later: _Prefix) -> bool:
    """Tell whether all that the later one matches was matched by the earlier one, whose prefix is shorter."""
    a, b = earlier.match, later.match
    if a.ignore_uri_case < b.ignore_uri_case or (a.port is not None and a.port != b.port):
        return False
    if not a.source_labels.items() <= b.source_labels.items():
        return False
    if a.source_namespace and a.source_namespace != b.source_namespace:
        return False
    if a.gateways and not (b.gateways and set(b.gateways) <= set(a.gateways)):
        return False
    return (
        all(_implied(mine, theirs) for mine, theirs in ((a.scheme, b.scheme), (a.method, b.method)))
        and _implied(a.authority, b.authority)
        and all(_implied(match, b.headers.get(name)) for name, match in a.headers.items())
        and all(_implied(match, b.query_params.get(name)) for name, match in a.query_params.items())
        and all(b.without_headers.get(name) == match for name, match in a.without_headers.items())
    )


def _implied(wanted: StringMatch | None, given: StringMatch | None) -> bool:
    """Tell whether whatever fits `given` fits `wanted`; None fits everything."""
    if wanted is None:
        return True
    if given is None:
        return False
    if wanted == given:
        return True
    value = given.exact or given.prefix
    return bool(wanted.prefix and value and value.startswith(wanted.prefix))
