"""The agent's files: whole or not there, closed to others, and errors that say what to do."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

import pki
from hostmesh_agent import spare
from hostmesh_agent.keys import key_pem, new_key
from hostmesh_agent.state import HostFiles, HostRecord, NotJoinedError, State, StateError, read_private, write_private
from hostmesh_controller.authority import Authority


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return pki.new_authority(tmp_path / "controller")


@pytest.fixture
def state(tmp_path: Path, authority: Authority) -> State:
    return pki.joined(tmp_path / "state", authority)


@pytest.fixture
def alone(state: State) -> State:
    """Of a host whose spare copy is gone too."""
    (state.directory / spare.FILE).unlink()
    return state


def renewed(authority: Authority) -> HostFiles:
    svid = pki.svid(authority, pki.HOST)
    return HostFiles(svid.key_pem, svid.chain_pem, authority.bundle_pem)


def test_what_was_saved_is_read_back_by_another_start(state: State) -> None:
    again = State(state.directory)
    assert again.joined
    assert again.host() == HostRecord("web-1", "cluster.local", ("a:1",))
    assert again.host().identity == pki.HOST
    assert again.files() == state.files()


def test_files_are_closed_to_others_and_envoys_user_can_pass_through(state: State) -> None:
    modes = {str(each.relative_to(state.directory)): each.stat().st_mode & 0o777 for each in state.directory.rglob("*")}
    assert modes == {
        "host.json": 0o600,
        "spare.json": 0o600,
        "identity": 0o700,
        "identity/key.pem": 0o600,
        "identity/chain.pem": 0o600,
        "identity/bundle.pem": 0o600,
    }
    assert state.directory.stat().st_mode & 0o777 == 0o711


def test_a_host_that_has_not_joined_says_how_to(tmp_path: Path) -> None:
    state = State(tmp_path / "nothing")
    assert not state.joined
    with pytest.raises(NotJoinedError, match="hostmesh-agent join STRING"):
        state.host()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"host": "../x", "trust_domain": "td", "agents_endpoints": ["a:1"]}']
)
def test_a_damaged_host_json_is_named_with_the_cure(alone: State, text: str) -> None:
    (alone.directory / "host.json").write_text(text)
    with pytest.raises(StateError, match=r"host\.json is damaged .* join again"):
        alone.host()


@pytest.mark.parametrize("name", ["key.pem", "chain.pem", "bundle.pem"])
def test_a_missing_file_is_named_with_the_cure(alone: State, name: str) -> None:
    (alone.directory / "identity" / name).unlink()
    with pytest.raises(StateError, match=rf"{name} is missing: join again"):
        alone.files()


@pytest.mark.parametrize("name", ["key.pem", "chain.pem"])
def test_a_damaged_file_is_named_with_the_cure(alone: State, name: str) -> None:
    (alone.directory / "identity" / name).write_bytes(b"junk")
    with pytest.raises(StateError, match=r"cannot be read .* join again"):
        alone.files()


def test_a_key_that_others_may_read_is_refused_with_the_command_that_cures(state: State) -> None:
    (state.directory / "identity/key.pem").chmod(0o640)
    with pytest.raises(StateError, match=r"open to others \(mode 0640\): run `chmod 600 "):
        state.files()


def test_links_pipes_and_others_files_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("x")
    (tmp_path / "real").chmod(0o600)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    os.mkfifo(tmp_path / "pipe", 0o600)
    for name in ("link", "pipe"):
        with pytest.raises(StateError, match="plain file"):
            read_private(tmp_path / name)
    if os.geteuid() == 0:
        os.chown(tmp_path / "real", 65534, 65534)
        with pytest.raises(StateError, match="plain file of uid 0"):
            read_private(tmp_path / "real")


def test_a_write_leaves_no_draft_and_replaces_the_file_instead_of_changing_it(tmp_path: Path) -> None:
    write_private(tmp_path / "file", b"old")
    with (tmp_path / "file").open("rb") as opened:
        write_private(tmp_path / "file", b"new")
        assert opened.read() == b"old"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"new"


def test_a_write_that_fails_leaves_the_old_content_and_no_draft(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    with pytest.raises(OSError, match="directory"):
        write_private(tmp_path / "file", b"new")
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_a_renewal_changes_key_and_chain_together(state: State, authority: Authority) -> None:
    files = renewed(authority)
    state.save_renewed(files)
    assert state.files() == files
    assert {each.name for each in (state.directory / "identity").iterdir()} == {"key.pem", "chain.pem", "bundle.pem"}


class PowerCutError(Exception):
    """Stands for the end of the process at one moment."""


def cut_after(monkeypatch: pytest.MonkeyPatch, renames: int) -> None:
    """Let so many renames happen, and none after."""
    real, left = os.rename, [renames]

    def rename(*args: object, **kwargs: object) -> None:
        if left[0] == 0:
            raise PowerCutError
        left[0] -= 1
        real(*args, **kwargs)  # type: ignore[arg-type]  # passed on as they came

    monkeypatch.setattr(os, "rename", rename)


@pytest.mark.parametrize("renames", range(6))
def test_a_renewal_cut_at_any_moment_leaves_one_whole_identity(
    state: State, authority: Authority, monkeypatch: pytest.MonkeyPatch, renames: int
) -> None:
    old, new = state.files(), renewed(authority)
    with monkeypatch.context() as patch:
        cut_after(patch, renames)
        try:
            state.save_renewed(new)
        except PowerCutError:
            assert renames < 5
    found = State(state.directory).files()
    assert found in (old, new)
    assert found == State(state.directory).files()
    # And nothing of it is in the way of the next one.
    newest = renewed(authority)
    state.save_renewed(newest)
    assert state.files() == newest


@pytest.mark.parametrize("renames", range(8))
def test_joining_anew_cut_at_any_moment_leaves_the_host_joined_or_not_joined(
    state: State, authority: Authority, monkeypatch: pytest.MonkeyPatch, renames: int
) -> None:
    old, new = state.files(), renewed(authority)
    record = HostRecord("web-1", "cluster.local", ("b:2",))
    with monkeypatch.context() as patch:
        cut_after(patch, renames)
        try:
            state.save_joined(record, new)
        except PowerCutError:
            assert renames < 7
    found = State(state.directory)
    if found.joined:
        assert (found.files(), found.host().agents_endpoints) in ((old, ("a:1",)), (new, ("b:2",)))
    found.save_joined(record, new)
    assert found.files() == new
    assert {each.name for each in state.directory.iterdir()} == {"host.json", "identity", "spare.json"}


def test_drafts_that_a_kill_left_are_removed_at_the_next_write(state: State, authority: Authority) -> None:
    (state.directory / ".host.json.0123").write_bytes(b"half")
    (state.directory / "identity/.key.pem.0123").write_bytes(b"half")
    state.save_renewed(renewed(authority))
    assert not list(state.directory.rglob(".*"))


def test_forgetting_leaves_nothing_of_ours_and_all_that_is_others(state: State) -> None:
    (state.directory / "envoy").mkdir()
    state.forget()
    assert not state.joined
    assert [each.name for each in state.directory.iterdir()] == ["envoy"]
    state.forget()


def test_a_state_directory_that_others_may_write_is_refused(tmp_path: Path, authority: Authority) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state").chmod(0o777)
    with pytest.raises(StateError, match="can be written by others"):
        pki.joined(tmp_path / "state", authority)


def test_a_disk_that_refuses_is_named(state: State, authority: Authority) -> None:
    (state.directory / "identity/chain.pem").unlink()
    (state.directory / "identity/chain.pem").mkdir()
    with pytest.raises(StateError, match=r"chain\.pem.* cannot be written"):
        state.save_renewed(renewed(authority))


@pytest.mark.parametrize("change", [lambda document: document.pop("host"), lambda document: document.clear()])
def test_a_host_json_that_lacks_a_key_is_damaged(alone: State, change: Callable[[dict[str, object]], object]) -> None:
    path = alone.directory / "host.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    with pytest.raises(StateError, match="is damaged"):
        alone.host()


def test_a_key_that_is_not_the_chains_is_refused(alone: State) -> None:
    write_private(alone.directory / "identity/key.pem", key_pem(new_key()))
    with pytest.raises(StateError, match=r"key\.pem is not the key of chain\.pem: join again"):
        alone.files()
