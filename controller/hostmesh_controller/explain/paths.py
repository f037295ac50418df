"""How Envoy writes a path before routes and policies look at it."""

import re
from typing import Final

from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (
    HttpConnectionManager,
)

_ESCAPED: Final = re.compile(r"%([0-9A-Fa-f]{2})")
_UNRESERVED: Final = re.compile(r"[A-Za-z0-9\-._~]")
_DOTS_WITH_PARAMETERS: Final = re.compile(r"(?<=/)(\.\.?);[^/]*")


def seen_path(manager: HttpConnectionManager, path: str) -> str:
    """Return a path, with its query, as it is after an HTTP connection manager's normalization."""
    before, mark, query = path.partition("?")
    if manager.path_with_escaped_slashes_action == HttpConnectionManager.UNESCAPE_AND_FORWARD:
        before = re.sub("%2f", "/", re.sub("%5c", r"\\", before, flags=re.IGNORECASE), flags=re.IGNORECASE)
    if manager.normalize_path.value:
        # Dots may have parameters, but dots that are escaped may not: those Envoy (1.40) writes as dots and keeps.
        before = _DOTS_WITH_PARAMETERS.sub(r"\1", before)
        before = _without_dots(_ESCAPED.sub(_plain, before).replace("\\", "/"))
    if manager.merge_slashes:
        before = re.sub("/{2,}", "/", before)
    return f"{before}{mark}{query}"


def _plain(escape: re.Match[str]) -> str:
    char = chr(int(escape[1], 16))
    return char if _UNRESERVED.fullmatch(char) else escape[0]


def _without_dots(path: str) -> str:
    """Return a path without `.` and `..`, as RFC 3986 (5.2.4) takes them out."""
    kept: list[str] = []
    segments = path.split("/")[1:]
    for index, segment in enumerate(segments):
        last = index == len(segments) - 1
        if segment == "..":
            kept = kept[:-1]
        if segment not in {".", ".."}:
            kept.append(segment)
        elif last:
            kept.append("")
    return "/" + "/".join(kept)
