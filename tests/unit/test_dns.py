"""The resolver's file: every text comes back byte for byte, whatever happens in between."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostmesh_agent.dns import (
    BACKUP_NAME,
    Original,
    Resolver,
    ResolverError,
    has_mesh,
    is_stub,
    with_mesh,
    without_mesh,
)
from others import let_in

OURS = "nameserver 127.240.240.53"
PLAIN = "# by hand\nsearch corp.example\nnameserver 10.0.0.2\nnameserver 10.0.0.3\noptions timeout:1 attempts:2\n"

TEXTS = {
    "plain": PLAIN,
    "empty": "",
    "only a comment": "# nothing here",
    "no newline at the end": "nameserver 10.0.0.2\noptions rotate",
    "rotate among options": "nameserver 10.0.0.2\noptions timeout:1  rotate\tedns0\nsearch a b\n",
    "rotate alone": "options rotate\nnameserver 10.0.0.2\n",
    "rotate twice": "options rotate\noptions ndots:2 rotate\nnameserver 10.0.0.2\n",
    "windows lines": "nameserver 10.0.0.2\r\noptions rotate\r\n",
    "four resolvers": "nameserver 10.0.0.1\nnameserver 10.0.0.2\nnameserver 10.0.0.3\nnameserver 2001:db8::1\n",
    "odd bytes": "# \udcff\udcfe\x0b\x1c\u2028\nnameserver 10.0.0.2\n",
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_every_text_comes_back_as_it_was(text: str) -> None:
    assert without_mesh(with_mesh(Original(text))) == Original(text)


@given(st.text())
def test_any_text_at_all_comes_back_as_it_was(text: str) -> None:
    if "# hostmesh: " not in text and OURS not in text:
        assert without_mesh(with_mesh(Original(text))) == Original(text)


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_envoy_is_asked_first_and_every_time(text: str) -> None:
    assert not has_mesh(text)
    assert has_mesh(with_mesh(Original(text)))


def test_only_the_first_resolver_and_rotate_change() -> None:
    assert with_mesh(Original("search a\nnameserver 10.0.0.2\noptions rotate timeout:1\n")) == (
        "# hostmesh: mesh names are answered by the first resolver, all others by those behind it\n"
        "nameserver 127.240.240.53\n"
        "search a\n"
        "nameserver 10.0.0.2\n"
        "# hostmesh: instead of: options rotate timeout:1\n"
        "options timeout:1\n"
    )


def test_the_resolvers_that_glibc_no_longer_reaches_are_named() -> None:
    assert "not reached meanwhile: 10.0.0.3 2001:db8::1\n" in with_mesh(Original(TEXTS["four resolvers"]))


def test_without_any_resolver_the_default_one_is_kept() -> None:
    assert "nameserver 127.240.240.53\n" in with_mesh(Original(None))
    assert with_mesh(Original(None)).index("127.240.240.53") < with_mesh(Original(None)).index("nameserver 127.0.0.1")


def test_a_missing_file_is_missing_again_unless_somebody_has_written_into_it() -> None:
    ours = with_mesh(Original(None))
    assert without_mesh(ours) == Original(None)
    assert without_mesh(f"{ours}search corp.example\n") == Original("search corp.example\n")


def test_lines_that_others_have_added_since_stay() -> None:
    changed = with_mesh(Original(PLAIN)).replace("10.0.0.3", "10.9.9.9") + "search other\n"
    assert without_mesh(changed) == Original(PLAIN.replace("10.0.0.3", "10.9.9.9") + "search other\n")


def test_options_that_others_have_changed_since_stay() -> None:
    changed = with_mesh(Original("options rotate ndots:1\n")).replace("\noptions ndots:1", "\noptions ndots:5")
    assert without_mesh(changed) == Original("options rotate ndots:1\noptions ndots:5\n")


def test_a_link_comes_back_only_if_the_file_in_its_place_is_untouched() -> None:
    original = Original(PLAIN, link="../run/net/resolv.conf")
    assert without_mesh(with_mesh(original)) == original
    assert without_mesh(with_mesh(original) + "search other\n") == Original(PLAIN + "search other\n")


def test_a_second_resolver_before_ours_or_a_new_rotate_is_noticed() -> None:
    assert not has_mesh("nameserver 10.0.0.9\n" + with_mesh(Original(PLAIN)))
    assert not has_mesh(with_mesh(Original(PLAIN)) + "options rotate\n")


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/run/systemd/resolve/stub-resolv.conf", ""),
        ("/etc/resolv.conf", "nameserver 127.0.0.53\noptions edns0 trust-ad\n"),
    ],
)
def test_systemd_resolved_is_recognized(path: str, text: str) -> None:
    assert is_stub(Path(path), text)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "etc").mkdir()
    return tmp_path / "etc" / "resolv.conf"


@pytest.fixture
def resolver(path: Path, tmp_path: Path) -> Resolver:
    return Resolver(path, tmp_path / "state")


def snapshot(path: Path) -> tuple[object, ...]:
    if path.is_symlink():
        return ("link", str(path.readlink()))
    if not path.exists():
        return ("missing",)
    status = path.stat()
    return (path.read_bytes(), status.st_mode, status.st_uid, status.st_gid)


def make(path: Path, kind: str) -> None:
    if kind == "link":
        target = path.parent.parent / "run" / "resolv.conf"
        target.parent.mkdir()
        target.write_text(PLAIN)
        path.symlink_to("../run/resolv.conf")
    elif kind != "missing":
        path.write_bytes(TEXTS[kind].encode(errors="surrogateescape"))
        path.chmod(0o640)
        os.chown(path, os.getuid(), os.getgid())


@pytest.mark.parametrize("kind", [*TEXTS, "missing", "link"])
def test_the_file_comes_back_with_mode_and_kind(kind: str, path: Path, resolver: Resolver, tmp_path: Path) -> None:
    make(path, kind)
    before = snapshot(path)
    assert not resolver.check().in_place
    assert resolver.apply().in_place
    assert resolver.apply().in_place
    assert resolver.check().in_place
    assert path.is_file()
    assert not path.is_symlink()
    # Another process, with no memory and no state directory, takes it back.
    Resolver(path, tmp_path / "elsewhere").restore()
    assert snapshot(path) == before
    resolver.restore()
    assert snapshot(path) == before
    assert [each.name for each in path.parent.iterdir()] == ([] if kind == "missing" else ["resolv.conf"])


def test_what_was_there_is_kept_for_people_to_see(path: Path, resolver: Resolver, tmp_path: Path) -> None:
    make(path, "plain")
    resolver.apply()
    assert (tmp_path / "state" / BACKUP_NAME).read_text() == PLAIN
    resolver.restore()
    assert not (tmp_path / "state" / BACKUP_NAME).exists()


def test_a_file_that_another_tool_wrote_is_noticed_and_taken_as_the_new_original(
    path: Path, resolver: Resolver, tmp_path: Path
) -> None:
    make(path, "plain")
    resolver.apply()
    path.write_text("nameserver 10.5.5.5\n")
    state = resolver.check()
    assert (state.in_place, "does not name" in state.detail) == (False, True)
    resolver.apply()
    assert (tmp_path / "state" / BACKUP_NAME).read_text() == "nameserver 10.5.5.5\n"
    resolver.restore()
    assert path.read_text() == "nameserver 10.5.5.5\n"


def test_a_change_behind_a_replaced_link_is_noticed_and_followed(path: Path, resolver: Resolver) -> None:
    make(path, "link")
    resolver.apply()
    (path.parent.parent / "run" / "resolv.conf").write_text("nameserver 10.7.7.7\n")
    assert "has changed" in resolver.check().detail
    resolver.apply()
    assert resolver.check().in_place
    assert "10.7.7.7" in path.read_text()
    resolver.restore()
    assert str(path.readlink()) == "../run/resolv.conf"


def written_over(path: Path, text: str) -> None:
    """Write as dhclient and NetworkManager do: a new file in the place of the old one."""
    fresh = path.with_name("fresh")
    fresh.write_text(text)
    fresh.replace(path)


NEWER = "# Generated by NetworkManager\nnameserver 10.7.7.7\n"


def test_a_link_comes_back_where_another_tool_wrote_over_the_file_in_its_place(
    path: Path, resolver: Resolver, tmp_path: Path
) -> None:
    make(path, "link")
    before = snapshot(path)
    resolver.apply()
    # It finds a file where it had a link, so it writes there what it writes to where the link leads, too.
    (tmp_path / "run/resolv.conf").write_text(NEWER)
    written_over(path, NEWER)
    assert not resolver.check().in_place
    assert resolver.apply().in_place
    assert resolver.check().in_place
    # From then on it is followed as before, and the file itself says that it was a link.
    (tmp_path / "run/resolv.conf").write_text(PLAIN)
    resolver.apply()
    assert "10.0.0.2" in path.read_text()
    Resolver(path, tmp_path / "elsewhere").restore()
    assert snapshot(path) == before


def test_a_link_comes_back_also_where_what_it_leads_to_follows_later_or_nothing_was_put_there_again(
    path: Path, resolver: Resolver, tmp_path: Path
) -> None:
    make(path, "link")
    before = snapshot(path)
    resolver.apply()
    written_over(path, NEWER)
    resolver.apply()
    assert (tmp_path / "state" / BACKUP_NAME).is_symlink()
    assert "10.7.7.7" in path.read_text()
    (tmp_path / "run/resolv.conf").write_text(NEWER)
    resolver.restore()
    assert snapshot(path) == before
    resolver.apply()
    (tmp_path / "run/resolv.conf").write_text(PLAIN)
    written_over(path, PLAIN)
    resolver.restore()
    assert snapshot(path) == before


def test_a_file_that_says_something_else_than_where_the_link_led_stays(
    path: Path, resolver: Resolver, tmp_path: Path
) -> None:
    make(path, "link")
    resolver.apply()
    written_over(path, "nameserver 10.9.9.9\n")
    resolver.apply()
    resolver.restore()
    assert not path.is_symlink()
    assert path.read_text() == "nameserver 10.9.9.9\n"
    assert not os.path.lexists(tmp_path / "state" / BACKUP_NAME)


def test_a_link_that_somebody_else_has_put_into_our_directory_is_not_followed(
    path: Path, resolver: Resolver, tmp_path: Path
) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    path.write_text(PLAIN)
    resolver.apply()
    (tmp_path / "theirs").write_text(PLAIN)
    backup = tmp_path / "state" / BACKUP_NAME
    backup.unlink()
    backup.symlink_to(tmp_path / "theirs")
    os.chown(backup, 65534, 65534, follow_symlinks=False)
    resolver.restore()
    assert not path.is_symlink()


def test_the_stub_of_systemd_resolved_is_left_alone(path: Path, resolver: Resolver) -> None:
    path.write_text("nameserver 127.0.0.53\noptions edns0 trust-ad\nsearch .\n")
    before = snapshot(path)
    assert resolver.names_resolved()
    assert "names systemd-resolved" in resolver.apply().detail
    assert not resolver.check().in_place
    resolver.restore()
    assert snapshot(path) == before


def test_a_link_to_nowhere_is_left_alone(path: Path, resolver: Resolver) -> None:
    path.symlink_to("../run/not-there-yet")
    state = resolver.apply()
    assert (state.in_place, "which is not there" in state.detail) == (False, True)
    resolver.restore()
    assert str(path.readlink()) == "../run/not-there-yet"


def test_a_file_of_a_run_that_was_killed_half_way_does_no_harm(path: Path, resolver: Resolver, tmp_path: Path) -> None:
    make(path, "plain")
    path.with_name(".resolv.conf.hostmesh").write_text("half")
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / f"{BACKUP_NAME}.new").write_text("half")
    resolver.apply()
    assert resolver.check().in_place
    resolver.restore()
    assert path.read_text() == PLAIN
    assert [each.name for each in path.parent.iterdir()] == ["resolv.conf"]


def test_a_directory_that_cannot_be_written_is_an_error_with_its_cure(tmp_path: Path) -> None:
    resolver = Resolver(Path("/proc/self/resolv.conf"), tmp_path)
    with pytest.raises(ResolverError, match=r"cannot change /proc/self/resolv\.conf"):
        resolver.apply()


_APPLY = """
import sys
from pathlib import Path
from hostmesh_agent.dns import Resolver
resolver = Resolver(Path(sys.argv[1]), Path(sys.argv[2]))
assert resolver.apply().in_place
resolver.restore()
"""


def test_a_file_of_another_user_stays_his_without_the_right_to_act_for_owners(path: Path, tmp_path: Path) -> None:
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("needs root and setpriv")
    make(path, "plain")
    os.chown(path, 65534, 65534)
    os.setxattr(path, "user.note", b"kept")
    before = snapshot(path)
    # As the privileged part has it: CHOWN, and not FOWNER.
    kept = ["setpriv", "--bounding-set", "-fowner,-fsetid,-dac_override"]
    command = [*kept, sys.executable, "-c", _APPLY, str(path), str(tmp_path / "state")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")
    assert snapshot(path) == before
    assert os.getxattr(path, "user.note") == b"kept"


def test_a_link_that_leads_in_a_circle_is_left_alone(path: Path, resolver: Resolver) -> None:
    path.symlink_to("resolv.conf")
    for state in (resolver.apply(), resolver.check()):
        assert (state.in_place, "in a circle" in state.detail) == (False, True)
    assert not resolver.names_resolved()
    assert not resolver.names_uplink()
    assert resolver.writer() == ""
    resolver.restore()
    assert str(path.readlink()) == "resolv.conf"


@pytest.mark.parametrize("leaves", [False, True])
def test_what_another_program_writes_while_we_write_is_not_lost(
    path: Path, resolver: Resolver, monkeypatch: pytest.MonkeyPatch, leaves: bool
) -> None:
    make(path, "plain")
    if leaves:
        resolver.apply()
    theirs = "nameserver 192.0.2.7\n"
    fsync = os.fsync

    def slow_disk(descriptor: int) -> None:
        monkeypatch.setattr(os, "fsync", fsync)
        path.with_name("new").write_text(theirs)
        path.with_name("new").replace(path)

    monkeypatch.setattr(os, "fsync", slow_disk)
    if leaves:
        resolver.restore()
    else:
        assert resolver.apply().in_place
    assert path.read_text() == (theirs if leaves else with_mesh(Original(theirs)))
    assert not resolver.holds_ours() or not leaves


def test_a_file_that_another_program_writes_without_end_is_left_to_it(
    path: Path, resolver: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(path, "plain")
    written: list[str] = []

    def writes(_: int) -> None:
        written.append(f"nameserver 192.0.2.{len(written) + 1}\n")
        path.write_text(written[-1])

    monkeypatch.setattr(os, "fsync", writes)
    with pytest.raises(ResolverError, match="another program writes it again and again"):
        resolver.apply()
    assert path.read_text() == written[-1]
    assert [each.name for each in path.parent.iterdir() if "hostmesh" in each.name] == []


def test_a_file_that_is_not_ours_to_change_is_not_said_to_be_immutable(
    path: Path, resolver: Resolver, tmp_path: Path
) -> None:
    if os.geteuid() != 0 or shutil.which("chattr") is None:
        pytest.skip("needs root and chattr")
    make(path, "plain")
    resolver.apply()
    let_in(tmp_path)
    subprocess.run(["chattr", "+i", str(path)], check=True)
    try:
        with pytest.raises(ResolverError, match="lsattr"):
            resolver.restore()
    finally:
        subprocess.run(["chattr", "-i", str(path)], check=True)
    child = os.fork()
    if not child:
        path.chmod(0o644)
        os.setresuid(65534, 65534, 65534)
        try:
            Resolver(path, tmp_path / "elsewhere").restore()
        except ResolverError as error:
            os._exit(0 if "Permission denied" in str(error) and "lsattr" not in str(error) else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
