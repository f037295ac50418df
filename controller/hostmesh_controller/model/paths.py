"""Paths of a host's files and sockets, as objects name them."""

from typing import Annotated

from pydantic import AfterValidator

from hostmesh_controller.model.schema import as_fault


def check_plain_path(value: str) -> str:
    """Return a path if it is one line, without control characters and without a way up.

    Raises:
        ValueError: it is not.
    """
    if not value.isprintable():
        raise ValueError(f"{value!r} has characters that no path needs")
    if ".." in value.split("/"):
        raise ValueError(f"{value!r} leads up by '..'; write the path without it")
    return value


def _plain_file(value: str) -> str:
    with as_fault("path"):
        return check_plain_path(value)


FilePath = Annotated[str, AfterValidator(_plain_file)]
"""A file of the host on which Envoy runs; "" for none."""
