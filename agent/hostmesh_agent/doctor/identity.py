"""Judges of certificates, of the files that hold them, and of the clock. Pure."""

from collections.abc import Iterator
from typing import Final

from hostmesh_agent.doctor.ailments import Finding
from hostmesh_agent.doctor.facts import IdentityFacts

LATE_SHARE: Final = 0.2
"""Of a certificate's life: renewed at half of it, so that with less left than this several tries have failed."""


def judge(facts: IdentityFacts) -> Iterator[Finding]:
    """Yield what is wrong, the worst first."""
    if not facts.joined:
        yield Finding("HM-A101", "this host has not joined a mesh")
    elif facts.problem and not any(name in facts.problem for name in facts.open_files):
        yield Finding("HM-C103", facts.problem)
    if facts.chain_problem:
        yield Finding("HM-C104", facts.chain_problem)
    yield from _in_time(facts)
    for name, what in sorted(facts.open_files.items()):
        yield Finding("HM-C106", f"{name}: {what}")
    if facts.synchronised is False:
        yield Finding("HM-T101", "the kernel says that nothing has synchronised its clock")


def _in_time(facts: IdentityFacts) -> Iterator[Finding]:
    start, end, now = facts.not_before, facts.not_after, facts.now
    if start is None or end is None:
        return
    if now < start:
        yield Finding(
            "HM-T102",
            f"it is {now:%Y-%m-%d %H:%M:%S} here, and the certificate begins at {start:%Y-%m-%d %H:%M:%S} UTC",
        )
    elif now >= end:
        yield Finding("HM-C101", f"it ended at {end:%Y-%m-%d %H:%M:%S} UTC")
    elif (end - now) < (end - start) * LATE_SHARE:
        yield Finding("HM-C102", f"it ends at {end:%Y-%m-%d %H:%M:%S} UTC, in {int((end - now).total_seconds())} s")
