"""Paths as `explain` takes them for written by Envoy; the live tests of policies hold Envoy to the same."""

import pytest
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (
    HttpConnectionManager,
)

from hostmesh_controller.explain.paths import seen_path

WAYS = ("NONE", "BASE", "MERGE_SLASHES", "DECODE_AND_MERGE_SLASHES")


def manager(way: str) -> HttpConnectionManager:
    result = HttpConnectionManager(merge_slashes=way not in {"NONE", "BASE"})
    result.normalize_path.value = way != "NONE"
    if way == "DECODE_AND_MERGE_SLASHES":
        result.path_with_escaped_slashes_action = HttpConnectionManager.UNESCAPE_AND_FORWARD
    return result


@pytest.mark.parametrize(
    ("path", "base", "merged", "decoded"),
    [
        ("/", "/", "/", "/"),
        ("/a/../b?c=/../d", "/b?c=/../d", "/b?c=/../d", "/b?c=/../d"),
        ("/a/./b/..", "/a/", "/a/", "/a/"),
        ("/../a", "/a", "/a", "/a"),
        ("/a//b", "/a//b", "/a/b", "/a/b"),
        ("/a//../b", "/a/b", "/a/b", "/a/b"),
        ("/%61/%2E%2e/b", "/b", "/b", "/b"),
        ("/a%3Bb", "/a%3Bb", "/a%3Bb", "/a%3Bb"),
        ("/a%2Fb", "/a%2Fb", "/a%2Fb", "/a/b"),
        (r"/a\..\b", "/b", "/b", "/b"),
        ("/a%5Cb", "/a%5Cb", "/a%5Cb", "/a/b"),
        ("/a/..;x=1/b", "/b", "/b", "/b"),
        ("/a/.;/b/..;", "/a/", "/a/", "/a/"),
        ("/a/...;x/b", "/a/...;x/b", "/a/...;x/b", "/a/...;x/b"),
        # What was escaped has dots then, and keeps them: Envoy looks for parameters before.
        ("/a/%2e%2e;x/b", "/a/..;x/b", "/a/..;x/b", "/a/..;x/b"),
        (r"/a/..;\b", "/", "/", "/"),
        ("/a%2f..;x/b", "/a%2f..;x/b", "/a%2f..;x/b", "/b"),
    ],
)
def test_a_path_is_written_as_the_mesh_s_settings_say(path: str, base: str, merged: str, decoded: str) -> None:
    assert [seen_path(manager(way), path) for way in WAYS] == [path, base, merged, decoded]
