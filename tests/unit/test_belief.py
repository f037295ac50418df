"""Which responses are explained by a write of somebody who was allowed to."""

import pytest

from hostmesh_agent.belief import Belief
from hostmesh_api.origin import Origin, origin_field, parse_origin


def at(revision: int, lineage: str = "aa") -> Origin:
    return Origin(lineage, revision, "00", is_written=True)


def kept(origin: Origin | None) -> Origin | None:
    """What is remembered of it."""
    return None if origin is None else origin._replace(is_written=False)


def opened(revision: int = 7) -> Belief:
    belief = Belief(kept(at(revision)), kept(at(revision)))
    belief.opened()
    return belief


def test_what_comes_with_a_higher_revision_is_explained() -> None:
    belief = opened()
    assert belief.hear(at(8))
    assert belief.hear(at(8))
    assert belief.hear(at(8)), "what goes comes after what leads elsewhere"
    assert not belief.hear(kept(at(8))), "nobody wrote that"
    assert belief.hear(at(9))


def test_a_write_that_was_none_of_this_hosts_explains_nothing() -> None:
    belief = opened()
    assert not belief.hear(kept(at(8)))
    assert belief.hear(at(8))
    assert belief.hear(at(8))


@pytest.mark.parametrize("said", [at(7), at(6), at(8, "bb"), None])
def test_the_same_or_a_lower_revision_another_history_and_none_explain_nothing(said: Origin | None) -> None:
    belief = opened()
    assert not belief.hear(said)
    assert not belief.hear(said)
    assert belief.known == kept(said)


def test_what_an_agent_has_never_heard_of_explains_nothing_and_what_follows_does() -> None:
    belief = Belief()
    belief.opened()
    assert not belief.hear(at(8))
    assert not belief.hear(at(8))
    assert belief.hear(at(9))


def test_a_type_that_had_no_part_in_a_write_cannot_be_explained_by_it_on_the_next_stream() -> None:
    belief = opened()
    assert belief.hear(at(8))
    belief.opened()
    assert not belief.hear(at(8)), "the controller is another process, perhaps with another store"


def test_what_is_doubted_is_not_explained_by_writes_that_follow_not_even_on_another_stream() -> None:
    belief = opened()
    belief.hear(at(7))
    belief.doubt()
    assert belief.known is None, "nor after a restart of the agent"
    assert not belief.hear(at(8))
    belief.opened()
    assert not belief.hear(at(9))
    assert belief.latest == kept(at(9)), "the controller is told of what was heard all the same"


def test_once_it_is_settled_the_next_write_explains_again() -> None:
    belief = opened()
    belief.doubt()
    belief.hear(at(8))
    belief.trust()
    assert not belief.hear(at(8))
    assert belief.hear(at(9))


@pytest.mark.parametrize("text", ["", "x", "aa/7", "aa/-1/00", "aa/7/00\n", "aa/7/00/", "AA/7/00", "a" * 80 + "/7/00"])
def test_what_is_no_origin_is_none(text: str) -> None:
    assert parse_origin(text) is None


def test_an_origin_is_read_as_it_was_written() -> None:
    assert parse_origin(str(at(7))) == at(7)
    assert str(at(7)).encode() in origin_field(at(7))
