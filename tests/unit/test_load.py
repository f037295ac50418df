"""Files in, objects and problems out: the places are right, nothing raises, nothing costs more than its size."""

import json
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hostmesh_controller.load import Problem, load_documents
from hostmesh_controller.model import ObjectKey
from hostmesh_controller.yaml_nodes import Limits

HOST = "apiVersion: hostmesh.io/v1\nkind: Host\nmetadata: {name: h1}\nspec: {addresses: [10.0.0.1]}\n"


def problems(text: str | bytes, source: str = "f.yaml") -> list[str]:
    return [str(problem) for problem in load_documents(text, source)[1]]


def test_every_mistake_is_told_with_its_line_field_and_nearest_name() -> None:
    text = """\
# routes of reviews
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata:
  name: reviews
spec:
  hosts: [reviews]
  http:
    - mach:
        - uri: {exact: /x}
      mirror:
        host: "*"
      route:
        - destination: {host: reviews}
          weight: "80"
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata:
  name: r1
spec:
  adress: 10.0.0.1
"""
    assert problems(text) == [
        "f.yaml:9: spec.http[0].mach: unknown field 'mach'; did you mean 'match'?",
        "f.yaml:12: spec.http[0].mirror.host: '*' is no destination: name a service",
        "f.yaml:15: spec.http[0].route[0].weight: expected an integer, found the text '80'",
        "f.yaml:22: spec.adress: unknown field 'adress'; did you mean 'address'?",
    ]


def test_a_problem_has_a_column_and_a_code_for_programs() -> None:
    [problem] = load_documents(HOST + "  \nspecs: 1", "f.yaml")[1]
    assert (problem.line, problem.column, problem.path, problem.code) == (6, 1, "specs", "unknown-field")
    assert problem.is_error


def test_objects_know_where_each_field_stands() -> None:
    [made], wrong = load_documents("# first\n" + HOST, "-")
    assert wrong == []
    assert made.origin is not None
    assert made.origin.file == "<stdin>"
    assert made.origin.place(("spec", "addresses", 0)) == (5, 20)
    assert made.origin.place(("spec", "capture", "scope")) == (5, 1)


def test_a_list_counts_as_its_items() -> None:
    text = (
        "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Namespace\n  metadata: {name: a}\n- kind: Hots\n"
    )
    objects, wrong = load_documents(text, "f.yaml")
    assert [item.key for item in objects] == [ObjectKey("Namespace", "", "a")]
    assert [str(problem) for problem in wrong] == [
        "f.yaml:7: items[1].apiVersion: required field 'apiVersion' is missing",
        "f.yaml:7: items[1].kind: unknown kind 'Hots'; did you mean 'Host'?",
    ]


def test_objects_without_a_namespace_get_the_default_one() -> None:
    text = "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: a}"
    [made], _ = load_documents(text, "f", default_namespace="shop")
    assert made.key.namespace == "shop"
    assert made.metadata.namespace == "shop"


@pytest.mark.parametrize("default", ["../x", "Shop", "a/b", "x" * 64])
def test_a_default_namespace_that_is_no_name_is_refused_like_a_written_one(default: str) -> None:
    text = "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: a}"
    made, wrong = load_documents(text, "f", default_namespace=default)
    assert (made, [(each.path, each.code) for each in wrong]) == ([], [("metadata.namespace", "name")])


def test_half_a_character_that_json_can_escape_is_refused() -> None:
    text = '{"apiVersion":"v1","kind":"ServiceAccount","metadata":{"name":"a","annotations":{"b":"\\ud800"}}}'
    made, wrong = load_documents(text, "f.json")
    assert (made, [(each.line, each.code) for each in wrong]) == ([], [(1, "character")])


@pytest.mark.parametrize(
    "text", ["", "\n", "# only a comment\n", "---\n---\n", "--- # x\n", "%YAML 1.2\n---\n", "\ufeff", "null"]
)
def test_nothing_in_nothing_out(text: str) -> None:
    assert load_documents(text, "f.yaml") == ([], [])


def test_documents_may_end_with_dots_and_have_windows_line_ends() -> None:
    text = (HOST + "...\n---\n" + HOST.replace("h1", "h2")).replace("\n", "\r\n")
    objects, wrong = load_documents(text, "f.yaml")
    assert [item.key.name for item in objects] == ["h1", "h2"]
    assert wrong == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: b: c", "f.yaml:1: not valid YAML: a ':' where no value can start (indentation, or text that needs"),
        ("a:\n\t- b", "f.yaml:2: not valid YAML: a tab stands where only spaces may (indent with spaces)"),
        ("a: b\n\n x: 'y\n", "f.yaml:3: not valid YAML: "),
        ("\n\na: 'x\n", "f.yaml:4: not valid YAML: the text ends within quotes (while scanning a quoted scalar"),
        ("a: [1, 2", "f.yaml:1: not valid YAML: "),
        ("@x", "f.yaml:1: not valid YAML: "),
        ('"\\UFFFFFFFF"', "f.yaml:1: not valid YAML: "),
        ("a: *b", "f.yaml:1: alias *b has no anchor &b before it"),
        ("a: &a [*a]", "f.yaml:1: alias *a stands inside what it refers to"),
        ("!python/object:os.system x", "f.yaml:1: the tag "),
        ("{{ .Values.x }}: 1", "f.yaml:1: a key must be a name (is this a template that was not rendered?)"),
        ("a\x00b", "f.yaml:1: the character U+0000 is not allowed"),
        ("a: 1\nb: \ud800", "f.yaml:2: the character U+D800 is not allowed"),
        (b"a: 1\nb: \xe9", "f.yaml:2: not UTF-8: byte 0xe9"),
        (b"\xff\xfea\x00", "f.yaml:1: not UTF-8: byte 0xff"),
        ("[1, 2]", "f.yaml:1: expected an object (a mapping with apiVersion and kind), found a list"),
        ("text", "f.yaml:1: expected an object (a mapping with apiVersion and kind), found the text 'text'"),
    ],
)  # fmt: skip
def test_broken_text_is_told_by_its_line(text: str | bytes, problem: str) -> None:
    assert problems(text)[0].startswith(problem)


def test_a_key_that_is_there_twice_is_refused_with_both_lines() -> None:
    text = HOST + "spec: {addresses: [10.0.0.2]}\n"
    assert problems(text) == ["f.yaml:5: key 'spec' is there twice (first on line 4)"]
    assert load_documents(text, "f.yaml")[0] == []


def test_one_broken_document_does_not_hide_the_others() -> None:
    objects, wrong = load_documents(f"{HOST}---\nfoo: 'x\n---\nkind: Hots\napiVersion: v1\n---\n{HOST}", "f.yaml")
    assert [item.key.name for item in objects] == ["h1", "h1"]
    assert [problem.line for problem in wrong] == [7, 8]


def test_anchors_aliases_and_merge_keys_are_understood() -> None:
    text = """\
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: a}
spec:
  host: a
  subsets:
    - &one {name: v1, labels: {version: v1}}
    - {<<: *one, name: v2}
"""
    [made], wrong = load_documents(text, "f.yaml")
    assert wrong == []
    assert made.to_dict()["spec"]["subsets"] == [
        {"name": "v1", "labels": {"version": "v1"}},
        {"name": "v2", "labels": {"version": "v1"}},
    ]


def test_scalars_follow_yaml_1_2_and_times_stay_text() -> None:
    text = HOST.replace("{name: h1}", "{name: h1, annotations: {a: yes, b: 2024-01-01, c: 'on', d: 1:2, e: .inf}}")
    [made], wrong = load_documents(text, "f.yaml")
    assert wrong == []
    assert made.metadata.annotations == {"a": "yes", "b": "2024-01-01", "c": "on", "d": "1:2", "e": ".inf"}


def test_aliases_that_grow_without_end_are_stopped() -> None:
    levels = "abcdefghijkl"
    bomb = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{name}: &{name} [{','.join([f'*{before}'] * 10)}]\n" for before, name in pairwise(levels)
    )
    [problem] = load_documents(bomb, "f.yaml", limits=Limits(values=10_000))[1]
    assert problem.code == "too-big"


def test_long_texts_that_aliases_repeat_are_stopped() -> None:
    bomb = f"a: &a {'x' * 100_000}\nb: [{','.join(['*a'] * 1000)}]\n"
    [problem] = load_documents(bomb, "f.yaml", limits=Limits(values=10_000))[1]
    assert problem.code == "too-big"


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, "- " * 10_000 + "x", "[" * 100_000 + "]" * 100_000, "? " * 5000]
)
def test_deep_nesting_is_stopped(text: str) -> None:
    [problem] = load_documents(text, "f.yaml")[1]
    assert problem.code == "too-deep"


def test_a_text_that_is_too_large_is_not_read() -> None:
    [problem] = load_documents("a: 1\n" * 100, "f.yaml", limits=Limits(text_bytes=100))[1]
    assert problem.code == "too-big"
    assert load_documents("é" * 60, "f.yaml", limits=Limits(text_bytes=100))[1][0].code == "too-big"


def test_more_documents_or_problems_than_anyone_reads_are_cut_short() -> None:
    objects, wrong = load_documents("---\na: 1\n" * 30, "f.yaml", limits=Limits(documents=10))
    assert objects == []
    assert wrong[-1].message == "more than 10 documents: divide the file"
    many = load_documents("a: 1\n" * 3000, "f.yaml")[1]
    assert len(many) == 1001
    assert many[-1].message == "more than 1000 problems: the rest is not told"


def test_json_is_read_with_the_places_of_its_fields() -> None:
    text = json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "😀"},
            "spec": {"ports": [{"port": 80}, {"prt": 1}]},
        },
        indent="\t",
    )
    assert problems(text, "f.json") == [
        "f.json:5: metadata.name: '😀' is not a valid name: up to 63 lower-case letters, digits and '-', starting and "
        "ending with a letter or digit",
        "f.json:12: spec.ports[1].port: required field 'port' is missing",
        "f.json:13: spec.ports[1].prt: unknown field 'prt'; did you mean 'port'?",
    ]


def test_json_with_a_key_twice_or_a_number_that_is_none_is_not_taken_as_it_is() -> None:
    assert problems('{"kind": "Host",\n "kind": "Host"}')[0] == "f.yaml:2: key 'kind' is there twice (first on line 1)"
    assert problems('{"kind": NaN, "apiVersion": "v1"}') == ["f.yaml:1: kind: unknown kind 'NaN'"]


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
DOCUMENTS = st.fixed_dictionaries(
    {},
    optional={
        "apiVersion": st.sampled_from(["v1", "networking.istio.io/v1"]) | JSON_VALUES,
        "kind": st.sampled_from(["Service", "VirtualService", "List"]) | JSON_VALUES,
        "metadata": st.fixed_dictionaries({"name": st.just("a") | JSON_VALUES}) | JSON_VALUES,
        "spec": JSON_VALUES
        | st.dictionaries(st.sampled_from(["hosts", "http", "ports"]) | st.text(max_size=5), JSON_VALUES),
        "items": JSON_VALUES,
    },
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(DOCUMENTS)
def test_any_document_gives_objects_or_problems_and_never_raises(document: object) -> None:
    for text in (json.dumps(document), json.dumps(document, ensure_ascii=False, indent=2)):
        objects, wrong = load_documents(text, "f.json")
        assert len(objects) <= 1 or not wrong
        assert all(problem.line >= 1 and problem.column >= 1 and str(problem) for problem in wrong)


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="ab:-[]{}&*!|>'\"%@`,?# \t\n\r.<~\x85\u2028\ufeff0é", max_size=60) | st.binary(max_size=40))
@example("? \n- a")
@example("a: |\n b\n---\nc")
def test_any_text_gives_objects_or_problems_and_never_raises(text: str | bytes) -> None:
    for problem in load_documents(text, "f.yaml")[1]:
        assert problem.line >= 1
        assert problem.column >= 1


def test_a_problem_of_an_object_without_a_file_names_the_object() -> None:
    key = ObjectKey("Host", "", "h1")
    problem = Problem(str(key), 0, 0, "spec.addresses[0]", "is taken", "x", "warning", key)
    assert str(problem) == "Host h1: warning: spec.addresses[0]: is taken"
