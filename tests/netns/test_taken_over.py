"""A table whose agent has ended is taken over by the next one, which may want another one at once."""

from dataclasses import replace

from hostmesh_agent.capture import Owner, nft, plan
from netns.space import Space
from netns.test_capture_doors import FLOOR, REQUEST


def test_the_next_agent_takes_over_and_adds_chains_at_once(peer: Space) -> None:
    whole = plan(REQUEST, FLOOR).table
    few = replace(whole, chains=tuple(each for each in whole.chains if each.name != "outbound"))
    assert few != whole
    for wanted in (few, whole, few, whole):
        owner = Owner()
        reading = nft.write(wanted, owner)
        assert reading.table == wanted
        owner.close()
