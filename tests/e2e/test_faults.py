"""The quick faults of `make faults`, with all oracles; FAULTS.md has the others."""

import os
from collections.abc import Iterator

import pytest

from faults.fault import Fault
from faults.play import play
from faults.scene import Scene, new_scene
from faults.suite import FAULTS

SEED, AROUND_S = 1, 1.0
pytestmark = pytest.mark.skipif(
    "FAULTS_LAB" not in os.environ, reason="needs a machine that is not busy: run it with FAULTS_LAB=1"
)


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with new_scene(SEED, AROUND_S) as made:
        yield made


@pytest.mark.parametrize("fault", [each for each in FAULTS if each.quick], ids=lambda fault: fault.name)
def test_the_promise_holds_while_the_oracles_look_on(scene: Scene, fault: Fault) -> None:
    assert play(fault, scene, SEED, print).problems == ()
