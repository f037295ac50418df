"""SECURITY.md names tests: each is there."""

import ast
import re
from functools import cache
from pathlib import Path
from typing import Final

import pytest

TESTS: Final = Path(__file__).parents[1]
NAMED: Final = sorted(set(re.findall(r"`([\w/]+\.py)::(\w+)`", (TESTS.parent / "SECURITY.md").read_text())))


@cache
def functions(file: str) -> frozenset[str]:
    tree = ast.parse((TESTS / file).read_text())
    return frozenset(each.name for each in tree.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef))


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_a_test_that_is_named_is_there(file: str, name: str) -> None:
    assert name in functions(file)


def test_each_line_of_the_attacks_names_a_test() -> None:
    attacks = (TESTS.parent / "SECURITY.md").read_text().partition("## Attacks")[2].partition("## Tools")[0]
    lines = [line for line in attacks.splitlines() if line.startswith("| ") and not line.startswith("| attack")]
    assert len(lines) > 50
    assert [line for line in lines if "::test_" not in line] == []
