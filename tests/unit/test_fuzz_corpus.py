"""What fuzzing once found, and inputs that it starts from, are read without a fault: see tests/fuzz."""

from pathlib import Path

import pytest

from fuzz.targets import TARGETS

CORPUS = Path(__file__).parents[1] / "fuzz/corpus"
INPUTS = sorted(path for path in CORPUS.glob("*/*") if path.is_file())


@pytest.mark.parametrize("name", TARGETS)
def test_every_target_reads_what_is_saved_for_it(name: str) -> None:
    run = TARGETS[name]()
    found = [path for path in INPUTS if path.parent.name == name]
    assert found, f"tests/fuzz/corpus/{name} is empty"
    for path in [*found]:
        run(path.read_bytes())
    run(b"")


def test_nothing_is_saved_for_a_target_that_is_gone() -> None:
    assert {path.parent.name for path in INPUTS} == set(TARGETS)
