"""The edge to the kernel's nf_tables: write the table, read it back, remove it. One netlink batch is one transaction.

No state is kept and none is needed: what is in the table `inet hostmesh` is ours.
"""

# mypy: disable-error-code="import-untyped"
# (pyroute2 ships no types)

import asyncio
import errno
import os
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final, TypeVar

from pyroute2.netlink import NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.nfnetlink import NFNL_SUBSYS_NFTABLES
from pyroute2.netlink.nfnetlink.nftsocket import AsyncNFTSocket

from hostmesh_agent.capture import attributes, decode, encode
from hostmesh_agent.capture.attributes import Attributes, Kind, Message
from hostmesh_agent.capture.errors import CaptureError
from hostmesh_agent.capture.rules import TABLE_NAME, Table

_ANSWER_WITHIN_S: Final = 10.0  # the kernel answers in milliseconds; a lost answer must not hold the agent
_TRIES: Final = 5
_OF_ANOTHER_STATE: Final = {errno.ENOENT, errno.EEXIST, errno.EBUSY, errno.ENOTEMPTY}
"""How a batch fails that was made for another state than there is (changed meanwhile, or not all of it is told)."""
_READS: Final = 10  # a dump is several requests: read again where somebody changed any table between them

T = TypeVar("T")


def write(table: Table) -> None:
    """Make the kernel's table equal to `table`, from whatever it is, in one step or not at all.

    Raises:
        CaptureError: the kernel refused; its table is what it was.
    """
    _run(lambda nft: _write(nft, table), "write the capture rules")


def remove() -> None:
    """Remove the table. No error if there is none.

    Raises:
        CaptureError: the kernel refused; the table is what it was.
    """
    _run(_remove_if_there, "remove the capture rules")


def read() -> Table | None:
    """Return what the kernel has in our table, None if there is no such table.

    Raises:
        CaptureError: the kernel refused, or others change its tables faster than they can be read.
    """
    return _run(_read_steady, "read the capture rules")


def _run(act: Callable[[Any], Awaitable[T]], doing: str) -> T:
    async def bounded() -> T:
        nft = AsyncNFTSocket(nfgen_family=attributes.INET)
        try:
            nft.register_policy({NFNL_SUBSYS_NFTABLES << 8 | kind: reply for kind, reply in attributes.REPLIES.items()})
            async with asyncio.timeout(_ANSWER_WITHIN_S):
                await _generation(nft)  # tells no nf_tables or no right by a plain error, which a batch does not
                return await act(nft)
        finally:
            nft.close()

    try:
        return asyncio.run(bounded())
    except NetlinkError as error:
        raise CaptureError(_explain(error, doing)) from error
    except (OSError, TimeoutError) as error:
        raise CaptureError(f"could not {doing}: {error or 'the kernel gave no answer'}") from error


def _explain(error: NetlinkError, doing: str) -> str:
    if error.code in {errno.ENOENT, errno.EOPNOTSUPP, errno.EINVAL, errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT}:
        return (
            f"could not {doing}: the kernel has no nf_tables, or lacks a part of it "
            f"(modules nf_tables, nft_chain_nat, nft_redir, nft_nat, nft_fib_inet): {os.strerror(error.code)}"
        )
    if error.code == errno.EPERM:
        return f"could not {doing}: not permitted; capture needs CAP_NET_ADMIN, and a table that no other program owns"
    return f"could not {doing}: {os.strerror(error.code)}"


async def _batch(nft: Any, messages: Iterable[Message]) -> None:
    batch = list(messages)
    if batch:
        async for _ in nft.nlm_request_batch([encode.begin(), *batch, encode.end()]):
            pass


async def _write(nft: Any, table: Table) -> None:
    for _ in range(_TRIES):
        now = await _read_steady(nft)
        if now is not None and now.flags != table.flags:
            break  # flags cannot be changed
        try:
            await _batch(nft, encode.change(now, table))
        except NetlinkError as error:
            if error.code not in _OF_ANOTHER_STATE:
                raise
        else:
            return
    await _batch(nft, encode.replacement(table))


async def _remove_if_there(nft: Any) -> None:
    if await _table(nft) is not None:
        await _batch(nft, encode.removal())


async def _ask(nft: Any, message: Message, kind: Kind, flags: int) -> list[Attributes]:
    answers = await nft.nlm_request(message, NFNL_SUBSYS_NFTABLES << 8 | kind, flags)
    return [decode.flat(answer) async for answer in answers]


async def _generation(nft: Any) -> int:
    message = encode.request(attributes.GenerationMessage, {})
    answers = await _ask(nft, message, Kind.GET_GENERATION, NLM_F_REQUEST)
    return int(answers[0]["ID"])


async def _table(nft: Any) -> Attributes | None:
    message = encode.request(attributes.TableMessage, {"NAME": TABLE_NAME})
    try:
        answers = await _ask(nft, message, Kind.GET_TABLE, NLM_F_REQUEST | NLM_F_ACK)
    except NetlinkError as error:
        if error.code == errno.ENOENT:
            return None
        raise
    return answers[0]


async def _dump(nft: Any, message_class: type[Message], kind: Kind, **names: str) -> list[Attributes]:
    message = encode.request(message_class, {"TABLE": TABLE_NAME, **names})
    answers = await _ask(nft, message, kind, NLM_F_REQUEST | NLM_F_DUMP)
    # Older kernels do not filter a dump by table.
    return [answer for answer in answers if answer.get("TABLE") == TABLE_NAME]


async def _read_steady(nft: Any) -> Table | None:
    for _ in range(_READS):
        before = await _generation(nft)
        try:
            table = await _read_once(nft)
        except NetlinkError as error:
            if error.code not in {errno.ENOENT, errno.EINTR}:  # gone or changed while it was read
                raise
            continue
        if before == await _generation(nft):
            return table
    raise CaptureError("could not read the capture rules: another program keeps changing nftables")


async def _read_once(nft: Any) -> Table | None:
    table = await _table(nft)
    if table is None:
        return None
    rules = await _dump(nft, attributes.RuleMessage, Kind.GET_RULE)
    chains = [
        decode.read_chain(chain, [decode.read_rule(rule) for rule in rules if rule["CHAIN"] == chain["NAME"]])
        for chain in await _dump(nft, attributes.ChainMessage, Kind.GET_CHAIN)
    ]
    sets = []
    for found in await _dump(nft, attributes.SetMessage, Kind.GET_SET):
        lists = await _dump(nft, attributes.SetElementsMessage, Kind.GET_SET_ELEMENTS, SET=found["NAME"])
        sets.append(decode.read_set(found, [part.get("ELEMENTS", b"") for part in lists]))
    return decode.read_table(table, sets, chains)
