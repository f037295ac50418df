"""What may be asked of the program that exchanges packages: a request is the name of a unit, and nothing else is."""

import re

import pytest

from hostmesh_agent.upgrader import program, request
from hostmesh_agent.upgrader.request import BadRequestError, Request, Verb

NAME, ENVOY = "hostmesh-agent", "hostmesh-envoy"
NEW = "0.2.0"
TOKEN = "0123456789abcdef"


def test_a_request_becomes_a_unit_and_is_read_again() -> None:
    for version in (NEW, "1.2.3~rc1", "1.2.3+b.1", "1"):
        asked = Request(NAME, version, Verb.MIRROR, TOKEN)
        instance = asked.unit.removeprefix("hostmesh-upgrade@").removesuffix(".service")
        assert re.fullmatch(r"[A-Za-z0-9:_.\\-]{1,200}", instance)
        assert request.parse(instance) == asked


@pytest.mark.parametrize(
    "text",
    [
        "",
        f"{NAME}:{NEW}:mirror",
        f"{NAME}:{NEW}:mirror:{TOKEN}:more",
        f"bash:{NEW}:packages:{TOKEN}",
        f"{NAME}2:{NEW}:packages:{TOKEN}",
        f"../{NAME}:{NEW}:mirror:{TOKEN}",
        f"{NAME}:../../etc:mirror:{TOKEN}",
        f"{NAME}:0.2.0/../x:mirror:{TOKEN}",
        f"{NAME}:0.2.0 -o APT=1:mirror:{TOKEN}",
        f"{NAME}:--purge:mirror:{TOKEN}",
        f"{NAME}:0.2.0;id:mirror:{TOKEN}",
        f"{NAME}:0.2.0-1:mirror:{TOKEN}",
        f"{NAME}:0.2.0*:mirror:{TOKEN}",
        f"{NAME}:\u0660.\u0662:mirror:{TOKEN}",
        f"{NAME}:{'1' * 300}:mirror:{TOKEN}",
        f"{NAME}:{NEW}:remove:{TOKEN}",
        f"{NAME}:{NEW}:mirror:../{TOKEN[3:]}",
        f"{NAME}:{NEW}:mirror:{TOKEN[:-1]}\n",
        f"{NAME}:{NEW}:mirror:{TOKEN}\n",
        f"{NAME}:{NEW}:mirror:{TOKEN.upper()}",
        f"{ENVOY}:{NEW}:mirror:{TOKEN}",
    ],
)
def test_what_is_no_request_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BadRequestError):
        request.parse(text)
    assert program.main([text]) == 2
    assert "refused" in capsys.readouterr().err


def test_options_are_no_requests() -> None:
    for words in ([], ["--help"], ["a", "b"]):
        assert program.main(words) == 2
