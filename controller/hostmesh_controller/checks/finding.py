"""What a check has to say about one object."""

from typing import Final, NamedTuple

from hostmesh_controller.load import Severity
from hostmesh_controller.model import Path

NOT_FOUND: Final = "IST0101"
"""Istio's code for whatever is named and is not there."""


class Finding(NamedTuple):
    """Something that does not fit: where in the object that was looked at, what, and how bad.

    An error refuses the objects: what Istio's webhook refuses, or what would break a host. Objects come in any order,
    so what is only not there yet is a warning. `code` is ours; `istio_code` is the one `istioctl analyze` gives, ""
    where it has none.
    """

    path: Path
    message: str
    code: str
    severity: Severity = "warning"
    istio_code: str = ""
