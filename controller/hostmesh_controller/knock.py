"""Is a host's kernel alive? It is asked for a connection: an acceptance and a refusal are answers, silence is none."""

import asyncio
import errno
from collections.abc import Sequence
from typing import Final

from hostmesh_api.wire import INBOUND_PORT

KNOCK_S: Final = 1.5
"""Long enough for the kernel's second try, after a second: one lost packet is no death."""
_OUR_OWN: Final = frozenset({errno.ENETUNREACH, errno.ENETDOWN, errno.EADDRNOTAVAIL, errno.EMFILE, errno.ENFILE})
"""This machine could not even ask."""


async def answers(addresses: Sequence[str], port: int = INBOUND_PORT, within_s: float = KNOCK_S) -> bool | None:
    """Tell whether one of a host's addresses answers.

    Envoy's port for captured connections is asked: an Envoy that takes one and gets no byte counts nothing. Nothing is
    sent but a SYN and, where it is accepted, an end.

    Returns:
        None: it cannot be told, because this machine cannot ask, or knows no address.
    """
    if not addresses:
        return None
    found = await asyncio.gather(*(_answers(each, port, within_s) for each in addresses))
    if any(found):
        return True
    return None if all(each is None for each in found) else False


async def _answers(address: str, port: int, within_s: float) -> bool | None:
    try:
        async with asyncio.timeout(within_s):
            _, writer = await asyncio.open_connection(address, port)
    except ConnectionError:
        return True
    except TimeoutError:
        return False
    except OSError as error:
        return None if error.errno in _OUR_OWN else False
    writer.transport.abort()
    return True
