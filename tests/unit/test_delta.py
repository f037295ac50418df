"""Conversations of the delta protocol: both sides, no I/O."""

from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest, DeltaDiscoveryResponse
from envoy.service.discovery.v3.discovery_pb2 import Resource as ResourceMessage

from hostmesh_api.delta import WILDCARD, Answer, ClientStream, Push, Resource, ServerStream
from hostmesh_api.wire import CLUSTER_TYPE, ENDPOINT_TYPE, HELD_BACK, LISTENER_TYPE, VIRTUAL_HOST_TYPE


def resource(name: str, version: str) -> Resource:
    return Resource(name, version, ResourceMessage(name=name, version=version).SerializeToString())


class Shelf:
    """A source whose content a test sets: type to name to version; None stands for "certainly not there"."""

    def __init__(self) -> None:
        self.content: dict[str, dict[str, str | None]] = {}
        self.listed: dict[str, list[str]] = {}

    def names(self, type_url: str) -> list[str] | None:
        return self.listed.get(type_url)

    def answer(self, type_url: str, name: str) -> Answer | None:
        known = self.content.get(type_url, {})
        if name not in known:
            return None
        version = known[name]
        return Answer(None if version is None else resource(name, version))


def ask(type_url: str, *names: str, **held: str) -> DeltaDiscoveryRequest:
    return DeltaDiscoveryRequest(type_url=type_url, resource_names_subscribe=names, initial_resource_versions=held)


def read(push: Push) -> dict[str, str]:
    message = DeltaDiscoveryResponse.FromString(push.data)
    assert (message.type_url, message.nonce) == (push.type_url, push.nonce)
    assert tuple(message.removed_resources) == push.removed
    return {each.name: each.version for each in message.resources}


def ack(push: Push) -> DeltaDiscoveryRequest:
    return ClientStream.ack(push.type_url, push.nonce)


def test_a_first_wildcard_request_is_answered_with_everything_listed() -> None:
    shelf, stream = Shelf(), ServerStream()
    shelf.listed[LISTENER_TYPE] = ["a", "b"]
    shelf.content[LISTENER_TYPE] = {"a": "1", "b": "1", "c": "1"}
    assert stream.receive(ask(LISTENER_TYPE)).subscribed == (WILDCARD,)
    (push,) = stream.pushes(shelf)
    assert read(push) == {"a": "1", "b": "1"}
    assert not stream.idle()
    assert stream.receive(ack(push)).acked == ("a", "b")
    assert stream.idle()


def test_an_empty_first_answer_is_sent_so_that_the_client_does_not_wait() -> None:
    shelf, stream = Shelf(), ServerStream()
    shelf.listed[CLUSTER_TYPE] = []
    stream.receive(ask(CLUSTER_TYPE))
    (push,) = stream.pushes(shelf)
    assert read(push) == {}
    stream.receive(ask(VIRTUAL_HOST_TYPE))
    (push,) = stream.pushes(shelf)
    assert (push.type_url, read(push)) == (VIRTUAL_HOST_TYPE, {})


def test_a_reconnect_with_the_same_versions_is_sent_nothing() -> None:
    shelf, stream = Shelf(), ServerStream()
    shelf.listed[CLUSTER_TYPE] = ["own"]
    shelf.content[CLUSTER_TYPE] = {"own": "1", "used": "4"}
    stream.receive(ask(CLUSTER_TYPE, WILDCARD, "used", own="1", used="4"))
    assert list(stream.pushes(shelf)) == []
    assert stream.idle()


def test_a_reconnect_is_sent_what_changed_and_told_what_is_gone() -> None:
    shelf, stream = Shelf(), ServerStream()
    shelf.listed[CLUSTER_TYPE] = ["own"]
    shelf.content[CLUSTER_TYPE] = {"own": "2", "used": "4", "old": None}
    stream.receive(ask(CLUSTER_TYPE, WILDCARD, "used", own="1", used="4", old="9"))
    (push,) = stream.pushes(shelf)
    assert read(push) == {"own": "2"}
    assert push.removed == ("old",)


def test_only_what_was_asked_for_and_did_change_is_pushed() -> None:
    shelf, stream = Shelf(), ServerStream()
    shelf.content[ENDPOINT_TYPE] = {"a": "1", "b": "1"}
    stream.receive(ask(ENDPOINT_TYPE, "a"))
    (push,) = stream.pushes(shelf)
    stream.receive(ack(push))
    shelf.content[ENDPOINT_TYPE] = {"a": "1", "b": "2"}
    stream.mark(ENDPOINT_TYPE, ["a", "b"])
    assert list(stream.pushes(shelf)) == []
    shelf.content[ENDPOINT_TYPE]["a"] = "2"
    stream.mark(ENDPOINT_TYPE, ["a", "b"])
    (push,) = stream.pushes(shelf)
    assert read(push) == {"a": "2"}


def test_a_wildcard_client_is_not_sent_names_that_it_did_not_ask_for() -> None:
    shelf, stream = Shelf(), ServerStream()
    shelf.listed[CLUSTER_TYPE] = ["own"]
    shelf.content[CLUSTER_TYPE] = {"own": "1", "other": "1"}
    stream.receive(ask(CLUSTER_TYPE))
    (push,) = stream.pushes(shelf)
    stream.receive(ack(push))
    stream.mark(CLUSTER_TYPE, ["other"])
    assert list(stream.pushes(shelf)) == []


def test_changes_during_a_response_in_flight_are_folded_into_the_next() -> None:
    shelf, stream = Shelf(), ServerStream()
    shelf.content[ENDPOINT_TYPE] = {"a": "1"}
    stream.receive(ask(ENDPOINT_TYPE, "a"))
    (first,) = stream.pushes(shelf)
    for version in "234":
        shelf.content[ENDPOINT_TYPE]["a"] = version
        stream.mark(ENDPOINT_TYPE, ["a"])
        assert list(stream.pushes(shelf)) == []
    stream.receive(ack(first))
    (second,) = stream.pushes(shelf)
    assert read(second) == {"a": "4"}


def test_a_name_that_does_not_exist_is_answered_as_removed_and_an_unknown_one_waits() -> None:
    shelf, stream = Shelf(), ServerStream()
    shelf.content[CLUSTER_TYPE] = {"nowhere": None}
    shelf.listed[CLUSTER_TYPE] = []
    stream.receive(ask(CLUSTER_TYPE, WILDCARD, "nowhere", "later"))
    (push,) = stream.pushes(shelf)
    assert push.removed == ("nowhere",)
    stream.receive(ack(push))
    assert list(stream.pushes(shelf)) == []
    shelf.content[CLUSTER_TYPE]["later"] = "1"
    (push,) = stream.pushes(shelf)
    assert read(push) == {"later": "1"}


def test_a_refused_response_is_sent_again_one_by_one_and_the_bad_one_alone_stays_refused() -> None:
    shelf, stream = Shelf(), ServerStream()
    shelf.content[ENDPOINT_TYPE] = {"bad": "1", "good": "1"}
    stream.receive(ask(ENDPOINT_TYPE, "bad", "good"))
    (push,) = stream.pushes(shelf)
    received = stream.receive(ClientStream.nack(ENDPOINT_TYPE, push.nonce, "no"))
    assert received.acked is None
    assert received.nacked is not None
    assert received.nacked.names == ("bad", "good")
    (push,) = stream.pushes(shelf)
    assert read(push) == {"bad": "1"}
    assert stream.receive(ClientStream.nack(ENDPOINT_TYPE, push.nonce, "no")).nacked is not None
    (push,) = stream.pushes(shelf)
    assert read(push) == {"good": "1"}
    assert stream.receive(ack(push)).acked == ("good",)
    assert list(stream.pushes(shelf)) == []
    assert stream.idle()


def test_an_old_or_invented_nonce_settles_nothing() -> None:
    shelf, stream = Shelf(), ServerStream()
    shelf.content[ENDPOINT_TYPE] = {"a": "1"}
    stream.receive(ask(ENDPOINT_TYPE, "a"))
    assert len(list(stream.pushes(shelf))) == 1
    assert stream.receive(ClientStream.ack(ENDPOINT_TYPE, "zz")).acked is None
    assert not stream.settled(ENDPOINT_TYPE)


def test_asking_again_is_answered_again() -> None:
    shelf, stream = Shelf(), ServerStream()
    shelf.content[ENDPOINT_TYPE] = {"a": "1"}
    stream.receive(ask(ENDPOINT_TYPE, "a"))
    (push,) = stream.pushes(shelf)
    stream.receive(ack(push))
    stream.receive(ask(ENDPOINT_TYPE, "a"))
    (push,) = stream.pushes(shelf)
    assert read(push) == {"a": "1"}


def test_what_is_unsubscribed_is_not_pushed_any_more() -> None:
    shelf, stream = Shelf(), ServerStream()
    shelf.content[ENDPOINT_TYPE] = {"a": "1"}
    stream.receive(ask(ENDPOINT_TYPE, "a"))
    (push,) = stream.pushes(shelf)
    stream.receive(ack(push))
    received = stream.receive(DeltaDiscoveryRequest(type_url=ENDPOINT_TYPE, resource_names_unsubscribe=["a"]))
    assert received.unsubscribed == ("a",)
    shelf.content[ENDPOINT_TYPE]["a"] = "2"
    stream.mark(ENDPOINT_TYPE, ["a"])
    stream.mark_all()
    assert list(stream.pushes(shelf)) == []


def test_what_is_referred_to_is_sent_before_what_refers_to_it() -> None:
    shelf, stream = Shelf(), ServerStream()
    for type_url in (LISTENER_TYPE, VIRTUAL_HOST_TYPE, ENDPOINT_TYPE, CLUSTER_TYPE):
        shelf.content[type_url] = {"x": "1"}
        stream.receive(ask(type_url, "x"))
    assert [push.type_url for push in stream.pushes(shelf)] == [
        CLUSTER_TYPE,
        ENDPOINT_TYPE,
        LISTENER_TYPE,
        VIRTUAL_HOST_TYPE,
    ]


def test_the_asking_side_repeats_its_wishes_on_a_new_stream_and_says_what_it_holds() -> None:
    client = ClientStream()
    assert client.want(LISTENER_TYPE, [WILDCARD]) is None
    (opening,) = client.open({LISTENER_TYPE: {"a": "1"}})
    assert list(opening.resource_names_subscribe) == [WILDCARD]
    assert dict(opening.initial_resource_versions) == {"a": "1"}
    client.want(ENDPOINT_TYPE, ["e"])
    opening_type = client.open_type(ENDPOINT_TYPE, {"e": "3", "foreign": "4"})
    assert opening_type is not None
    assert dict(opening_type.initial_resource_versions) == {"e": "3"}
    more = client.want(ENDPOINT_TYPE, ["e", "f"])
    assert more is not None
    assert list(more.resource_names_subscribe) == ["f"]
    client.close()
    assert client.want(ENDPOINT_TYPE, ["g"]) is None
    again = client.open({})
    assert [request.type_url for request in again] == [ENDPOINT_TYPE, LISTENER_TYPE]
    assert list(again[0].resource_names_subscribe) == ["e", "f", "g"]


def test_both_sides_agree_on_the_bytes() -> None:
    shelf, stream = Shelf(), ServerStream()
    shelf.content[ENDPOINT_TYPE] = {"a": "1"}
    stream.receive(ask(ENDPOINT_TYPE, "a"))
    (push,) = stream.pushes(shelf)
    update = ClientStream.update(DeltaDiscoveryResponse.FromString(push.data))
    assert update.resources == (resource("a", "1"),)


def test_a_bound_on_names_makes_small_responses_one_after_the_other() -> None:
    shelf, stream = Shelf(), ServerStream(at_most=2)
    shelf.listed[LISTENER_TYPE] = list("abcde")
    shelf.content[LISTENER_TYPE] = dict.fromkeys("abcde", "1")
    stream.receive(ask(LISTENER_TYPE, WILDCARD, a="1"))
    sizes = []
    while pushes := list(stream.pushes(shelf)):
        (push,) = pushes
        sizes.append(len(push.names))
        stream.receive(ack(push))
    assert sizes == [2, 2], "what the client has is not counted"
    assert stream.idle()


def test_what_a_client_holds_back_is_not_sent_again_one_by_one() -> None:
    shelf, stream = Shelf(), ServerStream()
    shelf.listed[LISTENER_TYPE] = ["a", "b"]
    shelf.content[LISTENER_TYPE] = {"a": "1", "b": "1"}
    stream.receive(ask(LISTENER_TYPE, WILDCARD))
    (push,) = stream.pushes(shelf)
    received = stream.receive(ClientStream.nack(LISTENER_TYPE, push.nonce, f"{HELD_BACK}too much would go"))
    assert received.nacked is not None
    assert received.nacked.names == ("a", "b")
    assert list(stream.pushes(shelf)) == []
