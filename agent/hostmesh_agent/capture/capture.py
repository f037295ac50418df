"""Capture as one thing: put a request into force, tell what is in force, take everything back.

No state is needed: `state` looks into the kernel, `clear` works for a process that has never applied anything. What is
remembered is that all was well in one generation of nf_tables' rules: while the kernel tells the same generation,
nobody has changed any table, and reading ours would find the same. (A set that changes by itself would be an
exception; ours have no timeouts, and a rule that adds to them is a change.) Routes have no such number and are tried
each time.
"""

from dataclasses import dataclass
from typing import Literal

from hostmesh_agent.capture import doors, kernel, routes
from hostmesh_agent.capture.errors import CaptureError
from hostmesh_agent.capture.nft import Reading
from hostmesh_agent.capture.owner import Owner
from hostmesh_agent.capture.plan import CaptureRequest, HostFloor, PlanError, plan
from hostmesh_agent.capture.rules import Backend, Refusal, Ruleset, Table
from hostmesh_agent.capture.text import table_text
from hostmesh_agent.generation import generation

_OURS = {
    Backend.NFTABLES: "the table inet hostmesh is",
    Backend.IPTABLES: "what iptables has in the chains and sets HOSTMESH_* is",
}


@dataclass(frozen=True, slots=True)
class CaptureState:
    """What is in force now.

    Attributes:
        state: "on": rules are in the kernel; "off": none are; "error": they are not what was asked for.
        rules_hash: of the rules read back from the kernel; "" without rules.
        error: what went wrong and who must act; "" if nothing did.
        refused: what was asked for and is never done.
        missing: users and units that it is about and that are not there now.
    """

    state: Literal["on", "off", "error"]
    rules_hash: str = ""
    error: str = ""
    refused: tuple[Refusal, ...] = ()
    backend: Backend = Backend.NFTABLES
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Well:
    """A state without a problem, and the generation of nf_tables' rules in which it was found."""

    state: CaptureState
    generation: int


class Capture:
    """The host's capture. Methods block for milliseconds on the kernel: call them from a thread, not from a loop."""

    def __init__(self, owner: Owner | None = None) -> None:
        """`owner` is to whom the rules shall belong; None: to nobody."""
        self._owner = owner
        self._applied: Ruleset | None = None
        self._well: _Well | None = None

    def apply(self, request: CaptureRequest, floor: HostFloor) -> CaptureState:
        """Put `request` into force, from whatever is in force. On an error what was in force stays so."""
        try:
            ruleset = plan(request, floor)
            reading = apply(ruleset, self._owner)
        except (CaptureError, PlanError) as error:
            return CaptureState("error", rules_hash=_hash_now(), error=str(error))
        self._applied = ruleset
        return self._judged(reading, "")

    def state(self) -> CaptureState:
        """Return what the kernel has; an error where it is not what this process applied last."""
        if self._well is not None and self._unchanged(self._well):
            return self._well.state
        try:
            reading = kernel.look()
            problem = _problem(reading.table, self._applied) if self._applied else _left_over(reading.table)
        except CaptureError as error:
            self._well = None
            return CaptureState("error", error=str(error))
        return self._judged(reading, problem)

    def _unchanged(self, well: _Well) -> bool:
        if generation() != well.generation:
            return False
        if self._applied is None:
            return True
        it = self._applied
        return routes.in_place(it.virtual_prefixes, it.loopback_addresses, it.marked_home)

    def _judged(self, reading: Reading, problem: str) -> CaptureState:
        digest = reading.table.digest if reading.table is not None else ""
        refused = self._applied.refused if self._applied else ()
        backend = self._applied.table.backend if self._applied else reading.backend
        if problem:
            self._well = None
            return CaptureState("error", digest, problem, refused, backend)
        missing = self._applied.missing if self._applied else ()
        state = CaptureState("off", backend=backend)
        if digest:
            state = CaptureState("on", digest, refused=refused, backend=backend, missing=missing)
        # iptables has no such number: there each look is a look at the rules.
        self._well = _Well(state, reading.generation) if backend is Backend.NFTABLES else None
        return state

    def clear(self) -> CaptureState:
        """Take everything back, whoever applied it."""
        self._applied = self._well = None
        try:
            clear(self._owner)
        except CaptureError as error:
            return CaptureState("error", rules_hash=_hash_now(), error=str(error))
        return CaptureState("off")


def apply(ruleset: Ruleset, owner: Owner | None = None) -> Reading:
    """Make the kernel hold `ruleset`, check that it does, and return the table as it was read back.

    New routes go first, and those that are not needed any more last: a rule without its route captures nothing, a
    route without its rules harms nothing.

    Raises:
        CaptureError: the kernel refused, or holds something else than what was written.
    """
    needed = ruleset.virtual_prefixes, ruleset.loopback_addresses, ruleset.marked_home
    more = routes.add(*needed)
    try:
        reading = kernel.write(ruleset.table, owner)
    except CaptureError:
        if kernel.read() is None:
            routes.remove()
        raise
    if more:
        routes.write(*needed)
    problem = _problem(reading.table, ruleset)
    if problem:
        raise CaptureError(problem)
    return reading


def verify(ruleset: Ruleset) -> str:
    """Return what of `ruleset` is not in force, "" if all of it is.

    Raises:
        CaptureError: the kernel does not tell.
    """
    return _problem(kernel.read(), ruleset)


def _problem(table: Table | None, ruleset: Ruleset) -> str:
    if table is None:
        return f"{_OURS[ruleset.table.backend]} gone: another program removed it"
    if table != ruleset.table:
        return f"{_OURS[ruleset.table.backend]} not what was written: another program changed it"
    lacking = routes.lacking(ruleset.virtual_prefixes, ruleset.loopback_addresses, ruleset.marked_home)
    if lacking.prefixes:
        return f"there is no route to {', '.join(sorted(lacking.prefixes))}"
    if lacking.addresses:
        return f"the loopback interface has lost {', '.join(sorted(lacking.addresses))}"
    if lacking.marked:
        return "the routing rule or the route of mark 1506 is gone: another program removed it"
    return ""


def _left_over(table: Table | None) -> str:
    if table is None and routes.read():
        return "routes of capture are there without its rules: it was cleared half-way, clear it again"
    return ""


def clear(owner: Owner | None = None) -> None:
    """Leave the kernel as if we had never been there. Needs no agent, no controller and no state.

    Raises:
        CaptureError: the kernel refused.
    """
    kernel.remove(owner)
    routes.remove()


def clear_but_doors() -> None:
    """Like `clear`, but what leads to the second Envoy's own ports stays (see `doors`): it captures nothing.

    Raises:
        CaptureError: the kernel refused.
    """
    left = doors.alone(kernel.read())
    if left is None:
        return clear()
    kernel.write(left)
    return routes.remove()


def show() -> str:
    """Return the rules that the kernel holds, in nft's words; a line that says so if there are none.

    Raises:
        CaptureError: the kernel refused.
    """
    table = kernel.read()
    if table is None:
        return "# no table inet hostmesh: nothing is captured\n"
    return table_text(table) if table.backend is Backend.NFTABLES else f"# held by iptables\n{table_text(table)}"


def _hash_now() -> str:
    try:
        table = kernel.read()
    except CaptureError:
        return ""
    return table.digest if table else ""
