import os
from pathlib import Path

import pytest

from hostmesh_controller.lab import layout as disk
from hostmesh_controller.lab.errors import LabError
from hostmesh_controller.lab.layout import HostFacts, LabFacts, Layout

FACTS = LabFacts(id="0a1b2c3d", subnet=3, user=False, ipv6=True, made=("/x", "/x/y"))


def test_what_is_written_of_a_lab_is_read_again(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    assert disk.read_lab(layout) is None
    disk.write_lab(layout, FACTS)
    assert disk.read_lab(layout) == FACTS


def test_hosts_are_read_in_the_order_of_their_addresses(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    for name, index in (("zoe", 2), ("adam", 3)):
        layout.host(name).root.mkdir(parents=True)
        disk.write_host(layout.host(name), HostFacts(name, index))
    assert list(disk.read_hosts(layout)) == ["zoe", "adam"]


def test_the_default_directory_follows_xdg() -> None:
    assert disk.default_dir({"HOME": "/home/a"}) == Path("/home/a/.local/state/hostmesh/lab")
    assert disk.default_dir({"HOME": "/home/a", "XDG_STATE_HOME": "/s"}) == Path("/s/hostmesh/lab")


@pytest.mark.parametrize("name", ["a:b", "a,b", "a\\b"])
def test_a_path_that_overlayfs_would_misread_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(LabError, match="cannot be part of the path"):
        disk.checked(tmp_path / name)


def test_a_path_too_long_for_the_sockets_is_refused() -> None:
    with pytest.raises(LabError, match="too long for the sockets"):
        disk.checked(Path("/tmp") / ("x" * 100))


def test_the_longest_path_taken_fits_a_socket() -> None:
    root = Path("/" + "x" * 84)
    assert len(os.fsencode(disk.checked(root).admin_socket)) == 107


def test_a_directory_that_others_may_write_is_refused_with_the_cure(tmp_path: Path) -> None:
    tmp_path.chmod(0o770)
    with pytest.raises(LabError, match=f"chmod go-w {tmp_path}"):
        disk.checked(tmp_path)


def test_a_directory_with_something_else_in_it_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(LabError, match=r"not empty \(thesis.tex\)"), disk.made_and_locked(Layout(tmp_path)):
        pass
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


def test_directories_made_for_a_lab_that_did_not_come_go_again(tmp_path: Path) -> None:
    with disk.made_and_locked(Layout(tmp_path / "a/b")) as made:
        assert made == (str(tmp_path / "a"), str(tmp_path / "a/b"))
        assert (tmp_path / "a/b").stat().st_mode & 0o777 == 0o700
    assert list(tmp_path.iterdir()) == []


def test_removal_stops_at_a_directory_that_is_not_empty(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/other").touch()
    disk.remove_directories((str(tmp_path / "a"), str(tmp_path / "a/b")))
    assert sorted(entry.name for entry in (tmp_path / "a").iterdir()) == ["other"]
