"""What `-f` names: files, directories, standard input."""

import io
import sys
from pathlib import Path

import pytest

from hostmesh_controller.cli.failure import CliError
from hostmesh_controller.cli.sources import read_sources
from hostmesh_controller.load import load_documents


def test_a_directory_is_read_in_order_of_names_without_what_is_hidden_or_other(tmp_path: Path) -> None:
    for name in ("b.yml", "a.yaml", "c.json", ".d.yaml", "notes.txt"):
        (tmp_path / name).write_text(name)
    (tmp_path / "below.yaml").mkdir()
    found = read_sources([str(tmp_path)])
    assert [(each.name, each.text) for each in found] == [
        (str(tmp_path / name), name) for name in ("a.yaml", "b.yml", "c.json")
    ]


def test_what_cannot_be_read_is_said_with_its_path(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(CliError, match=f"^error: {tmp_path}/gone.yaml: no such file or directory$"):
        read_sources([str(tmp_path / "gone.yaml")])
    with pytest.raises(CliError, match=f"^error: {empty} holds no .yaml, .yml or .json file$"):
        read_sources([str(empty)])


def test_a_dash_is_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "apiVersion: hostmesh.io/v1\nkind: Host\nmetadata: {name: H}\nspec: {addresses: [10.0.0.1]}\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    (source,) = read_sources(["-"])
    [problem] = load_documents(source.text, source.name)[1]
    assert str(problem).startswith("<stdin>:3: metadata.name: 'H' is not a valid name")
