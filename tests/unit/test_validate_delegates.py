"""VirtualServices that leave routes to others."""

import pytest

from checking import codes, findings, istio, losses
from hostmesh_controller.checks.delegates import conflicting
from hostmesh_controller.model import ObjectKey
from hostmesh_controller.model.http_match import HttpMatch


def root(delegate: str, match: str = "uri: {prefix: /a}", name: str = "root") -> str:
    rule = f"{{match: [{{{match}}}], delegate: {{{delegate}}}}}"
    return istio("VirtualService", name, f"hosts: [a.test], http: [{rule}]")


def leaf(match: str = "", rest: str = "", namespace: str = "default") -> str:
    matches = f"match: [{{{match}}}], " if match else ""
    return istio("VirtualService", "leaf", f"http: [{{{matches}directResponse: {{status: 200}}}}]{rest}", namespace)


def test_a_delegate_that_is_there_and_used_is_fine() -> None:
    assert codes(root("name: leaf"), leaf()) == []
    assert codes(leaf(), root("name: leaf")) == []
    assert codes(root("name: leaf, namespace: other"), leaf(namespace="other")) == []


def test_a_delegate_that_is_not_there_is_a_warning_with_the_nearest_name() -> None:
    assert findings(root("name: laef"), leaf()) == [
        "f.yaml:4: warning: spec.http[0].delegate: there is no VirtualService default/laef; did you mean "
        "'default/leaf'?: requests of this rule get 404"
    ]
    assert codes(root("name: leaf"), leaf(namespace="other")) == ["IST0101 unknown-delegate spec.http[0].delegate"]


def test_a_delegate_that_is_not_exported_to_the_root_is_a_warning() -> None:
    kept = leaf(rest=", exportTo: ['.']", namespace="other")
    assert codes(root("name: leaf, namespace: other"), kept) == ["IST0101 unknown-delegate spec.http[0].delegate"]


def test_what_has_hosts_of_its_own_is_no_delegate() -> None:
    other = istio("VirtualService", "leaf", "hosts: [b.test], http: [{directResponse: {status: 200}}]")
    assert codes(root("name: leaf"), other) == ["bad-delegate spec.http[0].delegate"]


def test_a_route_that_the_root_lets_nothing_through_for_is_told_from_both_sides() -> None:
    wide = leaf("uri: {prefix: /b}")
    assert codes(root("name: leaf"), wide) == ["conflicting-delegate spec.http[0].delegate"]
    assert codes(wide, root("name: leaf")) == ["conflicting-delegate spec.http[0].match"]
    assert codes(leaf("uri: {prefix: /ab}"), root("name: leaf")) == []


def test_a_delegate_that_nobody_uses_is_told() -> None:
    assert findings(leaf()) == [
        "f.yaml:4: info: spec: it has no hosts, and no VirtualService delegates to it: it does nothing (yet?)"
    ]


def test_deleting_a_delegate_names_who_uses_it() -> None:
    assert losses([ObjectKey("VirtualService", "default", "leaf")], leaf() + root("name: leaf")) == [
        "VirtualService default/leaf: warning: VirtualService default/root leaves routes to it: such requests get 404"
    ]


@pytest.mark.parametrize(
    ("above", "below", "expected"),
    [
        ({"uri": {"prefix": "/a"}}, {"uri": {"exact": "/a/b"}}, False),
        ({"uri": {"prefix": "/a"}}, {"uri": {"exact": "/b"}}, True),
        ({"uri": {"exact": "/a"}}, {"uri": {"prefix": "/a"}}, True),
        ({"uri": {"exact": "/a"}}, {"uri": {"exact": "/a"}}, False),
        ({"uri": {"regex": "/a.*"}}, {"uri": {"prefix": "/a"}}, True),
        ({"uri": {"regex": "/a.*"}}, {"headers": {"x": {"exact": "1"}}}, False),
        ({"method": {"exact": "GET"}}, {"method": {"exact": "POST"}}, True),
        ({"headers": {"x": {"exact": "1"}}}, {"headers": {"x": {"exact": "2"}}}, True),
        ({"headers": {"x": {"exact": "1"}}}, {"headers": {"y": {"exact": "2"}}}, False),
        ({"queryParams": {"x": {"exact": "1"}}}, {"queryParams": {"x": {"prefix": "1"}}}, True),
        ({"port": 80}, {"port": 81}, True),
        ({"port": 80}, {}, False),
        ({"ignoreUriCase": True}, {}, True),
        ({"sourceNamespace": "a"}, {}, True),
        ({"sourceNamespace": "a"}, {"sourceNamespace": "a"}, False),
        ({"sourceLabels": {"a": "1"}}, {"sourceLabels": {"a": "2"}}, True),
        ({"sourceLabels": {"a": "1"}}, {"sourceLabels": {"b": "2"}}, False),
        ({"gateways": ["mesh"]}, {"gateways": ["g"]}, True),
        ({"gateways": ["mesh", "g"]}, {"gateways": ["g"]}, False),
    ],
)
def test_a_delegates_match_must_be_within_the_roots(
    above: dict[str, object], below: dict[str, object], expected: bool
) -> None:
    matches = HttpMatch.model_validate(above), HttpMatch.model_validate(below)
    assert conflicting((matches[0],), (matches[1],)) is expected
    assert not conflicting((), (matches[1],))
    assert not conflicting((matches[0],), ())
