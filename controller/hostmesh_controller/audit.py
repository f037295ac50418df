"""The audit log is kept within its bounds while the controller runs."""

import asyncio
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

import structlog

from hostmesh_controller.config import Audit
from hostmesh_controller.store import Store, StoreError

_LOOK_S: Final = 3600.0

_log = structlog.stdlib.get_logger(__name__)


async def keep_bounded(store: Store, bounds: Audit, now: Callable[[], datetime]) -> None:
    """Delete what is older or more than it may be, at once and every hour, until cancelled."""
    while True:
        try:
            gone = await asyncio.to_thread(prune, store, bounds, now())
            if gone:
                _log.info("audit records pruned", records=gone, keep_days=bounds.keep_days)
        except StoreError as error:
            _log.error("the audit log cannot be pruned", error=str(error))
        await asyncio.sleep(_LOOK_S)


def prune(store: Store, bounds: Audit, now: datetime) -> int:
    """Delete what is older or more than it may be; return how many records that were."""
    return store.prune_audit(now - timedelta(days=bounds.keep_days), bounds.keep_records)
