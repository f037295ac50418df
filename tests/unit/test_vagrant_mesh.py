"""The mesh of virtual machines: its services find its workloads, and it says whether it was ever run."""

import re
import subprocess
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from hostmesh_controller.load import load_documents

ROOT = Path(__file__).parents[2]
VAGRANT = ROOT / "vagrant"


def plays() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = YAML(typ="safe").load((VAGRANT / "site.yml").read_text())
    return found


def test_its_two_services_select_the_labels_of_its_two_workloads() -> None:
    text = (VAGRANT / "services.yaml").read_text()
    loaded, problems = load_documents(text, "services.yaml")
    assert problems == []
    assert len(loaded) == 2
    services = list(YAML(typ="safe").load_all(text))
    (settings,) = [task for play in plays() for task in play.get("tasks", ()) if "ansible.builtin.set_fact" in task]
    facts = settings["ansible.builtin.set_fact"]
    labels = re.findall(r"\{'app': '(\w+)'\}", facts["agent_workload_labels"])
    assert sorted(each["spec"]["selector"]["app"] for each in services) == sorted(labels) == ["catalog", "orders"]
    assert {each["metadata"]["namespace"] for each in services} == {facts["agent_workload_namespace"]}


def test_its_last_play_calls_both_and_asks_who_called() -> None:
    (call,) = plays()[-1]["tasks"]
    assert "answer.status == 200 and caller in answer.json.caller" in call["until"]
    assert call["vars"]["caller"].startswith("URI=spiffe://cluster.local/ns/shop/sa/")
    assert "'catalog', 'orders'" in call["loop"]


def test_it_says_whether_it_was_run() -> None:
    (said,) = (VAGRANT / "LAST_RUN").read_text().splitlines()
    assert said == "not run yet" or re.fullmatch(r"\d{4}-\d\d-\d\d, \d+ s, driver \w+, commit \S+: host3 .*, 200", said)
    for guide in (ROOT / "README.md", VAGRANT / "README.md"):
        assert "LAST_RUN" in guide.read_text()


def test_the_script_that_runs_it_is_a_script() -> None:
    subprocess.run(["sh", "-n", str(ROOT / "packaging/vagrant_up.sh")], check=True, timeout=10)
