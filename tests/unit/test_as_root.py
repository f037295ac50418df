"""An agent that is root: where it has to be, and what is put in place for that and taken away again."""

from dataclasses import replace
from pathlib import Path

import pytest

from hostmesh_agent import as_root
from hostmesh_agent.capture import kernel
from hostmesh_agent.config import AgentConfig, CaptureSettings, DnsSettings, EnvoySettings
from hostmesh_agent.own_unit import UnitError
from unit.test_agent_own_unit import Systemd

PLAIN = AgentConfig()


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (PLAIN, ""),
        (replace(PLAIN, envoy=EnvoySettings(supervisor="systemd")), ""),
        (replace(PLAIN, envoy=EnvoySettings(supervisor="builtin")), "envoy.supervisor"),
        (replace(PLAIN, envoy=EnvoySettings(user="proxy")), "envoy.user"),
        (replace(PLAIN, capture=CaptureSettings(backend="iptables")), "iptables"),
        (replace(PLAIN, dns=DnsSettings(resolv_conf=Path("/srv/resolv.conf"))), "dns.resolv_conf"),
        (replace(PLAIN, dns=DnsSettings(enabled=False, resolv_conf=Path("/srv/resolv.conf"))), ""),
    ],
)
def test_what_takes_root_is_told_by_name(config: AgentConfig, told: str) -> None:
    why = as_root.why(config)
    assert told in why
    assert bool(told) == bool(why)


def test_a_kernel_without_nf_tables_takes_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "has_nf_tables", lambda: False)
    assert "iptables" in as_root.why(PLAIN)
    assert as_root.why(replace(PLAIN, capture=CaptureSettings(backend="nftables"))) == ""


@pytest.fixture
def drop_ins(tmp_path: Path) -> Path:
    made = tmp_path / "as-root"
    made.mkdir()
    for each in ("agent", "ready"):
        (made / f"hostmesh-{each}.service.conf").write_text("[Service]\nUser=root\n")
    return made


def test_it_is_switched_on_and_off_and_systemd_is_told_of_changes_alone(tmp_path: Path, drop_ins: Path) -> None:
    systemd, place = Systemd(tmp_path), tmp_path / "etc"

    def switch(*, on: bool) -> bool:
        return as_root.switch(on, place, drop_ins, str(systemd.program))

    assert [switch(on=True), switch(on=True)] == [True, False]
    found = {str(each.relative_to(place)): each.readlink() for each in place.rglob("*.conf")}
    assert found == {
        f"hostmesh-{each}.service.d/hostmesh-as-root.conf": drop_ins / f"hostmesh-{each}.service.conf"
        for each in ("agent", "ready")
    }
    (place / "hostmesh-ready.service.d/theirs.conf").write_text("")
    assert [switch(on=False), switch(on=False)] == [True, False]
    # What the host's owner has put beside it stays.
    assert [str(each.relative_to(place)) for each in sorted(place.rglob("*"))] == [
        "hostmesh-ready.service.d",
        "hostmesh-ready.service.d/theirs.conf",
    ]
    assert systemd.said() == ["daemon-reload"] * 2


def test_what_systemd_says_is_told(tmp_path: Path, drop_ins: Path) -> None:
    systemd = Systemd(tmp_path, fails="daemon-reload")
    with pytest.raises(UnitError, match=r"daemon-reload: Job failed\."):
        as_root.switch(True, tmp_path / "etc", drop_ins, str(systemd.program))
