"""From which state of the controller's store a response was made: the controller says it, agents remember it.

It travels in `system_version_info` of a response, which Envoy calls a debugging aid, and never in a resource: every
write of an operator would change all of them.
"""

import re
from functools import lru_cache
from typing import Final, NamedTuple

from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryResponse

_FORM: Final = re.compile(r"([0-9a-f]{1,64})/([0-9]{1,18})/([0-9a-f]{1,64})(/w)?")


class Origin(NamedTuple):
    """A state of a store: `lineage` is the id of its history, `revision` counts the writes of operators.

    `proof` is for the controller: that it said so itself. `is_written` is said of a response that carries what
    operators wrote, as far as it is new to the host; any other was made by the controller itself at that revision.
    """

    lineage: str
    revision: int
    proof: str
    is_written: bool = False

    def __str__(self) -> str:
        return f"{self.lineage}/{self.revision}/{self.proof}{'/w' if self.is_written else ''}"


def parse_origin(text: str) -> Origin | None:
    """Read what `str` made of an origin; None: it is none, or nothing was said."""
    found = _FORM.fullmatch(text)
    return None if found is None else Origin(found[1], int(found[2]), found[3], bool(found[4]))


@lru_cache(4)
def origin_field(origin: Origin) -> bytes:
    """Return the field of a serialized DeltaDiscoveryResponse that says so: to be put behind the others."""
    return DeltaDiscoveryResponse(system_version_info=str(origin)).SerializeToString()
