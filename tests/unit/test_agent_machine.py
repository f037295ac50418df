"""What a machine is, read from its files; in which cloud, asked where it says so."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import clouds
from hostmesh_agent import machine
from hostmesh_agent.cgroup_names import Place, place_of
from hostmesh_agent.cloud import Whereabouts, look
from hostmesh_agent.config import parse
from hostmesh_agent.config_table import ConfigError
from hostmesh_agent.machine_facts import AZURE_TAG, Traces, cloud_of, cpu_model, virtualisation
from waiting import until

ID = "0123456789abcdef" * 4
GUEST = "processor\t: 0\nmodel name\t: Intel(R) Xeon(R)\nflags\t\t: fpu hypervisor sse\n"


@pytest.mark.parametrize(
    ("cgroup", "place"),
    [
        ("0::/system.slice/nginx.service", Place("nginx.service")),
        ("0::/system.slice/system-postgresql.slice/postgresql@15-main.service", Place("postgresql@15-main.service")),
        ("0::/user.slice/user-1000.slice/user@1000.service/app.slice/web.service", Place("web.service")),
        ("0::/user.slice/user-1000.slice/session-3.scope", Place("session-3.scope")),
        ("12:pids:/system.slice/a.service\n1:name=systemd:/system.slice/a.service", Place("a.service")),
        (f"0::/system.slice/docker-{ID}.scope", Place(container=f"docker:{ID}")),
        (f"4:memory:/docker/{ID}\n0::/", Place(container=f"docker:{ID}")),
        (f"0::/machine.slice/libpod-{ID}.scope/container", Place(container=f"podman:{ID}")),
        (f"0::/user.slice/user-1.slice/user@1.service/user.slice/libpod-{ID}.scope", Place(container=f"podman:{ID}")),
        (f"0::/machine.slice/libpod-conmon-{ID}.scope", Place(f"libpod-conmon-{ID}.scope")),
        (f"0::/kubepods.slice/kubepods-pod1.slice/cri-containerd-{ID}.scope", Place(container=f"containerd:{ID}")),
        (f"0::/system.slice/containerd.service/kubepods-pod1:cri-containerd:{ID}", Place(container=f"containerd:{ID}")),
        (f"0::/kubepods/burstable/pod12/{ID}", Place(container=f"oci:{ID}")),
        ("0::/lxc.payload.web/system.slice/nginx.service", Place(container="lxc:web")),
        ("2:cpu:/lxc/old/ns", Place(container="lxc:old")),
        (f"0::/lxc.payload.web/system.slice/docker-{ID}.scope", Place(container=f"docker:{ID}")),
        ("0::/", Place()),
        ("0::/../..", Place()),
        ("nonsense", Place()),
        ("", Place()),
    ],
)
def test_unit_and_container_are_read_from_the_cgroups_name(cgroup: str, place: Place) -> None:
    assert place_of(cgroup) == place


def test_a_name_of_a_cgroup_is_bounded() -> None:
    assert len(place_of("0::/lxc/" + "x" * 5000).container) == 256


@pytest.mark.parametrize(
    ("traces", "found"),
    [
        (Traces({}), "none"),
        (Traces({"sys_vendor": "Dell Inc.", "product_name": "PowerEdge"}), "none"),
        (Traces({"sys_vendor": "QEMU", "product_name": "KVM"}, GUEST), "kvm"),
        (Traces({"sys_vendor": "Amazon EC2", "product_name": "t3.micro"}, GUEST), "amazon"),
        (Traces({"sys_vendor": "Amazon EC2", "product_name": "m5.metal"}), "none"),
        (Traces({"sys_vendor": "Microsoft Corporation", "product_name": "Virtual Machine"}, GUEST), "microsoft"),
        (Traces({"sys_vendor": "VMware, Inc."}, GUEST), "vmware"),
        (Traces({}, GUEST), "vm-other"),
        (Traces({}, hypervisor="xen"), "xen"),
        (Traces({"product_name": "KVM"}, GUEST, container="lxc"), "lxc"),
        (Traces({"product_name": "KVM"}, GUEST, dockerenv=True), "docker"),
        (Traces({}, cgroup="0::/lxc.payload.a/init.scope"), "lxc"),
        (Traces({}, containerenv=True), "podman"),
    ],
)
def test_virtualisation_is_the_innermost(traces: Traces, found: str) -> None:
    assert virtualisation(traces) == found


def test_the_processor_has_a_name_where_the_kernel_gives_one() -> None:
    assert cpu_model(GUEST + GUEST.replace("Xeon", "Other")) == "Intel(R) Xeon(R)"
    assert cpu_model("processor : 0\nBogoMIPS : 50\n") == ""


def test_only_the_firmware_of_a_cloud_makes_anybody_ask() -> None:
    assert cloud_of({"sys_vendor": "Amazon EC2"}) == "aws"
    assert cloud_of({"sys_vendor": "Xen", "bios_vendor": "Amazon EC2"}) == "aws"
    assert cloud_of({"sys_vendor": "Google"}) == "gcp"
    assert cloud_of({"sys_vendor": "Microsoft Corporation", "chassis_asset_tag": AZURE_TAG}) == "azure"
    assert cloud_of({"sys_vendor": "Microsoft Corporation", "chassis_asset_tag": "7"}) == ""
    assert cloud_of({"sys_vendor": "QEMU"}) == ""


@pytest.mark.parametrize(
    ("provider", "region", "zone", "kind"),
    [
        ("aws", "eu-central-1", "eu-central-1b", "t3.micro"),
        ("gcp", "europe-west3", "europe-west3-a", "e2-medium"),
        ("azure", "westeurope", "westeurope-2", "Standard_B2s"),
    ],
)
async def test_each_clouds_metadata_service_tells_where_the_machine_is(
    provider: str, region: str, zone: str, kind: str
) -> None:
    with clouds.serving(clouds.Metadata()) as base:
        here = look(provider, Whereabouts(provider, lambda: None, base)._asked)
    assert (here.provider, here.region, here.zone, here.instance_type) == (provider, region, zone, kind)
    assert here.instance_id


async def test_where_there_is_no_cloud_nobody_is_asked_and_one_that_fails_is_asked_again_later() -> None:
    metadata, told = clouds.Metadata(status=500), asyncio.Event()
    with clouds.serving(metadata) as base:
        nowhere = asyncio.create_task(Whereabouts("", told.set, base, 0.05).run())
        somewhere = Whereabouts("aws", told.set, base, 0.05)
        task = asyncio.create_task(somewhere.run())
        await until(lambda: len(metadata.requests) >= 2)
        assert (somewhere.cloud, set(metadata.requests)) == (None, {"PUT /latest/api/token"})
        metadata.status = 200
        async with asyncio.timeout(10):
            await told.wait()
        assert somewhere.cloud is not None
        for each in (task, nowhere):
            each.cancel()


@pytest.mark.parametrize("answer", [b"{}", b"[]", b"nonsense", b'{"region": 1}'])
def test_an_answer_that_makes_no_sense_is_refused(answer: bytes) -> None:
    def ask(method: str, path: str, headers: Mapping[str, str]) -> bytes:
        return b"token" if method == "PUT" else answer

    with pytest.raises((ValueError, KeyError, TypeError)):
        look("aws", ask)


def test_traces_are_read_from_files_and_missing_ones_say_nothing(tmp_path: Path) -> None:
    assert machine.traces(tmp_path) == Traces(dmi=dict.fromkeys(machine._DMI, ""))
    place = tmp_path / "sys/class/dmi/id"
    place.mkdir(parents=True)
    (place / "sys_vendor").write_text("Google\n")
    (tmp_path / "proc/1").mkdir(parents=True)
    (tmp_path / "proc/1/environ").write_bytes(b"A=b\0container=lxc\0")
    found = machine.traces(tmp_path)
    assert (found.dmi["sys_vendor"], found.container) == ("Google", "lxc")


def test_disks_are_real_ones_and_interfaces_have_their_prefixes() -> None:
    for each in machine.disks():
        assert each.size_bytes >= each.free_bytes
        assert each.filesystem not in {"tmpfs", "proc", "sysfs", "squashfs", "overlay"}
    assert "lo" not in {each.name for each in machine.interfaces()}
    assert all("/" in address for each in machine.interfaces() for address in each.addresses)


def _refusal(text: str) -> str:
    with pytest.raises(ConfigError) as refused:
        parse(text, "agent.toml")
    return str(refused.value)


def test_labels_and_what_is_observed_are_the_owners_word() -> None:
    config = parse("[labels]\nrack = 'r7'\n'example.com/room' = 'b'\n[observe]\nenabled = false\n", "agent.toml")
    assert (config.labels, config.observe.enabled) == ({"example.com/room": "b", "rack": "r7"}, False)
    assert 'labels."a b"' in _refusal("[labels]\n'a b' = 'x'")
    assert "63" in _refusal(f"[labels]\na = '{'x' * 64}'")
    assert "interval_s" in _refusal("[observe]\ninterval_s = 3600")
    many: dict[str, Any] = {f"k{index}": "v" for index in range(65)}
    assert "at most 64" in _refusal("[labels]\n" + "\n".join(f"{key} = '{value}'" for key, value in many.items()))
