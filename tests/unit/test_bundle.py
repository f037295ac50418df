"""The file of a bug report: made by root in a place of anybody's choice."""

import os
import tarfile
from pathlib import Path

import pytest

from hostmesh_agent import bundle


def test_the_file_is_its_owners_alone_and_names_are_inside_one_directory(tmp_path: Path) -> None:
    path = tmp_path / "report.tar.gz"
    previous = os.umask(0)
    try:
        with bundle.new(path, "report") as opened:
            opened.add("a/b.txt", "x")
    finally:
        os.umask(previous)
    assert path.stat().st_mode & 0o777 == 0o600
    with tarfile.open(path) as archive:
        assert [(each.name, each.mode, each.uid) for each in archive] == [("report/a/b.txt", 0o600, 0)]


@pytest.mark.parametrize("target", ["there", "nowhere"])
def test_what_lies_there_is_not_touched_also_through_a_link(tmp_path: Path, target: str) -> None:
    (tmp_path / "there").write_text("precious")
    link = tmp_path / "report.tar.gz"
    link.symlink_to(tmp_path / target)
    with pytest.raises(FileExistsError), bundle.new(link, "report"):
        pass
    assert (tmp_path / "there").read_text() == "precious"
    assert link.is_symlink()
    assert not (tmp_path / "nowhere").exists()


def test_a_report_that_fails_leaves_no_half_of_it(tmp_path: Path) -> None:
    path = tmp_path / "report.tar.gz"
    with pytest.raises(KeyError), bundle.new(path, "report") as opened:
        opened.add("a", dict[str, str]()["no such text"])
    assert list(tmp_path.iterdir()) == []


def test_each_text_and_all_of_them_are_bounded_and_a_log_keeps_its_end(tmp_path: Path) -> None:
    path = tmp_path / "report.tar.gz"
    with bundle.new(path, "report") as opened:
        assert opened.add("log", "a" * bundle.MAX_TEXT_BYTES + "end", end=True) == 3
        left_out = [opened.add(f"{number}", "b" * bundle.MAX_TEXT_BYTES) for number in range(20)]
    assert left_out[0] == 0
    assert left_out[-1] == bundle.MAX_TEXT_BYTES
    with tarfile.open(path) as archive:
        log = archive.extractfile("report/log")
        assert log is not None
        assert log.read().endswith(b"end")
        assert sum(each.size for each in archive.getmembers()) == bundle.MAX_BYTES
