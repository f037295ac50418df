"""The join string survives copying or says that it did not."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostmesh_api.joinstring import JoinString

WHOLE = JoinString(("10.0.0.1:15013", "[fd00::1]:15013", "mesh.example.org:15013"), b"\x30" * 450, "t" * 43)


def test_what_is_encoded_is_decoded_equal_also_with_blanks_around_it() -> None:
    assert JoinString.decode(f"  {WHOLE.encode()}\n") == WHOLE


def test_who_pastes_the_whole_command_means_its_string() -> None:
    assert JoinString.decode(f"sudo hostmesh-agent join {WHOLE.encode()}\n") == WHOLE


def test_a_join_string_is_one_word_that_no_shell_changes() -> None:
    assert set(WHOLE.encode()) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.")


def test_its_repr_shows_no_token() -> None:
    assert "ttt" not in repr(WHOLE)


@given(st.integers(min_value=0, max_value=len(WHOLE.encode()) - 1))
def test_a_cut_one_is_refused_with_the_cure(length: int) -> None:
    with pytest.raises(ValueError, match="copy the whole line"):
        JoinString.decode(WHOLE.encode()[:length])


@given(st.integers(min_value=4, max_value=len(WHOLE.encode()) - 1), st.sampled_from("Aa0-_.!é\n"))
def test_a_changed_one_is_refused_or_the_same(place: int, character: str) -> None:
    text = WHOLE.encode()
    changed = text[:place] + character + text[place + 1 :]
    # Equal: the last character's spare bits, or a blank at the end.
    with suppress(ValueError):
        assert JoinString.decode(changed) == WHOLE


def test_a_newer_form_says_to_upgrade_the_agent() -> None:
    with pytest.raises(ValueError, match="upgrade hostmesh-agent"):
        JoinString.decode("hm2.abc")


@pytest.mark.parametrize("text", ["", "hello", "hm1", "eyJhbGciOi"])
def test_what_is_no_join_string_is_named_so(text: str) -> None:
    with pytest.raises(ValueError, match="not a join string"):
        JoinString.decode(text)


@pytest.mark.parametrize(
    "endpoint", ["", "10.0.0.1", "10.0.0.1:0", "10.0.0.1:65536", "fd00::1:15013", "a b:1", "unix:/x:1", "a:\uff11"]
)
def test_an_endpoint_that_is_not_host_and_port_is_refused(endpoint: str) -> None:
    with pytest.raises(ValueError, match="is not host:port"):
        JoinString((endpoint,), b"x", "t")


def test_no_endpoint_no_root_and_a_strange_token_are_refused() -> None:
    with pytest.raises(ValueError, match="1 to 32 endpoints"):
        JoinString((), b"x", "t")
    with pytest.raises(ValueError, match="does not fit"):
        JoinString(("a:1",), b"", "t")
    with pytest.raises(ValueError, match="join token"):
        JoinString(("a:1",), b"x", "t t")
