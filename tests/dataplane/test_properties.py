"""Whatever happens, in whatever order: the kernel ends up as desired, but for conflicts, and foreign routes untouched."""

from __future__ import annotations

import errno
from dataclasses import replace

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from routed.dataplane.engine import KernelEngine, KernelSettings
from routed.desired import Gateway, KernelRoute, RouteBatch, RouteKind
from routed.net.addresses import parse_address
from routed.net.families import Family
from routed.net.prefixes import parse_prefix
from routed.netlink.messages import messages, parse_error
from routed.netlink.numbers import NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE
from routed.testing.kernel import FibRoute, ModelKernel, ModelSocket, command, model_driver

OWN = 120
PREFIXES = [parse_prefix(text) for text in ("0.0.0.0/0", "10.1.0.0/24", "10.1.0.0/16", "10.2.2.2/32")]
PREFIXES += [parse_prefix(text) for text in ("::/0", "fd01::/64", "fd02::1/128")]
HOW = [NLM_F_CREATE | NLM_F_EXCL, NLM_F_CREATE | NLM_F_APPEND, NLM_F_CREATE, NLM_F_CREATE | NLM_F_REPLACE]


class Guarded(ModelKernel):
    """Tells when our writer removes what is not ours."""

    def __init__(self) -> None:
        super().__init__()
        self.writers: set[int] = set()
        self.sender = 0
        self.violations: list[FibRoute] = []

    def handle(self, sender: ModelSocket, data: bytes) -> None:
        self.sender = sender.port
        super().handle(sender, data)
        self.sender = 0

    def _drop(self, route: FibRoute) -> None:
        if self.sender in self.writers and route.protocol != OWN:
            self.violations.append(route)
        super()._drop(route)


class KernelMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.kernel = Guarded()
        self.person = self.kernel.open()
        self.desired: dict[tuple[Family, bytes], KernelRoute] = {}
        self.failed: dict[tuple[Family, bytes], int] = {}
        self.tickets = 0
        """Numbers given to what was asked of the running engine, and how many of them came back."""
        self.first_ticket = 0
        self.links = [self.kernel.add_link("eth0"), self.kernel.add_link("eth1")]
        self.addresses = {}
        for number, index in enumerate(self.links):
            for text, length in ((f"10.0.{number}.1", 24), (f"fd00:{number}::1", 64)):
                self.kernel.add_address(index, parse_address(text), length)
                self.addresses[parse_address(text)] = (index, length)
        self.present = set(self.addresses)
        self.down: set[int] = set()
        self.driver = None

    def gateway(self, family: Family, number: int, last: int) -> Gateway:
        text = f"10.0.{number}.{last}" if family is Family.IPV4_UNICAST else f"fd00:{number}::{last}"
        return Gateway(parse_address(text), self.links[number])

    def observe(self) -> None:
        routes = self.driver.engine.routes
        for failure in routes.failures:
            self.failed[failure.family, failure.prefix] = failure.errno
        for where in routes.cleared:
            assert where in self.failed
            del self.failed[where]
        routes.failures, routes.cleared = [], []
        self.driver.engine.take_change()

    def command(self, data: bytes) -> int:
        self.person.send(data)
        return parse_error(next(messages(self.person.receive()))).errno

    @initialize()
    def begin(self) -> None:
        self.driver = model_driver(self.kernel, lambda port: KernelEngine(KernelSettings(protocol=OWN), port))
        self.kernel.writers.add(self.driver._writer.port)
        self.driver.engine.start(0.0)
        self.driver.pump()

    @rule(
        prefixes=st.lists(st.sampled_from(PREFIXES), min_size=1, max_size=5, unique=True),
        choice=st.sampled_from(["one", "other", "both", "bad", "blackhole", "absent", "absent"]),
        last=st.integers(2, 3),
        metric=st.sampled_from([0, 0, 0, 512, 1024]),
    )
    def desire(self, prefixes, choice, last, metric) -> None:
        for family in Family:
            these = [prefix for f, prefix in prefixes if f is family]
            if not these:
                continue
            a, b = self.gateway(family, 0, last), self.gateway(family, 1, last)
            bad = Gateway(parse_address("192.0.2.1" if family is Family.IPV4_UNICAST else "fdff::1"), self.links[0])
            route = {
                "one": KernelRoute(RouteKind.UNICAST, (a,)),
                "other": KernelRoute(RouteKind.UNICAST, (b,)),
                "both": KernelRoute(RouteKind.UNICAST, tuple(sorted((a, b)))),
                "bad": KernelRoute(RouteKind.UNICAST, (bad,)),
                "blackhole": KernelRoute(RouteKind.BLACKHOLE),
                "absent": None,
            }[choice]
            if route is not None:
                route = replace(route, metric=metric)
            self.tickets += 1
            self.driver.engine.apply([RouteBatch(family, these, route)], self.tickets)
            for prefix in these:
                if route is None:
                    self.desired.pop((family, prefix), None)
                else:
                    self.desired[family, prefix] = route

    @rule(
        where=st.sampled_from(PREFIXES), flags=st.sampled_from(HOW), number=st.integers(0, 1), last=st.integers(8, 9),
        metric=st.sampled_from([0, 0, 50, 512]), protocol=st.sampled_from([4, 4, 16, OWN]),
    )  # fmt: skip
    def somebody_adds(self, where, flags, number, last, metric, protocol) -> None:
        family, prefix = where
        if protocol == OWN and (flags != NLM_F_CREATE | NLM_F_REPLACE or metric or family is Family.IPV6_UNICAST):
            return  # under our number it is ours to judge; several of them would not be told apart
        if protocol == OWN and any(
            r.prefix == prefix and r.protocol != OWN for r in self.kernel.routes() if r.family is family
        ):
            return
        gateways = (self.gateway(family, number, last),)
        self.command(command(FibRoute(family, prefix, 254, metric, protocol, 1, gateways), flags=flags))

    @rule(data=st.data())
    def somebody_removes(self, data) -> None:
        routes = [route for route in self.kernel.routes() if route.protocol != 2]
        if routes:
            route = data.draw(st.sampled_from(sorted(routes, key=repr)))
            self.command(command(route, delete=True))

    @rule(number=st.integers(0, 1))
    def link_goes(self, number) -> None:
        index = self.links[number]
        self.kernel.set_link(index, enabled=index in self.down)
        self.down ^= {index}

    @rule(number=st.integers(0, 3))
    def address_goes(self, number) -> None:
        address = sorted(self.addresses)[number]
        index, length = self.addresses[address]
        if address in self.present:
            self.kernel.remove_address(index, address, length)
        else:
            self.kernel.add_address(index, address, length)
        self.present ^= {address}

    @rule(operation=st.sampled_from(["add", "delete"]), code=st.sampled_from([errno.ENOMEM, errno.EINVAL, errno.EPERM]))
    def kernel_refuses(self, operation, code) -> None:
        self.kernel.fail_next(operation, code)

    @rule()
    def answers_get_lost(self) -> None:
        self.kernel.lose_answers_of = self.driver._writer.port

    @rule()
    def notifications_get_lost(self) -> None:
        monitor = self.driver._monitor
        monitor.queue.clear()
        monitor.overflowed = True

    @rule(seconds=st.sampled_from([0.0, 0.06, 1.0, 100.0]))
    def time_passes(self, seconds) -> None:
        self.driver.run(seconds)
        self.observe()

    @precondition(lambda self: self.driver is not None)
    @rule()
    def pump(self) -> None:
        self.driver.pump()
        self.observe()

    def mixed_groups(self) -> bool:
        """Whether the kernel holds IPv6 groups with legs of ours and others', which a new engine can't tell apart."""
        protocols: dict[tuple[bytes, int], set[bool]] = {}
        for r in self.kernel.routes():
            if r.family is Family.IPV6_UNICAST:
                protocols.setdefault((r.prefix, r.metric), set()).add(r.protocol == OWN)
        return any(len(each) == 2 for each in protocols.values())

    @precondition(lambda self: not self.mixed_groups())
    @rule()
    def restart(self) -> None:
        now = self.driver.now
        self.driver._monitor.listening = False
        self.begin()
        self.driver.now = now
        self.failed = {}
        self.first_ticket = self.tickets
        self.driver.pump()
        for (family, prefix), route in self.desired.items():
            self.driver.engine.apply([RouteBatch(family, [prefix], route)])
        self.driver.engine.sweep(list(Family))

    @invariant()
    def foreign_routes_untouched(self) -> None:
        assert self.kernel.violations == []

    def teardown(self) -> None:
        if self.driver is None:
            return
        kernel = self.kernel
        kernel._failures.clear()
        kernel.lose_answers_of = 0
        for index in self.down:
            kernel.set_link(index, enabled=True)
        for address in set(self.addresses) - self.present:
            index, length = self.addresses[address]
            kernel.add_address(index, address, length)
        self.driver.engine.sweep(list(Family))
        self.driver.run(400.0)
        self.observe()
        engine = self.driver.engine
        assert engine.idle and engine.routes.problem == ""
        assert sorted(engine.routes.done_tickets) == list(range(self.first_ticket + 1, self.tickets + 1)), "each once"
        assert kernel.violations == []
        bad = {parse_address("192.0.2.1"), parse_address("fdff::1")}
        for family in Family:
            for _, prefix in [where for where in PREFIXES if where[0] is family]:
                wanted = self.desired.get((family, prefix))
                metric = (wanted.metric if wanted is not None else 0) or engine.watch.own_metric(family)
                at = [r for r in kernel.routes() if r.family is family and r.prefix == prefix]
                ours = [r for r in at if r.protocol == OWN]
                held = [r for r in at if r.protocol != OWN and r.metric == metric]
                entry = engine.routes.entry(family, prefix)
                assert all(r.metric == metric for r in ours), "leftovers of another metric"
                if wanted is None:
                    assert not ours and entry is None and (family, prefix) not in self.failed
                elif (family, prefix) in self.failed:
                    assert held or any(leg.address in bad for leg in wanted.gateways)
                    assert entry.state == "failed" and entry.reason
                else:
                    assert [(r.kind, tuple(sorted(r.gateways))) for r in ours] == [(wanted.kind, wanted.gateways)]
                    assert entry.state == "installed"
                foreign = engine.watch.holder(family, prefix, metric)
                assert (foreign is not None) == bool(held)


TestKernel = KernelMachine.TestCase
TestKernel.settings = settings(
    max_examples=100, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)


def test_what_stood_in_the_way_under_our_number_and_is_swept_leaves_our_route_there():
    """An example that was found: the deletion's acknowledgement ended the refusal, and the route was forgotten."""
    machine = KernelMachine()
    machine.begin()
    where = PREFIXES[0]
    machine.desire([where], "one", 2, 512)
    machine.pump()
    machine.desire([where], "one", 2, 0)
    machine.somebody_adds(where, NLM_F_CREATE | NLM_F_REPLACE, 0, 8, 0, OWN)
    machine.pump()
    machine.teardown()


def test_what_could_not_be_deleted_at_the_usual_metric_is_found_behind_the_route_of_another():
    """An example that was found: a dump shows the lower metric first, and the rest was taken for it."""
    machine = KernelMachine()
    machine.begin()
    where = next(where for where in PREFIXES if where[0] is Family.IPV6_UNICAST)
    machine.desire([where], "both", 3, 1024)
    machine.kernel_refuses("delete", errno.EINVAL)
    machine.pump()
    machine.desire([where], "one", 3, 512)
    machine.pump()
    machine.teardown()
