"""The controller's mirror: what an operator put there, and nothing else of the controller's disk."""

from pathlib import Path

import pytest

from hostmesh_controller.artifacts import CHUNK_BYTES, Mirror, MirrorError
from hostmesh_controller.cli import signing
from hostmesh_controller.cli.failure import CliError

NEW = bytes(range(256)) * 4096


@pytest.fixture
def mirror(tmp_path: Path) -> Mirror:
    (tmp_path / "envoy").write_bytes(NEW)
    signing.new_key(tmp_path / "key.pem")
    signing.put(
        [tmp_path / "envoy"],
        tmp_path / "key.pem",
        tmp_path / "mirror",
        component="envoy",
        version="1.41.0",
        machine="x86_64",
    )
    return Mirror(tmp_path / "mirror")


def test_it_gives_pieces_from_any_offset_and_none_at_the_end(mirror: Mirror) -> None:
    assert mirror.piece("envoy", "1.41.0", "x86_64", 0) == NEW[:CHUNK_BYTES]
    assert mirror.piece("envoy", "1.41.0", "x86_64", 1000) == NEW[1000 : 1000 + CHUNK_BYTES]
    for beyond in (len(NEW), len(NEW) + 1, 2**63 + 5, 2**64 - 1):
        assert mirror.piece("envoy", "1.41.0", "x86_64", beyond) == b""


@pytest.mark.parametrize(
    "names",
    [
        ("envoy", "1.41.0", "../x86_64"),
        ("envoy", "..", "x86_64"),
        ("../mirror/envoy", "1.41.0", "x86_64"),
        ("kernel", "1.41.0", "x86_64"),
        ("envoy", "/etc", "x86_64"),
        ("envoy", "1.41.0\0", "x86_64"),
    ],
)
def test_names_of_peers_lead_nowhere_else(mirror: Mirror, names: tuple[str, str, str]) -> None:
    (mirror.directory / "artifact").write_bytes(b"secret")
    with pytest.raises(ValueError, match="no such artifact"):
        mirror.piece(*names, 0)


def test_what_is_not_whole_is_not_offered(mirror: Mirror, tmp_path: Path) -> None:
    place = mirror.directory / "envoy" / "1.41.0" / "x86_64"
    assert mirror.signed("envoy", "1.41.0", "x86_64").signature
    with pytest.raises(MirrorError, match="hostmesh rollout sign"):
        mirror.signed("envoy", "1.42.0", "x86_64")
    (place / "artifact").write_bytes(NEW[:-1])
    with pytest.raises(MirrorError, match="not as long"):
        mirror.signed("envoy", "1.41.0", "x86_64")
    (place / "manifest.json").write_text("{}")
    with pytest.raises(MirrorError, match="it must have"):
        mirror.signed("envoy", "1.41.0", "x86_64")
    (place / "manifest.sig").unlink()
    with pytest.raises(MirrorError, match="No such file"):
        mirror.signed("envoy", "1.41.0", "x86_64")


def test_a_key_is_its_owners_and_is_not_written_over(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    assert len(signing.new_key(path)) == 44
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(CliError, match="File exists"):
        signing.new_key(path)


def test_what_cannot_be_signed_is_said(mirror: Mirror, tmp_path: Path) -> None:
    def put(version: str = "1.42.0", key: str = "key.pem", least: str = "") -> None:
        signing.put(
            [tmp_path / "envoy"],
            tmp_path / key,
            tmp_path / "mirror",
            component="envoy",
            version=version,
            machine="x86_64",
            least=least,
        )

    with pytest.raises(CliError, match="no such artifact"):
        put(version="../x")
    with pytest.raises(CliError, match="No such file"):
        put(key="none.pem")
    with pytest.raises(CliError, match="not a private key"):
        put(key="envoy")
    with pytest.raises(CliError, match="above"):
        put(least="2.0")
