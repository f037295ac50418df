"""The commit that FAULTS.md, HOSTS.md and the benchmarks name."""

import subprocess
from pathlib import Path

from commit import UNKNOWN, commit

GIT = ("git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")


def test_it_is_dirty_where_a_file_is_another_one_but_for_what_runs_write(tmp_path: Path) -> None:
    def git(*words: str) -> str:
        done = subprocess.run([*GIT, "-C", str(tmp_path), *words], check=True, capture_output=True, text=True)
        return done.stdout.strip()

    def now() -> str:
        commit.cache_clear()
        return commit(tmp_path)

    git("init", "-q")
    for name in ("code.py", "FAULTS.md"):
        (tmp_path / name).write_text("1\n")
    git("add", ".")
    git("commit", "-q", "-m", "one")
    short = git("rev-parse", "--short", "HEAD")
    assert now() == short
    (tmp_path / "FAULTS.md").write_text("2\n")
    assert now() == short
    (tmp_path / "code.py").write_text("2\n")
    assert now() == f"{short}-dirty"
    commit.cache_clear()


def test_outside_a_clone_it_is_unknown(tmp_path: Path) -> None:
    assert commit(tmp_path) == UNKNOWN
