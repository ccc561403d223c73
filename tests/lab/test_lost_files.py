"""What a folder of resource files knew of living pods is lost, since an older copy was put back or it was emptied: the pods
go on as they do on etcd, and nobody gets an address of theirs. One file that somebody deletes stays deleted."""

from __future__ import annotations

import shutil
import signal
import sys
from collections.abc import Iterator
from itertools import permutations
from pathlib import Path

import pytest

from routed.testing.lab import Lab, Namespace, stays, wait_for
from routed.testing.routers import resource
from tests.lab.test_cni import DUAL, Node, cluster
from tests.lab.test_metrics import value

pytestmark = pytest.mark.lab

#: Files that only programs write.
MADE = ("workloadendpoint-", "ipamblock-", "ipamhandle-", "blockaffinity-", "profile-")


class Site:
    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.node = Node.alone(lab)
        self.node.routed.put(*cluster(1))
        self.node.start()
        self.folder: Path = self.node.routed.resources
        self.pods: dict[str, tuple[Namespace, list[str]]] = {}

    def add(self, name: str) -> None:
        pod = self.lab.namespace(name)
        self.pods[name] = (pod, self.node.runtime.add(pod, **DUAL).addresses)

    def follow(self) -> None:
        """Until the daemon has seen in the folder what it has written there: what it never saw cannot vanish."""
        mark = resource("Node", "mark", {"bgp": {"ipv4Address": "10.0.0.200/24"}})
        for change in (lambda: self.node.routed.put(mark), lambda: self.node.routed.remove("Node", "mark")):
            before = set(self.node.routed.sessions())
            change()
            wait_for(
                lambda before=before: set(self.node.routed.sessions()) != before, 30, "the folder is followed",
                state=self.lab.report,
            )  # fmt: skip

    def remove(self, name: str) -> None:
        assert self.node.runtime.call("DEL", self.pods.pop(name)[0], **DUAL).status == 0

    def made(self) -> set[str]:
        return {file.name for file in self.folder.iterdir() if file.name.startswith(MADE)}

    def unreachable(self) -> list[str]:
        """Addresses of pods that do not answer another pod, or that two have."""
        given = [address for _, addresses in self.pods.values() for address in addresses]
        return [each for each in given if given.count(each) > 1] + [
            f"{source} -> {address}"
            for source, target in permutations(self.pods, 2)
            for address in self.pods[target][1]
            if not self.pods[source][0].pings(address)
        ]

    def check(self) -> str:
        argv = (sys.executable, "-m", "routed.cli.main", "--config", str(self.node.routed.config), "ipam", "check")
        return self.node.namespace.run(*argv, check=False)


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with Lab() as lab:
        yield Site(lab)


def written_again(site: Site, names: list[str], files: set[str]) -> None:
    """All is as it was, and the next pod gets other addresses."""
    wait_for(lambda: site.made() == files, 40, "all files are back", state=site.lab.report)
    lines = [f"{name}-eth0 runs here, and the folder does not have it: written again" for name in names]
    wait_for(lambda: all(line in site.node.routed.log() for line in lines), 30, "it is told", state=site.lab.report)
    wait_for(lambda: not site.unreachable(), 30, "every pod answers", state=site.unreachable)
    site.add(f"after-{names[0]}")
    wait_for(lambda: not site.unreachable(), 30, "every pod answers", state=site.unreachable)
    wait_for(lambda: "add up" in site.check(), 30, "all adds up", state=site.check)
    site.remove(f"after-{names[0]}")


def test_an_older_copy_is_put_back(site: Site, tmp_path: Path) -> None:
    site.add("old")
    site.follow()
    shutil.copytree(site.folder, tmp_path / "copy")
    for name in ("y1", "y2"):
        site.add(name)
    site.follow()
    files = site.made()
    for file in [each for each in site.folder.iterdir() if each.is_file()]:
        if not (tmp_path / "copy" / file.name).exists():
            file.unlink()
    shutil.copytree(tmp_path / "copy", site.folder, dirs_exist_ok=True)
    written_again(site, ["y1", "y2"], files)


def test_the_folder_is_emptied_and_gets_what_people_write(site: Site, tmp_path: Path) -> None:
    site.follow()
    files = site.made()
    ours = [each for each in site.folder.iterdir() if each.is_file() and not each.name.startswith(MADE)]
    for file in ours:
        shutil.copy(file, tmp_path)
    site.node.routed.processes[0].signal(signal.SIGSTOP)  # or it might write some again while others go
    for file in [each for each in site.folder.iterdir() if each.is_file()]:
        file.unlink()
    site.node.routed.processes[0].signal(signal.SIGCONT)
    wait_for(
        lambda: any("the folder does not have pods which run here" in each for each in site.node.routed.problems()), 30,
        "that they can't be written is told", state=site.node.routed.problems,
    )  # fmt: skip
    for file in ours:
        shutil.copy(tmp_path / file.name, file)
    written_again(site, ["old", "y1", "y2"], files)
    wait_for(lambda: not site.node.routed.problems(), 30, "nothing is wrong", state=site.node.routed.problems)


def test_an_endpoint_that_somebody_deletes_stays_deleted_and_is_told(site: Site) -> None:
    (endpoint,) = (
        file for file in site.folder.iterdir() if file.name.startswith("workloadendpoint-") and "y1" in file.name
    )
    assert value(site.node.routed, "routed_pods_without_endpoint") == 0
    endpoint.unlink()
    end = site.node.interfaces()[0]

    def told() -> bool:
        mtu = "1400" if "mtu 1400" not in site.node.namespace.run("ip", "link", "show", end) else "1300"
        site.node.namespace.ip(f"link set {end} mtu {mtu}")  # has the daemon look, which does so every 30 s else
        return any("no WorkloadEndpoint has the interfaces cali" in each for each in site.node.routed.problems())

    wait_for(told, 90, "it is told", state=site.lab.report, every=1)
    assert value(site.node.routed, "routed_pods_without_endpoint") == 1
    stays(lambda: not endpoint.exists(), 4.0, "nobody writes it again")
    _, addresses = site.pods["y1"]
    site.add("other")
    assert not set(site.pods["other"][1]) & set(addresses)
    site.remove("y1")
    wait_for(lambda: "add up" in site.check(), 30, "all is given back", state=site.check)
    wait_for(lambda: not site.node.routed.problems(), 60, "nothing is wrong", state=site.node.routed.problems)
    assert value(site.node.routed, "routed_pods_without_endpoint") == 0
