"""One family's routes: Adj-RIB-In per peer, and the Loc-RIB they compete in (RFC 4271 sections 3.2 and 9.1).

What makes it fast (measured, see docs/benchmarks.md): prefixes stay wire bytes and are handled a message at a time with
whole-dictionary operations; a path is shared by all prefixes announced with it; a prefix with one candidate *is* that
path in the table, and only where there is a choice does a `Candidates` hold several and the decision run.

Invariants:
- Nothing is stored twice: of what a peer announced, the table holds what our import filter let in (a path knows what it
  was announced as), and `AdjRibIn.refused` the rest. To walk one peer's routes is to walk the table, which only rare
  events do, in slices.
- Every change of a best path is appended once to `changes`, of a kernel route once to `kernel_changes`, in order; the
  owner drains both once per turn. A re-announcement that changes nothing appends nothing.
- A session that ends bumps its Adj-RIB-In's epoch; paths of an older epoch are stale, and `sweep` removes them in slices.
- The outcome depends only on the set of candidates, never on arrival order.

Not here: encoding and who hears about a change (`adj_out`), how next hops resolve (`nexthops`), comparing (`decide`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from routed.bgp.attributes import AttributeSet
from routed.desired import Gateway, KernelRoute, RouteKind
from routed.net.families import Family
from routed.net.prefixes import DEFAULT_ROUTE
from routed.rib.decide import MAXIMUM_PATHS
from routed.rib.decide import best as decide_best
from routed.rib.filters import RouteFilter
from routed.rib.nexthops import NextHop
from routed.rib.path import HIGHEST_LOCAL_PREF, Path, Source

#: Prefixes handled between two looks at the clock when a whole table is walked (about 2 ms of work).
SLICE = 4000

#: Attribute sets a session's path cache may hold before it is emptied (the paths in use stay alive in the tables).
PATH_CACHE = 65536


class Candidates:
    """A prefix that several sources announced (or once did): the choice, and what came of it."""

    __slots__ = ("best", "multipath", "paths", "route")

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths
        """One a source, usable or not, in no meaningful order."""
        self.best: Path | None = None
        self.multipath: tuple[Path, ...] = ()
        self.route: KernelRoute | None = None


class Change:
    """Prefixes whose best path went from `old` to `new`; either may be None."""

    __slots__ = ("new", "old", "prefixes")

    def __init__(self, old: Path | None, new: Path | None, prefixes: Sequence[bytes]) -> None:
        self.old = old
        self.new = new
        self.prefixes = prefixes


class AdjRibIn:
    """What one peer announced in one family, as far as the table does not hold it. See the module's docstring."""

    __slots__ = ("count", "epoch", "import_filter", "imported", "next_hops", "paths", "refused", "source", "stale")

    def __init__(self, source: Source, import_filter: RouteFilter) -> None:
        self.source = source
        self.import_filter = import_filter
        self.count = 0
        """Prefixes the peer has announced and not withdrawn."""
        self.refused: dict[bytes, Path] = {}
        """Those of them that a loop check or the import filter keeps out of the table."""
        self.paths: dict[AttributeSet, Path] = {}
        """This session's paths by attribute set."""
        self.imported: dict[tuple[Path, AttributeSet], Path] = {}
        """Paths whose attributes the import filter changed, by what they were made from."""
        self.next_hops: set[NextHop] = set()
        """Next hops of any path the table may hold."""
        self.epoch = 0
        self.stale = 0
        """How many of `count` are of an older epoch."""

    def forget_unused(self, live: set[NextHop]) -> None:
        """Let go of paths the table does not hold, and of next hops no path uses (`live`: those one does)."""
        self.paths.clear()
        self.imported.clear()
        self.next_hops = live | {path.next_hop for path in self.refused.values() if path.next_hop is not None}

    def new_epoch(self) -> None:
        """From here on what was announced before is stale."""
        self.epoch += 1
        self.stale = self.count
        self.paths.clear()
        self.imported.clear()
        if not self.count:
            self.next_hops.clear()


class FamilyRib:
    """The Loc-RIB of one family and the machinery around it. See the module's docstring."""

    def __init__(self, family: Family, *, program_routes: bool, maximum_paths: int = MAXIMUM_PATHS) -> None:
        self.family = family
        self.program_routes = program_routes
        self.maximum_paths = maximum_paths
        self.normal_priority = 0
        """The priority of a path without LOCAL_PREF, where LOCAL_PREF says a route's priority in the kernel; else 0."""
        self.table: dict[bytes, Path | Candidates] = {}
        self.changes: list[Change] = []
        self.version = 0
        """How many best paths have changed so far; what other routers call the table version."""
        self.kernel_changes: list[tuple[KernelRoute | None, Sequence[bytes]]] = []
        self.default_route_seen = False
        """A default route was in the table at some time: exports must look out for it."""
        self.watched: set[bytes] = set()
        """Prefixes that cover a tracked next hop, by which it may resolve."""
        self.touched: set[bytes] = set()
        """Those of them whose candidates changed; the owner takes them away."""
        self.own_next_hops: set[NextHop] = set()
        """Those of paths of our own."""
        self._open: Change | None = None
        """The last of `changes` while single prefixes may still be added to it."""
        self._open_kernel: list[bytes] | None = None
        self._kernel_routes: dict[tuple[tuple[Gateway, ...], int], KernelRoute] = {}

    # ---- what peers say

    def announce(self, adj_in: AdjRibIn, path: Path, prefixes: Sequence[bytes]) -> None:
        """`prefixes` are now reachable by `path`, one of `adj_in`'s. Replaces what the source said of them before."""
        table = self.table
        if (
            adj_in.import_filter.accepts_all
            and not path.rejected
            and not adj_in.refused
            and table.keys().isdisjoint(prefixes)
        ):
            entries = dict.fromkeys(prefixes, path)
            if len(entries) != len(prefixes):
                prefixes = list(entries)
            adj_in.count += len(prefixes)
            table.update(entries)
            if not self.watched.isdisjoint(entries):
                self.touched |= self.watched.intersection(entries)
            if DEFAULT_ROUTE in entries:
                self.default_route_seen = True
            if path.usable:
                self.changes.append(Change(None, path, prefixes))
                self._open = None
                if self.program_routes:
                    self.kernel_changes.append((path.kernel_route, prefixes))
                    self._open_kernel = None
            return
        for prefix in prefixes:
            if not self._judge(adj_in, prefix, path):
                adj_in.count += 1

    def withdraw(self, adj_in: AdjRibIn, prefixes: Iterable[bytes]) -> None:
        """The source no longer reaches `prefixes`. Unknown ones are ignored (RFC 4271 9)."""
        refused = adj_in.refused
        source = adj_in.source
        for prefix in prefixes:
            if adj_in.stale and self._is_stale(adj_in, prefix):
                adj_in.stale -= 1
            if (refused and refused.pop(prefix, None) is not None) or self._put(prefix, source, None):
                adj_in.count -= 1

    def announced(self, adj_in: AdjRibIn) -> Iterator[tuple[bytes, Path]]:
        """What a source announced: prefixes and paths as announced, in no order. A walk over the whole table."""
        source = adj_in.source
        for prefix, entry in self.table.items():
            path = _of_source(entry, source)
            if path is not None:
                yield prefix, path.announced
        yield from adj_in.refused.items()

    def sweep(self, adj_in: AdjRibIn) -> Iterator[None]:
        """Remove what the source announced before the epoch that is its current one now, a slice at a time.

        A session that ends before this is over begins another epoch, and what it had announced may have to be kept.

        The kernel hears of it at the end, all at once: it deletes many routes three times as fast in an order of its
        driver's choice (`dataplane.routes`), which has to know them all.
        """
        return self._sweep(adj_in, adj_in.epoch)

    def _sweep(self, adj_in: AdjRibIn, epoch: int) -> Iterator[None]:
        table, source = self.table, adj_in.source
        deleted: list[bytes] = []
        for prefix in [prefix for prefix, path in adj_in.refused.items() if path.epoch < epoch]:
            del adj_in.refused[prefix]
            adj_in.count -= 1
            adj_in.stale -= 1
        keys = list(table) if adj_in.count else []
        for start in range(0, len(keys), SLICE):
            run: list[bytes] = []
            old: Path | None = None
            for prefix in keys[start : start + SLICE]:
                entry = table.get(prefix)
                if entry.__class__ is Path:
                    if entry.source is not source or entry.epoch >= epoch:
                        continue
                    del table[prefix]  # the only candidate goes: there is no choice to make
                    if prefix in self.watched:
                        self.touched.add(prefix)
                    adj_in.count -= 1
                    adj_in.stale -= 1
                    if entry.usable:
                        if entry is not old:
                            self._gone(old, run, deleted)
                            run, old = [], entry
                        run.append(prefix)
                elif entry is not None:
                    path = _of_source(entry, source)
                    if path is not None and path.epoch < epoch:
                        self._gone(old, run, deleted)
                        run, old = [], None
                        self._put(prefix, source, None)
                        adj_in.count -= 1
                        adj_in.stale -= 1
            self._gone(old, run, deleted)
            yield
        still = [prefix for prefix in deleted if prefix not in table or self.kernel_route(prefix) is None]
        if still:  # what came back meanwhile has told the kernel itself
            self.kernel_changes.append((None, still))
            self._open_kernel = None

    def reimport(self, adj_in: AdjRibIn, remake: Callable[[Path], Path] | None = None) -> Iterator[None]:
        """Judge again what a source announced, after its import filter changed, a slice at a time.

        With `remake`, other paths take the place of the announced ones first (the loop rules changed): a path in the
        tables never changes its mind about `rejected` itself, since what others heard of it is derived from that.
        """
        adj_in.imported.clear()
        keys = [prefix for prefix, _ in self.announced(adj_in)]
        for start in range(0, len(keys), SLICE):
            for prefix in keys[start : start + SLICE]:
                path = adj_in.refused.get(prefix) or _of_source(self.table.get(prefix), adj_in.source)
                if path is not None:
                    self._judge(adj_in, prefix, path.announced if remake is None else remake(path.announced))
            yield

    def originate(self, prefix: bytes, path: Path) -> None:
        """A path of our own; replaces an earlier one of the same source."""
        if path.next_hop is not None:
            self.own_next_hops.add(path.next_hop)
            self.refresh(path)
        self._put(prefix, path.source, path)

    def withdraw_origin(self, prefix: bytes, source: Source) -> None:
        self._put(prefix, source, None)

    # ---- what the kernel's table says

    def next_hops_in_use(self) -> set[NextHop]:
        """Those of all paths in the table. A walk over it."""
        found: set[NextHop | None] = set()
        for entry in self.table.values():
            if isinstance(entry, Candidates):
                found.update(path.next_hop for path in entry.paths)
            else:
                found.add(entry.next_hop)
        return {next_hop for next_hop in found if next_hop is not None}

    def next_hops_changed(self, changed: set[NextHop], adj_ins: Sequence[AdjRibIn]) -> None:
        """Next hops resolve differently now (or no longer): judge again every path that uses one of them."""
        affected = [adj_in for adj_in in adj_ins if not adj_in.next_hops.isdisjoint(changed)]
        if not affected and self.own_next_hops.isdisjoint(changed):
            return
        before: dict[Path, tuple[bool, KernelRoute | None]] = {}
        alone: dict[Path, list[bytes]] = {}
        for prefix in [key for key, entry in self.table.items() if _uses(entry, changed)]:
            entry = self.table[prefix]
            if isinstance(entry, Candidates):
                for path in entry.paths:
                    self._refresh_once(path, changed, before)
                self._decide(prefix, entry)
            else:
                alone.setdefault(entry, []).append(prefix)
        for path, prefixes in alone.items():  # the usual case, and there may be very many
            self._refresh_once(path, changed, before)
            was_usable, was_route = before[path]
            if was_usable != path.usable:
                self.changes.append(Change(path if was_usable else None, path if path.usable else None, prefixes))
                self._open = None
            if was_route is not path.kernel_route and self.program_routes:
                self.kernel_changes.append((path.kernel_route, prefixes))
                self._open_kernel = None
        for adj_in in affected:  # not in the table now, but to be found again
            for path in {*adj_in.paths.values(), *adj_in.imported.values(), *adj_in.refused.values()}:
                self._refresh_once(path, changed, before)

    def refresh(self, path: Path) -> None:
        """Derive `usable` and `kernel_route` of a path from its next hop."""
        next_hop = path.next_hop
        if next_hop is None:
            path.usable = not path.rejected
            return
        gateways = next_hop.gateways
        path.usable = bool(gateways) and not path.rejected
        path.kernel_route = self._kernel_route(gateways, path) if path.usable else None

    # ---- reading

    def best(self, prefix: bytes) -> Path | None:
        entry = self.table.get(prefix)
        if isinstance(entry, Candidates):
            return entry.best
        return entry if entry is not None and entry.usable else None

    def candidates(self, prefix: bytes) -> list[Path]:
        """All paths the filters let in for a prefix, usable or not."""
        entry = self.table.get(prefix)
        if entry is None:
            return []
        return list(entry.paths) if isinstance(entry, Candidates) else [entry]

    def multipath(self, prefix: bytes) -> tuple[Path, ...]:
        """The paths that share the prefix's traffic."""
        entry = self.table.get(prefix)
        if isinstance(entry, Candidates):
            return entry.multipath
        return (entry,) if entry is not None and entry.usable else ()

    def kernel_route(self, prefix: bytes) -> KernelRoute | None:
        """What the prefix should be in the kernel."""
        entry = self.table.get(prefix)
        if isinstance(entry, Candidates):
            return entry.route
        return entry.kernel_route if entry is not None and entry.usable else None

    def imported(self, adj_in: AdjRibIn, prefix: bytes, path: Path) -> Path | None:
        """The path a filter makes of an announced one, or None where it (or a loop check) refuses it."""
        if path.rejected:
            return None
        route_filter = adj_in.import_filter
        if route_filter.accepts_all:
            return path
        verdict = route_filter.evaluate(self.family, prefix, path)
        if not verdict.accept:
            return None
        if verdict.attrs is path.attrs:
            return path
        key = (path, verdict.attrs)
        made = adj_in.imported.get(key)
        if made is None:
            if len(adj_in.imported) >= PATH_CACHE:
                adj_in.imported.clear()
            made = adj_in.imported[key] = Path(path.source, verdict.attrs, path.next_hop, path.epoch)
            made.announced = path
            made.interface = path.interface
            self.refresh(made)
        return made

    # ---- inside

    def _judge(self, adj_in: AdjRibIn, prefix: bytes, path: Path) -> bool:
        """Let a path announced for a prefix in, or keep it out. Whether the source had announced the prefix before."""
        if adj_in.stale and path.epoch == adj_in.epoch and self._is_stale(adj_in, prefix):
            adj_in.stale -= 1
        imported = self.imported(adj_in, prefix, path)
        if imported is None:
            known = prefix in adj_in.refused
            adj_in.refused[prefix] = path
        else:
            known = adj_in.refused.pop(prefix, None) is not None
        return self._put(prefix, adj_in.source, imported) or known

    def _is_stale(self, adj_in: AdjRibIn, prefix: bytes) -> bool:
        """Whether the source announced the prefix in an earlier epoch and not since."""
        path = adj_in.refused.get(prefix) or _of_source(self.table.get(prefix), adj_in.source)
        return path is not None and path.epoch != adj_in.epoch

    def _put(self, prefix: bytes, source: Source, path: Path | None) -> bool:
        """`source`'s candidate for a prefix becomes `path` (None: it has none). Whether it had one."""
        table = self.table
        entry = table.get(prefix)
        if prefix in self.watched:
            self.touched.add(prefix)
        if entry is None:
            if path is not None:
                table[prefix] = path
                if prefix == DEFAULT_ROUTE:
                    self.default_route_seen = True
                if path.usable:
                    self._best_changed(prefix, None, path)
                    if path.kernel_route is not None:
                        self._kernel_changed(prefix, path.kernel_route)
            return False
        if isinstance(entry, Candidates):
            paths = [each for each in entry.paths if each.source is not source]
            had = len(paths) < len(entry.paths)
            if path is not None:
                paths.append(path)
            elif not had:
                return False
            entry.paths = paths
            self._decide(prefix, entry)
            if len(paths) == 1:
                table[prefix] = paths[0]
            return had
        if entry.source is source:
            if path is entry:
                return True
            if path is None:
                del table[prefix]
            else:
                table[prefix] = path
            old = entry if entry.usable else None
            new = path if path is not None and path.usable else None
            self._best_changed(prefix, old, new)
            old_route = old.kernel_route if old is not None else None
            new_route = new.kernel_route if new is not None else None
            if old_route is not new_route:
                self._kernel_changed(prefix, new_route)
            return True
        if path is not None:
            choice = Candidates([entry, path])
            if entry.usable:
                choice.best, choice.multipath, choice.route = entry, (entry,), entry.kernel_route
            table[prefix] = choice
            self._decide(prefix, choice)
        return False

    def _decide(self, prefix: bytes, entry: Candidates) -> None:
        usable = [path for path in entry.paths if path.usable]
        if len(usable) > 1:
            decision = decide_best(usable, maximum_paths=self.maximum_paths)
            new, multipath = decision.best, decision.multipath
        elif usable:
            new, multipath = usable[0], (usable[0],)
        else:
            new, multipath = None, ()
        old, old_route = entry.best, entry.route
        entry.best, entry.multipath = new, multipath
        if new is None:
            entry.route = None
        elif len(multipath) > 1:
            gateways = {
                gateway for path in multipath if path.next_hop is not None for gateway in path.next_hop.gateways
            }
            entry.route = self._kernel_route(tuple(sorted(gateways)), new) if gateways else new.kernel_route
        else:
            entry.route = new.kernel_route
        if new is not old:
            self._best_changed(prefix, old, new)
        if entry.route is not old_route:
            self._kernel_changed(prefix, entry.route)

    def _refresh_once(
        self, path: Path, changed: set[NextHop], before: dict[Path, tuple[bool, KernelRoute | None]]
    ) -> None:
        if path not in before and path.next_hop in changed:
            before[path] = (path.usable, path.kernel_route)
            self.refresh(path)
            if path.announced is not path:  # what it was made from comes back when the filter changes
                self._refresh_once(path.announced, changed, before)

    def _kernel_route(self, gateways: tuple[Gateway, ...], path: Path) -> KernelRoute:
        metric = self.normal_priority
        if metric and path.attrs.local_pref is not None:
            metric = max(1, HIGHEST_LOCAL_PREF - path.attrs.local_pref)
        key = (gateways, metric)
        route = self._kernel_routes.get(key)
        if route is None:
            if len(self._kernel_routes) >= PATH_CACHE:
                self._kernel_routes.clear()
            route = self._kernel_routes[key] = KernelRoute(RouteKind.UNICAST, gateways, metric)
        return route

    def _gone(self, old: Path | None, prefixes: list[bytes], deleted: list[bytes]) -> None:
        if old is not None:
            self.changes.append(Change(old, None, prefixes))
            self._open = None
            if self.program_routes and old.kernel_route is not None:
                deleted += prefixes

    def _best_changed(self, prefix: bytes, old: Path | None, new: Path | None) -> None:
        last = self._open
        if last is not None and last.old is old and last.new is new:
            last.prefixes.append(prefix)  # type: ignore[attr-defined]  # an open change holds a list of its own
            return
        if old is new:
            return
        if (
            old is not None
            and new is not None
            and old.attrs is new.attrs
            and old.source is new.source
            and old.kind is new.kind
            and old.interface == new.interface
        ):
            # said again in a new session: nothing that we tell others differs, and the count of best paths neither
            return
        self._open = Change(old, new, [prefix])
        self.changes.append(self._open)

    def _kernel_changed(self, prefix: bytes, route: KernelRoute | None) -> None:
        if not self.program_routes:
            return
        if self._open_kernel is not None and self.kernel_changes[-1][0] is route:
            self._open_kernel.append(prefix)
            return
        self._open_kernel = [prefix]
        self.kernel_changes.append((route, self._open_kernel))

    def take_changes(self) -> list[Change]:
        """The best-path changes since the last call, in order."""
        changes, self.changes, self._open = self.changes, [], None
        family = self.family
        for change in changes:
            count = len(change.prefixes)
            if change.old is not None:
                change.old.source.prefixes_best[family] -= count
            if change.new is not None:
                change.new.source.prefixes_best[family] += count
            self.version += count
        return changes

    def take_kernel_changes(self) -> list[tuple[KernelRoute | None, Sequence[bytes]]]:
        """The kernel-route changes since the last call, in order: (route or None, prefixes)."""
        changes, self.kernel_changes, self._open_kernel = self.kernel_changes, [], None
        return changes


def _of_source(entry: Path | Candidates | None, source: Source) -> Path | None:
    """A source's candidate among a prefix's."""
    if isinstance(entry, Candidates):
        return next((path for path in entry.paths if path.source is source), None)
    return entry if entry is not None and entry.source is source else None


def _uses(entry: Path | Candidates, next_hops: set[NextHop]) -> bool:
    if isinstance(entry, Candidates):
        return any(path.next_hop in next_hops for path in entry.paths)
    return entry.next_hop in next_hops
