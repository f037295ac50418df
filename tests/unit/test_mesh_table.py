"""The immutable table."""

from hypothesis import given
from hypothesis import strategies as st

from hostmesh_controller.mesh.memo import Memo
from hostmesh_controller.mesh.table import IndexEdit, Table

keys = st.integers(0, 600)
changes = st.dictionaries(keys, st.none() | st.text(max_size=2))


@given(st.lists(changes, max_size=5))
def test_a_table_is_a_dict_that_keeps_its_past(steps: list[dict[int, str | None]]) -> None:
    table: Table[int, str] = Table()
    expected: dict[int, str] = {}
    past = []
    for step in steps:
        past.append((table, dict(expected)))
        table = table.changed(step)
        expected = {key: value for key, value in (expected | step).items() if value is not None}
    for each, was in [*past, (table, expected)]:
        assert dict(each) == was
        assert len(each) == len(was)
        assert all(key in each for key in was)


def test_a_change_that_changes_nothing_gives_the_same_table() -> None:
    value = "v"
    table = Table[str, str]().changed({"a": value})
    assert table.changed({"a": value}) is table
    assert table.changed({"b": None}) is table


def test_an_index_forgets_keys_without_values_and_the_last_word_counts() -> None:
    edit: IndexEdit[str, int] = IndexEdit()
    edit.add("a", 1)
    edit.add("a", 2)
    edit.remove("b", 1)
    index = edit.apply(Table())
    assert dict(index) == {"a": frozenset({1, 2})}
    edit = IndexEdit()
    edit.remove("a", 1)
    edit.remove("a", 2)
    edit.add("a", 1)
    edit.add("b", 3)
    edit.remove("b", 3)
    index = edit.apply(index)
    assert dict(index) == {"a": frozenset({1})}
    edit = IndexEdit()
    edit.remove("a", 1)
    assert dict(edit.apply(index)) == {}


def test_what_is_kept_is_made_again_from_what_was_and_stays_the_same_object_while_it_is_equal() -> None:
    memo, seen = Memo(), list[tuple[tuple[object, ...], object]]()

    def make(inputs: tuple[object, ...], result: str | None) -> str:
        seen.append((inputs, result))
        return f"made {len(seen)}"

    first, second = object(), object()
    assert [memo.step("key", (each,), make) for each in (first, first, second)] == ["made 1", "made 1", "made 2"]
    assert seen == [((), None), ((first,), "made 1")]
    known = memo.same("other", (1, 2))
    assert memo.same("other", (1, *[2])) is known
    assert memo.same("other", (3,)) == (3,)
