"""The cgroups that Envoys of a lab ran in: hosts of a lab share the machine's."""

from contextlib import suppress
from pathlib import Path
from typing import Final

from hostmesh_api.wire import ENVOY_SLICES

_ROOTS: Final = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))


def remove_empty() -> None:
    """Remove what nobody is in any more; an agent that still needs it makes it again before it starts its Envoy."""
    for slices in (root.joinpath(*ENVOY_SLICES) for root in _ROOTS):
        instances = tuple(slices.iterdir()) if slices.is_dir() else ()
        for path in (*(each for each in instances if each.is_dir()), slices, slices.parent):
            with suppress(OSError):
                path.rmdir()
