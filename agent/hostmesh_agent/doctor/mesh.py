"""Judges of Envoy, of the rules and ports, of names, and of the way to the controllers. Pure."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from hostmesh_agent.doctor.ailments import Finding
from hostmesh_agent.doctor.facts import ControllerFacts, EnvoyFacts, RuleFacts
from hostmesh_agent.name_findings import NameFinding

OF_NAMES: Final[Mapping[str, str]] = {
    "names-not-in-place": "HM-D101",
    "names-not-answered": "HM-D102",
    "names-partly": "HM-D103",
    "names-not-over-tcp": "HM-D104",
    "resolvers-out-of-reach": "HM-D105",
    "mesh-not-first": "HM-D106",
    "resolved-absent": "HM-D107",
    "nss-resolve-without-resolved": "HM-D108",
    "resolvers-changed": "HM-D110",
}
"""Codes of `name_findings`, as the doctor tells them."""

_OF_ANOTHER_ROOT: Final = ("local issuer certificate", "self-signed certificate", "self signed certificate")
"""What OpenSSL says where nobody that the host trusts has signed."""
_ANOTHER_ROOT: Final = (
    "no root that this host knows has signed it: is it another mesh's controller, or restored from a backup that is "
    "older than the last `hostmesh ca revoke`? Restore a newer one; else join again with a new join string "
    "(hostmesh-agent join --force)"
)


def judge_names(found: Iterable[NameFinding], silent: Iterable[str]) -> Iterator[Finding]:
    """Yield the findings about names. `silent` are resolvers that were asked and gave no answer."""
    yield from (Finding(OF_NAMES[each.code], each.what, each.cure) for each in found)
    yield from (Finding("HM-D109", f"{each} gives no answer") for each in silent)


def judge_controllers(controllers: Iterable[ControllerFacts]) -> Iterator[Finding]:
    """Yield what is wrong on the way to them. Where one is well, an address at which nobody answers does no harm."""
    found = list(controllers)
    reached = any(not each.tcp and each.tls == "" and not each.not_valid_now for each in found)
    for each in found:
        if each.tcp:
            yield Finding("HM-N104" if reached else "HM-N101", f"{each.endpoint}: {each.tcp}")
        elif each.not_valid_now:
            yield Finding("HM-T103", f"{each.endpoint}: {each.not_valid_now}")
        elif each.tls and each.timed_out:
            yield Finding("HM-N103", f"{each.endpoint}: {each.tls}")
        elif each.tls:
            unknown = any(said in each.tls for said in _OF_ANOTHER_ROOT)
            yield Finding("HM-N102", f"{each.endpoint}: {each.tls}", _ANOTHER_ROOT if unknown else "")


def judge_envoy(facts: EnvoyFacts, *, joined: bool) -> Iterator[Finding]:
    if facts.held:
        yield Finding("HM-E107", "the file `hold` is in its directory")
    elif facts.pid is None and joined:
        words = f"; its last words: {facts.last_words}" if facts.last_words else ""
        yield Finding("HM-E101", f"no process is the recorded one{words}")
    if facts.pid is not None and facts.answers is False:
        yield Finding("HM-E102", f"process {facts.pid} does not answer on its admin socket")
    if facts.binary_problem:
        yield Finding("HM-E103", facts.binary_problem)


def judge_rules(facts: RuleFacts, *, agent: bool, joined: bool) -> Iterator[Finding]:
    """Yield what is wrong with the rules in the kernel. What a running agent says of them counts, too."""
    if facts.error and not agent:
        yield Finding("HM-R101", facts.error)
    if facts.state == "on" and not joined:
        yield Finding("HM-R104", "the table inet hostmesh is there, and this host has not joined")
    if facts.state == "on":
        for each in facts.foreign:
            yield Finding("HM-R103", f"table {each.table}, chain {each.chain}: {each.hook} at priority {each.priority}")
    for port, whose in sorted(facts.taken.items()):
        yield Finding("HM-P101", f"port {port} is that of {whose}")
