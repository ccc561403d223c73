"""Which of this machine's programs stand for a container image.

There are no images here: a topology's `image` names what should run, and this table says what that is on this machine,
with the folders such an image would have to itself. An image that is not in the table is refused.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import field

from routed.testing.lab.clab import NodeSpec
from routed.testing.lab.document import TopologyError
from routed.values import dataclass

#: What FRR's own image starts: a supervisor that starts the daemons named in /etc/frr/daemons and loads frr.conf.
FRR_START = """\
log_success_msg() { echo "$*"; }; log_warning_msg() { echo "$*"; }; log_failure_msg() { echo "$*"; }
touch /etc/frr/vtysh.conf
[ -e /etc/frr/daemons ] || printf 'bgpd=no\nzebra_options="-A 127.0.0.1 -s 90000000"\n' > /etc/frr/daemons
. /usr/lib/frr/frrcommon.sh
exec /usr/lib/frr/watchfrr $watchfrr_options $(daemon_list)"""


@dataclass(frozen=True, slots=True)
class Image:
    """What runs in a node, and what it needs."""

    role: str
    """What is in it: routed, bird, frr, gobgp or host."""
    entrypoint: tuple[str, ...]
    cmd: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    """Programs of this machine."""
    config: str = ""
    """Where a `startup-config` goes."""
    folders: Mapping[str, str] = field(default_factory=dict)
    """Folders of the node's own, empty at the start, and whose they are."""


_FRR = Image(
    "frr",
    ("/bin/bash", "-c", FRR_START),
    needs=("/usr/lib/frr/watchfrr", "/usr/lib/frr/zebra", "/usr/lib/frr/bgpd", "vtysh"),
    config="/etc/frr/frr.conf",
    folders={"/etc/frr": "frr", "/run/frr": "frr", "/var/tmp/frr": "frr", "/var/log/frr": "frr"},
)
_HOST = Image("host", (), ("sleep", "infinity"), needs=("ip", "ping"))

#: By the image's name without registry and tag.
IMAGES = {
    "routed": Image(
        "routed",
        ("routed",),
        ("run",),
        config="/etc/routed/routed.yaml",
        folders={"/etc/routed": "root", "/var/lib/routed": "root"},
    ),
    "bird": Image(
        "bird",
        ("bird", "-f", "-c", "/etc/bird/bird.conf"),
        needs=("bird", "birdc"),
        config="/etc/bird/bird.conf",
        folders={"/etc/bird": "root", "/run/bird": "root"},
    ),
    "frrouting/frr": _FRR,
    "frr": _FRR,
    "osrg/gobgp": Image(
        "gobgp",
        ("gobgpd", "-p", "-f", "/etc/gobgp/gobgp.toml"),
        needs=("gobgpd", "gobgp"),
        config="/etc/gobgp/gobgp.toml",
        folders={"/etc/gobgp": "root"},
    ),
    **dict.fromkeys(("alpine", "debian", "ubuntu", "nicolaka/netshoot", "wbitt/network-multitool"), _HOST),
}


def image_of(node: NodeSpec) -> Image:
    """What stands for a node's image here. Raises TopologyError where nothing does, or where it is not installed."""
    name = re.sub(r"(:[^/:]*)?(@.*)?$", "", node.image)
    registry, slash, rest = name.partition("/")
    if slash and re.search(r"[.:]|^localhost$", registry):
        name = rest
    image = IMAGES.get(name.removeprefix("library/"))
    if image is None:
        known = ", ".join(sorted(IMAGES))
        raise TopologyError(
            f"{node.place}: no program of this machine stands for the image {node.image}; known are {known}"
        )
    missing = [program for program in image.needs if shutil.which(program) is None]
    if missing:
        raise TopologyError(
            f"{node.place}: the image {node.image} is not to be had here: {', '.join(missing)} not installed"
        )
    if node.startup_config is not None and not image.config:
        raise TopologyError(f"{node.place}: startup-config: nothing in the image {node.image} reads one; use binds")
    return image
