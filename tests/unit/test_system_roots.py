"""The operating system's roots have one name in Envoy's directory, wherever the system keeps them."""

from pathlib import Path

from hostmesh_agent.workdir import link_system_roots
from hostmesh_api.wire import SYSTEM_ROOTS


def test_the_link_leads_to_the_first_file_that_is_there(tmp_path: Path) -> None:
    there = tmp_path / "bundle.crt"
    there.write_text("roots")
    assert link_system_roots(tmp_path, (str(tmp_path / "gone.crt"), str(there))) == there
    assert (tmp_path / SYSTEM_ROOTS).read_text() == "roots"


def test_the_link_follows_where_the_system_keeps_them_now(tmp_path: Path) -> None:
    old, new = tmp_path / "old.crt", tmp_path / "new.crt"
    old.write_text("old")
    link_system_roots(tmp_path, (str(old), str(new)))
    old.unlink()
    new.write_text("new")
    assert link_system_roots(tmp_path, (str(old), str(new))) == new
    assert (tmp_path / SYSTEM_ROOTS).read_text() == "new"


def test_without_any_file_nothing_is_trusted(tmp_path: Path) -> None:
    assert link_system_roots(tmp_path, (str(tmp_path / "gone.crt"),)) is None
    assert (tmp_path / SYSTEM_ROOTS).is_symlink()
    assert not (tmp_path / SYSTEM_ROOTS).exists()
