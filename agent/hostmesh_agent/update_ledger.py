"""What is known of updates, on disk: the last order of each component, and the floors. Twice, as the floor must hold.

<state_dir>/updates.json, updates.spare.json    with a checksum; what is damaged or gone is read from the other
"""

import json
import threading
from collections.abc import Callable, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

import structlog

from hostmesh_agent import update_order
from hostmesh_agent.state import StateError, read_private, write_private
from hostmesh_agent.update_order import Standing
from hostmesh_api.manifest import COMPONENTS

FILES: Final = ("updates.json", "updates.spare.json")

log = structlog.get_logger(__name__)


class Ledger:
    """Of one agent. `changed` is called whenever something was written down."""

    def __init__(self, state_dir: Path, changed: Callable[[], None]) -> None:
        self._state_dir = state_dir
        self._changed = changed
        self._standings = self._load()
        # The end of the agent is written down by another thread than what is under way.
        self._turn = threading.Lock()

    def of(self, component: str) -> Standing:
        return self._standings.get(component, Standing())

    def write(self, component: str, standing: Standing) -> None:
        """Write down where a component stands. Blocks. Raises OSError: nothing is to be done by it."""
        self.change(component, lambda _: standing)

    def change(self, component: str, how: Callable[[Standing], Standing]) -> None:
        """Write down what follows from where it stands now. Blocks. Raises as `write` does."""
        with self._turn:
            before = self.of(component)
            after = how(before)
            if after == before:
                return
            standings = {**self._standings, component: after}
            said = {name: update_order.written(each) for name, each in sorted(standings.items())}
            data = json.dumps({"components": said, "checksum": _checksum(said)}).encode() + b"\n"
            for name in FILES:
                write_private(self._state_dir / name, data)
            self._standings = standings
        self._changed()

    def _load(self) -> dict[str, Standing]:
        damaged = False
        for name in FILES:
            try:
                return _read(json.loads(read_private(self._state_dir / name)))
            except FileNotFoundError:
                continue
            except (StateError, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                damaged = True
                log.error("what is known of updates cannot be read", file=name, reason=str(error))
        if damaged:
            # The order that stands is tried again; its floor is lost, that of agent.toml is not.
            log.error("the floor of updates is lost: no copy of it can be read")
        return {}


def _read(document: Any) -> dict[str, Standing]:
    said = document["components"]
    if document["checksum"] != _checksum(said):
        raise ValueError("the checksum does not match")
    return {name: update_order.read(each) for name, each in said.items() if name in COMPONENTS}


def _checksum(said: Mapping[str, Any]) -> str:
    return blake2b(json.dumps(said, sort_keys=True).encode(), digest_size=16).hexdigest()
