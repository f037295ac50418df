"""The edge to the kernel's nf_tables: write the table, read it back, remove it. One netlink batch is one transaction.

No state is kept and none is needed: what is in the table `inet hostmesh` is ours.
"""

# mypy: disable-error-code="misc,import-untyped"
# (pyroute2 ships no types: its base classes are Any)

import asyncio
import errno
import os
import socket
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, TypeVar

from pyroute2.netlink import NETLINK_NETFILTER, NLM_F_DUMP, NLMSG_DONE, NLMSG_ERROR, nlmsg
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.nfnetlink import NFNL_SUBSYS_NFTABLES
from pyroute2.netlink.nlsocket import AsyncNetlinkSocket

from hostmesh_agent.capture import attributes, decode, encode
from hostmesh_agent.capture.attributes import Kind
from hostmesh_agent.capture.codec import Attributes, Layout
from hostmesh_agent.capture.encode import Message
from hostmesh_agent.capture.errors import CaptureError
from hostmesh_agent.capture.foreign import ForeignChain, called
from hostmesh_agent.capture.owner import NOT_SUPPORTED, OWNED, PERSISTS, Owner
from hostmesh_agent.capture.rules import (
    TABLE_NAME,
    Backend,
    Chain,
    Compare,
    Hook,
    Return,
    Rule,
    SocketCgroup,
    Table,
)

_ANSWER_WITHIN_S: Final = 10.0  # the kernel answers in milliseconds; a lost answer must not hold the agent
_SO_SNDBUFFORCE: Final = 32  # asm-generic/socket.h; Python does not name it
_FOREIGN_CHAINS, _FOREIGN_BEHIND, _FOREIGN_RULES = 64, 16, 500
"""What of others is read at most: a look must stay a matter of milliseconds."""
_BATCH_BYTES: Final = 64 << 20
"""A batch cannot be sent in parts; what hosts allow by default (net.core.wmem_max) holds 4,000 prefixes per family."""
_TRIES: Final = 5
_OF_ANOTHER_STATE: Final = {errno.ENOENT, errno.EEXIST, errno.EBUSY, errno.ENOTEMPTY}
"""How a batch fails that was made for another state than there is (changed meanwhile, or not all of it is told)."""
_FAMILY_AT: Final = 16  # nfgen_family of struct nfgenmsg, behind struct nlmsghdr
_READS: Final = 10  # a dump is several requests: read again where somebody changed any table between them

_REPLIES: Final = (
    Kind.NEW_TABLE,
    Kind.NEW_CHAIN,
    Kind.NEW_RULE,
    Kind.NEW_SET,
    Kind.NEW_SET_ELEMENTS,
    Kind.NEW_GENERATION,
)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Reading:
    """What the kernel has in our table (None: there is no such table), and nf_tables' generation that it was read in.

    Every change of any table gives the generation another number: while it is the same, so is the table. `ownership`
    are the flags that say whether the table has an owner (see `owner`); they are not in the table.
    """

    table: Table | None
    generation: int
    ownership: int = 0

    @property
    def backend(self) -> Backend:
        return Backend.NFTABLES if self.table is None else self.table.backend


class Packed(nlmsg):
    """What goes through pyroute2's socket, as bytes: several messages of a batch one way, one answer the other way."""

    messages: tuple[Message, ...] = ()
    attributes: bytes = b""
    family: int = 0

    def encode(self) -> None:
        number = self["header"]["sequence_number"]
        self.data = b"".join([message.pack(number) for message in self.messages])

    def decode(self) -> None:
        super().decode()
        self.family = self.data[self.offset + _FAMILY_AT]
        self.attributes = bytes(self.data[self.offset + encode.HEADER.size : self.offset + self.length])


def write(table: Table, owner: Owner | None = None) -> Reading:
    """Make the kernel's table equal to `table`, from whatever it is, in one step or not at all; return it as read back.

    A table that is made anew, or whose owner is gone, belongs to `owner` then, if the kernel can do that. One that was
    made without an owner stays so: flags cannot be changed, and making it anew would let connections past it.

    Raises:
        CaptureError: the kernel refused; its table is what it was.
    """
    return _run(lambda nft: _write(nft, table, owner), "write the capture rules")


def remove(owner: Owner | None = None) -> None:
    """Remove the table. No error if there is none.

    Raises:
        CaptureError: the kernel refused; the table is what it was.
    """
    _run(lambda nft: _remove_if_there(nft, owner), "remove the capture rules")


def read() -> Table | None:
    """Return what the kernel has in our table, None if there is no such table.

    Raises:
        CaptureError: the kernel refused, or others change its tables faster than they can be read.
    """
    return look().table


def look() -> Reading:
    """Like `read`, with the generation.

    Raises:
        CaptureError: as with `read`.
    """
    return _run(_read_steady, "read the capture rules")


def knows_cgroups() -> bool:
    """Tell whether the kernel can match the cgroup of a socket; not if it does not let us ask."""
    rule = Rule((SocketCgroup(1), Compare(bytes(8)), Return()))
    return knows(Chain("asks", "filter", Hook.OUTPUT, 0, (rule,)))


def knows(*chains: Chain) -> bool:
    """Tell whether the kernel would take such chains, which name no sets; not if it does not let us ask."""
    try:
        _run(lambda nft: _batch(nft, encode.asked(*chains)), "ask what the kernel knows")
    except CaptureError:
        return False
    return True


def foreign(*, behind: bool = False) -> tuple[ForeignChain, ...]:
    """Return the chains of other programs' tables that are asked before ours, and those that these call.

    Nothing is changed. `behind`: also those that lead arrivals elsewhere behind ours; no others are read.

    Raises:
        CaptureError: the kernel refused, or its tables were changed meanwhile.
    """
    return _run(partial(_foreign, behind=behind), "read other programs' chains")


def _run(act: Callable[[Any], Awaitable[T]], doing: str) -> T:
    found: list[T] = []

    async def bounded() -> None:
        nft = AsyncNetlinkSocket(family=NETLINK_NETFILTER)
        try:
            nft.register_policy({NFNL_SUBSYS_NFTABLES << 8 | kind: Packed for kind in _REPLIES})
            async with asyncio.timeout(_ANSWER_WITHIN_S):
                # Not returned: in the main thread asyncio.run makes a text of the finished task, with all it returns.
                found.append(await act(nft))
        finally:
            nft.close()

    try:
        asyncio.run(bounded())
    except NetlinkError as error:
        raise CaptureError(_explain(error, doing)) from error
    except (OSError, TimeoutError) as error:
        raise CaptureError(f"could not {doing}: {error or 'the kernel gave no answer'}") from error
    return found[0]


def _explain(error: NetlinkError, doing: str) -> str:
    if error.code in {errno.ENOENT, errno.EOPNOTSUPP, errno.EINVAL, errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT}:
        return (
            f"could not {doing}: the kernel has no nf_tables, or lacks a part of it "
            f"(modules nf_tables, nft_chain_nat, nft_redir, nft_nat, nft_fib_inet): {os.strerror(error.code)}"
        )
    if error.code == errno.EPERM:
        return (
            f"could not {doing}: not permitted; capture needs CAP_NET_ADMIN, and the rules are not those of a running "
            "agent (only that one can change them: if it does not answer, end it first)"
        )
    return f"could not {doing}: {os.strerror(error.code)}"


async def _batch(nft: Any, messages: Iterable[Message], owner: Owner | None = None) -> None:
    batch = tuple(messages)
    if not batch:
        return
    if owner is not None:
        owner.send(batch, _BATCH_BYTES)
        return
    with suppress(PermissionError):  # an older kernel, to root of a user namespace only
        nft.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _BATCH_BYTES)
    await _ask(nft, *encode.batch(batch))


async def _write(nft: Any, table: Table, owner: Owner | None) -> Reading:
    for _ in range(_TRIES):
        now = await _read_steady(nft)
        mine = _owning(now, owner)
        takes_over = mine is not None and now.ownership == PERSISTS
        if now.table == table and not takes_over:
            return now
        if now.table is not None and now.table.flags != table.flags:
            break  # flags cannot be changed
        wanted = replace(table, flags=OWNED | PERSISTS) if mine is not None and now.table is None else table
        try:
            if takes_over:
                # By itself: a table that is taken over gets no new base chain in the same batch (EINVAL).
                await _batch(nft, [encode.taking_over(OWNED | PERSISTS)], mine)
            await _batch(nft, encode.change(now.table, wanted), mine)
        except NetlinkError as error:
            if mine is not None and now.table is None and error.code in NOT_SUPPORTED:
                mine.supported = False
            elif error.code not in _OF_ANOTHER_STATE:
                raise
        else:
            return await _read_steady(nft)
    mine = _owning(await _read_steady(nft), owner)
    await _batch(nft, encode.replacement(table), mine)
    return await _read_steady(nft)


def _owning(now: Reading, owner: Owner | None) -> Owner | None:
    """Return through whom the table is changed; None: through anybody."""
    if owner is None or not owner.supported:
        return None
    return owner if now.table is None or now.ownership & PERSISTS else None


async def _remove_if_there(nft: Any, owner: Owner | None) -> None:
    now = await _read_steady(nft)
    if now.table is None:
        return
    mine = _owning(now, owner)
    first = [encode.taking_over(OWNED | PERSISTS)] if mine is not None and now.ownership == PERSISTS else []
    await _batch(nft, [*first, *encode.removal()], mine)


async def _ask(nft: Any, *messages: Message) -> list[bytes]:
    """Return the attributes of each answer; acknowledgements have none and are left out."""
    return [attributes for _, attributes in await _answers(nft, *messages)]


async def _answers(nft: Any, *messages: Message) -> list[tuple[int, bytes]]:
    """Return the address family and the attributes of each answer."""
    packed = Packed()
    packed.messages = messages
    answers = await nft.nlm_request(packed, messages[0].kind, messages[0].flags)
    told = [each async for each in answers if each["header"]["type"] not in {NLMSG_DONE, NLMSG_ERROR}]
    return [(each.family, each.attributes) for each in told]


async def _generation(nft: Any) -> int:
    (answer,) = await _ask(nft, encode.request(Kind.GET_GENERATION, 0, attributes.GENERATION, {}))
    return int(attributes.GENERATION.unpack(answer)["ID"])


async def _table(nft: Any) -> Attributes | None:
    try:
        (answer,) = await _ask(nft, encode.request(Kind.GET_TABLE, 0, attributes.TABLE, {"NAME": TABLE_NAME}))
    except NetlinkError as error:
        if error.code == errno.ENOENT:
            return None
        raise
    return attributes.TABLE.unpack(answer)


async def _dump(nft: Any, kind: Kind, layout: Layout, **names: str) -> list[Attributes]:
    answers = await _ask(nft, encode.request(kind, NLM_F_DUMP, layout, {"TABLE": TABLE_NAME, **names}))
    # Older kernels do not filter a dump by table.
    return [each for each in map(layout.unpack, answers) if each.get("TABLE") == TABLE_NAME]


async def _read_steady(nft: Any) -> Reading:
    # Asked first, this also tells no nf_tables or no right by a plain error.
    before = await _generation(nft)
    for _ in range(_READS):
        try:
            table, ownership = await _read_once(nft)
        except NetlinkError as error:
            if error.code not in {errno.ENOENT, errno.EINTR}:  # gone or changed while it was read
                raise
            before = await _generation(nft)
            continue
        after = await _generation(nft)
        if before == after:
            return Reading(table, after, ownership)
        before = after
    raise CaptureError("could not read the capture rules: another program keeps changing nftables")


async def _read_once(nft: Any) -> tuple[Table | None, int]:
    told = await _table(nft)
    if told is None:
        return None, 0
    flags = int(told.get("FLAGS", 0))
    rules: defaultdict[str, list[Rule]] = defaultdict(list)
    for rule in await _dump(nft, Kind.GET_RULE, attributes.RULE):
        rules[rule["CHAIN"]].append(decode.read_rule(rule))
    chains = [
        decode.read_chain(chain, rules[chain["NAME"]]) for chain in await _dump(nft, Kind.GET_CHAIN, attributes.CHAIN)
    ]
    sets = []
    for found in await _dump(nft, Kind.GET_SET, attributes.SET):
        lists = await _dump(nft, Kind.GET_SET_ELEMENTS, attributes.SET_ELEMENTS, SET=found["NAME"])
        sets.append(decode.read_set(found, [part.get("ELEMENTS", b"") for part in lists]))
    whole = decode.read_table({**told, "FLAGS": flags & ~(OWNED | PERSISTS)}, sets, chains)
    return whole, flags & (OWNED | PERSISTS)


async def _foreign(nft: Any, *, behind: bool) -> tuple[ForeignChain, ...]:
    everything = replace(encode.request(Kind.GET_CHAIN, NLM_F_DUMP, attributes.CHAIN, {}), family=0)
    told = [(family, attributes.CHAIN.unpack(each)) for family, each in await _answers(nft, everything)]
    chains = {
        (family, each["TABLE"], each["NAME"]): decode.foreign_chain(family, each)
        for family, each in told
        if (family, each["TABLE"]) != (attributes.INET, TABLE_NAME)
    }
    found: dict[_Place, ForeignChain] = {}
    await _rules_of(nft, chains, [key for key, each in chains.items() if each.earlier], found, _FOREIGN_CHAINS)
    if behind:
        later = [key for key, each in chains.items() if each.translates_arrivals and not each.earlier]
        # Few: those of a cluster's services are thousands, and change all day.
        await _rules_of(nft, chains, later, found, min(len(found) + _FOREIGN_BEHIND, _FOREIGN_CHAINS))
    return tuple(found.values())


_Place = tuple[int, str, str]


async def _rules_of(
    nft: Any, chains: dict[_Place, ForeignChain], waiting: list[_Place], found: dict[_Place, ForeignChain], most: int
) -> None:
    """Find chains with their rules, and those that they call, breadth first."""
    while waiting and len(found) < most:
        key = waiting.pop(0)
        if key in found or key not in chains:
            continue
        family, table, name = key
        asked = encode.request(Kind.GET_RULE, NLM_F_DUMP, attributes.RULE, {"TABLE": table, "CHAIN": name})
        answers = await _answers(nft, replace(asked, family=family))
        rules = [attributes.RULE.unpack(each) for of, each in answers if of == family]
        # Older kernels do not filter a dump.
        mine = [each for each in rules if (each["TABLE"], each["CHAIN"]) == (table, name)]
        found[key] = replace(chains[key], rules=tuple(decode.foreign_rule(each) for each in mine[:_FOREIGN_RULES]))
        waiting += [(family, table, each) for rule in found[key].rules for each in called(rule)]
