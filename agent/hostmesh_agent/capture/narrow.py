"""One direction, narrowed down: the rules for what is excluded, and the conditions of what alone is included. Pure.

What the host's owner excludes comes first and holds whatever the mesh's policy says.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from hostmesh_agent.capture import expressions as words
from hostmesh_agent.capture import who
from hostmesh_agent.capture.expressions import Words
from hostmesh_agent.capture.rules import NamedSet, Rule
from hostmesh_agent.capture.who import ALL_OF_IT, NOBODY, Direction, Match, Narrowing, Present


@dataclass(frozen=True, slots=True)
class Narrowed:
    """What is captured of one direction.

    Attributes:
        direction: of the connections.
        never: what the owner of the host excludes.
        narrowing: what the mesh's policy includes and excludes.
        families: of addresses, that the host has.
        present: which of the users and units that are named are there.
    """

    direction: Direction
    never: tuple[Match, ...] = ()
    narrowing: Narrowing = ALL_OF_IT
    families: tuple[int, ...] = (4, 6)
    present: Present = NOBODY

    def __bool__(self) -> bool:
        return bool(self.never or self.narrowing)

    @property
    def names_who(self) -> bool:
        """Whether some of the host's programs are in the mesh and others are not."""
        return self.narrowing.names_who or any(each.names_who for each in self.never)

    def sets(self) -> Iterator[NamedSet]:
        for name, match in self._all():
            yield from who.sets(name, match, self.families, self.present)

    def missing(self) -> frozenset[str]:
        """Return the users and units that are named and not there."""
        return frozenset(each for _, match in self._all() for each in self.present.missing(match))

    def passes(self, *, by_who: bool) -> Iterator[Rule]:
        """Yield the rules after which what is excluded is what it was without us.

        `by_who`: of some programs; else whatever program it is.
        """
        yield from self.owners_passes(by_who=by_who)
        yield from self.policys_passes(by_who=by_who)

    def owners_passes(self, *, by_who: bool = False) -> Iterator[Rule]:
        """Yield those for what the owner of the host excludes."""
        yield from self._passes(self._named("never", self.never), "excluded by the host's owner", by_who)

    def policys_passes(self, *, by_who: bool = False) -> Iterator[Rule]:
        """Yield those for what the mesh's policy excludes."""
        yield from self._passes(self._named("exclude", self.narrowing.exclude), "excluded", by_who)

    def conditions(self, version: int, *, by_who: bool = False) -> Iterator[Words]:
        """Yield what must hold for a connection to be captured, one of them; nothing to be asked where all are.

        `by_who`: only which program it is of.
        """
        included = list(self._named("include", self.narrowing.include))
        if not included or (by_who and not all(match.names_who for _, match in included)):
            yield ()
            return
        for name, match in included:
            if by_who:
                yield from who.alternatives(name, match.whose, self.direction, version, self.present)
            elif version in who.inside(match, self.families):
                yield from who.alternatives(name, match, self.direction, version, self.present)

    def _passes(self, named: Iterable[tuple[str, Match]], comment: str, by_who: bool) -> Iterator[Rule]:
        for name, match in named:
            if match.names_who is not by_who:
                continue
            versions: tuple[int | None, ...] = who.inside(match, self.families) if match.cidrs else (None,)
            for version in versions:
                family = () if version is None else words.family(version)
                for condition in who.alternatives(name, match, self.direction, version, self.present):
                    yield Rule((*family, *condition, *words.RETURN), comment)

    def _all(self) -> Iterator[tuple[str, Match]]:
        yield from self._named("never", self.never)
        yield from self._named("exclude", self.narrowing.exclude)
        yield from self._named("include", self.narrowing.include)

    def _named(self, what: str, matches: tuple[Match, ...]) -> Iterator[tuple[str, Match]]:
        """Yield each match and the name that its sets have: by its place, so that a change of one moves no other."""
        for number, match in enumerate(matches):
            yield f"{self.direction}_{what}{number}", match
