"""Writes this node into the datastore: addresses found, resources read, what is missing or differs written.

`routed node init` does it once; with `node.register` the daemon does it at its start, tries again while there is no
address yet or the datastore does not answer, and does it once more when an address is gone and there is another.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable

from routed.core.effects import Level
from routed.dataplane.interfaces import read_interfaces, source_towards
from routed.datastore.applying import stamped
from routed.datastore.store import Conflict, Store
from routed.errors import ConfigError, KernelError, StoreError
from routed.model.policies import Tier
from routed.model.resources import BGPConfiguration, IPPool, JsonObject, Node, NodeAddress, ResourceKey
from routed.model.schema import parse_stored
from routed.model.settings import ClusterInformation
from routed.net.families import Family
from routed.observed import Interface
from routed.plan.autodetect import Detected, detect
from routed.plan.registration import Registration, wanted_resources
from routed.values import dataclass

#: Seconds between two attempts of the daemon.
RETRY = 5.0
_ATTEMPTS = 5
_KINDS = (Node.kind, BGPConfiguration.kind, IPPool.kind, ClusterInformation.kind, Tier.kind)


@dataclass(frozen=True, slots=True)
class Written:
    key: ResourceKey
    where: str
    """A file and line, or a path in etcd."""
    manifest: JsonObject


async def register(
    registration: Registration, store: Store, addresses: dict[Family, Detected] | None = None
) -> list[Written]:
    """Make the datastore know this node, with the addresses given or found now. What was written.

    Raises ConfigError where no address is found or another node has it, StoreError where the datastore does not answer.
    """
    if addresses is None:
        addresses = await asyncio.to_thread(find_addresses, registration)
    written: list[Written] = []
    guid = _guid(store)
    for _ in range(_ATTEMPTS):
        there = (await store.read(_KINDS)).resources
        manifests = wanted_resources(registration, addresses, (each.resource for each in there.values()), guid)
        try:
            for manifest in manifests:
                resource = parse_stored(manifest)
                stored = there.get(resource.key)
                if stored is None and store.shared_with_calico:
                    resource = parse_stored(stamped(manifest))
                await store.write(resource.key, resource, None if stored is None else stored.revision)
                stored = await store.get(resource.key)
                written.append(Written(resource.key, "" if stored is None else stored.where, manifest))
        except Conflict:  # another node was faster with what the cluster has one of
            continue
        return written
    raise StoreError("the datastore is changed by others at the same time; try again")


async def would_write(registration: Registration, store: Store | None) -> list[Written]:
    """What `register` would write; without a store: into an empty one. Raises ConfigError, StoreError."""
    addresses = await asyncio.to_thread(find_addresses, registration)
    there = (await store.read(_KINDS)).resources if store is not None else {}
    guid = _guid(store) if store is not None else ""
    manifests = wanted_resources(registration, addresses, (each.resource for each in there.values()), guid)
    return [Written(parse_stored(manifest).key, "", manifest) for manifest in manifests]


def _guid(store: Store) -> str:
    """For a cluster that has none yet, as 32 digits; empty where a node's folder is no cluster's datastore."""
    return secrets.token_hex(16) if store.shared_with_calico else ""


def find_addresses(registration: Registration) -> dict[Family, Detected]:
    """The node's addresses by the ways that are configured. Raises ConfigError."""
    try:
        interfaces, passing = read_interfaces()
    except (OSError, KernelError) as error:
        raise ConfigError("", f"cannot read this node's interfaces: {error}") from None
    found: dict[Family, Detected] = {}
    for family, way in registration.ways.items():
        if way is None:
            continue
        if isinstance(way, NodeAddress):
            found[family] = _said(way, family, interfaces)
            continue
        answer = detect(way, family, interfaces, source_towards, passing)
        if isinstance(answer, str):
            raise ConfigError("", answer)
        found[family] = answer
    if not found:
        raise ConfigError("node", "neither ipv4 nor ipv6 says how to find an address of this node")
    return found


def _said(way: NodeAddress, family: Family, interfaces: list[Interface]) -> Detected:
    """An address that is said; without its subnet's length that of the interface that has it."""
    length, name = way.subnet[0], ""
    for each in interfaces:
        for address, own in each.addresses:
            if address == way.address:
                length, name = own if length == family.max_length else length, each.name
    return Detected(way.address, length, name)


class Registrar:
    """The daemon's: it registers the node, and again with the address that follows when one it found is gone (DHCP).

    As long as the addresses are on an interface they stay, though another method's look would find others by now: new
    addresses end all sessions. Calico's node looks for others once a minute and takes what it finds.
    """

    def __init__(
        self,
        registration: Registration,
        store: Store,
        log: Callable[[Level, str, str], None],
        *,
        lost: Callable[[], bool],
    ) -> None:
        """`lost` says whether an address of the Node is on no interface of this node."""
        self._registration = registration
        self._store = store
        self._log = log
        self._lost = lost
        self._found: dict[Family, Detected] = {}
        """The addresses that are registered."""
        self.problem = ""

    async def run(self) -> None:
        while True:
            if not self._found or self._lost():
                await self._register()
            await asyncio.sleep(RETRY)

    async def _register(self) -> None:
        try:
            addresses = await asyncio.to_thread(find_addresses, self._registration)
            written = await register(self._registration, self._store, addresses) if addresses != self._found else []
        except (ConfigError, StoreError) as error:
            what = "registered with another address" if self._found else "registered"
            problem = f"this node is not {what} yet: {error}"
            if problem != self.problem:
                self._log(Level.ERROR, "node", problem)
            self.problem = problem
            return
        if self._found and addresses != self._found:
            self._log(
                Level.WARNING, "node", f"addresses changed: {_listed(self._found)} before, {_listed(addresses)} now"
            )
        self._found = addresses
        self.problem = ""
        for each in written:
            self._log(Level.INFO, "node", f"{each.key} was written ({each.where})")


def _listed(addresses: dict[Family, Detected]) -> str:
    return ", ".join(map(str, addresses.values()))
