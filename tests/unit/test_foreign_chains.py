"""What of other programs' chains is told: those before ours, with deeds that can be about what we capture."""

from dataclasses import replace
from typing import Any

import pytest

from hostmesh_agent.capture import CaptureRequest, HostFloor, plan
from hostmesh_agent.capture.attributes import EXPRESSION, FOREIGN_LAYOUTS, LIST_ELEMENT
from hostmesh_agent.capture.codec import NESTED, attribute
from hostmesh_agent.capture.decode import foreign_rule
from hostmesh_agent.capture.foreign import Expressions, ForeignChain, findings
from hostmesh_agent.capture.rules import Hook

OURS = plan(
    CaptureRequest(inbound_ports=frozenset({8080}), mesh_prefixes=frozenset({"10.1.0.0/16"}), dns=False),
    HostFloor(envoy_uid=900),
).table
TCP = (("meta", {"KEY": 16}), ("cmp", {"OP": 0, "DATA": {"VALUE": b"\6"}}))
REDIRECT: tuple[str, dict[str, Any]] = ("redir", {})
DROP = ("immediate", {"DATA": {"VERDICT": {"CODE": 0}}})
CHAIN = ForeignChain(2, "other", "theirs", "nat", Hook.PREROUTING, -200)


def loaded(base: int, offset: int, value: bytes) -> Expressions:
    return (
        ("payload", {"BASE": base, "OFFSET": offset, "LEN": len(value)}),
        ("cmp", {"OP": 0, "DATA": {"VALUE": value}}),
    )


def port(number: int) -> Expressions:
    return loaded(2, 2, number.to_bytes(2, "big"))


def told(*rules: Expressions, **chain: Any) -> list[tuple[str, bool]]:
    return [(each.does, each.certain) for each in findings([replace(CHAIN, rules=rules, **chain)], OURS)]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ((*TCP, *port(8080), REDIRECT), [("redirects", True)]),
        ((*TCP, *port(8081), REDIRECT), []),
        ((("meta", {"KEY": 16}), ("cmp", {"OP": 0, "DATA": {"VALUE": b"\x11"}}), REDIRECT), []),
        ((("match", {}), REDIRECT), [("redirects", False)]),
        ((*TCP, ("bitwise", {}), *TCP[1:], REDIRECT), [("redirects", False)]),
        ((("ct", {}), DROP), []),
        ((*TCP, DROP), [("drops", True)]),
        ((*TCP, ("nat", {"TYPE": 0})), []),
        ((*TCP, ("target", {"NAME": "DNAT"})), [("redirects", True)]),
        ((*TCP, ("target", {"NAME": "MARK"})), []),
    ],
)
def test_deeds_and_conditions(rule: Expressions, expected: list[tuple[str, bool]]) -> None:
    assert told(rule) == expected


def test_only_chains_before_ours_count_and_which_those_are_depends_on_their_kind() -> None:
    rule = (*TCP, REDIRECT)
    assert told(rule, priority=-110) == []
    assert told(rule, priority=-111) == [("redirects", True)]
    assert told((*TCP, DROP), kind="filter", priority=-105) == [("drops", True)]
    assert told((*TCP, DROP), kind="filter", priority=-100) == []
    assert told(rule, hook=Hook.PREROUTING + 1) == []
    assert told(rule, family=7) == []


def test_outbound_it_is_about_addresses_of_the_mesh() -> None:
    inside, outside = loaded(1, 16, b"\x0a\x01"), loaded(1, 16, b"\x0a\x02")
    assert told((*inside, *TCP, REDIRECT), hook=Hook.OUTPUT) == [("redirects", True)]
    assert told((*outside, *TCP, REDIRECT), hook=Hook.OUTPUT) == []
    assert told((*TCP, REDIRECT), hook=Hook.OUTPUT, family=10) == []  # nothing of ours is IPv6 here


def test_chains_that_are_called_are_followed_and_a_circle_ends() -> None:
    jump = ("immediate", {"DATA": {"VERDICT": {"CODE": -3, "CHAIN": "deep"}}})
    deep = ForeignChain(2, "other", "deep", rules=((*port(8080), REDIRECT), (jump,)))
    (found,) = findings([replace(CHAIN, rules=((*TCP, jump),)), deep], OURS)
    assert str(found) == (
        "chain theirs of table ip other (prerouting, -200) redirects connections before capture sees them (rule 1)"
    )
    assert findings([CHAIN], None) == ()


def test_targets_of_iptables_are_read_by_their_names() -> None:
    def packed(name: str, info: bytes) -> tuple[str, Any]:
        data = FOREIGN_LAYOUTS["target"].pack({"NAME": name, "REVISION": 2, "INFO": info})
        one = attribute(LIST_ELEMENT | NESTED, EXPRESSION.pack({"NAME": "target", "DATA": data}))
        ((_, found),) = foreign_rule({"EXPRESSIONS": one})
        return found["NAME"], found.get("NOTRACK")

    assert packed("CT", (1).to_bytes(2, "little") + bytes(20)) == ("CT", True)
    assert packed("CT", bytes(20)) == ("CT", False)
    assert packed("CT", b"") == ("CT", False)
    assert packed("DNAT", bytes(4)) == ("DNAT", None)
