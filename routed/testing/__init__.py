"""testing: the kit for tests, the demo and the benchmark, by how much of the world is real.

`pipe` joins two neighbours and `world` whole nodes in memory, under a clock that is turned by hand; `kernel` is a model of
the kernel's tables that answers netlink; `lab` makes namespaces with real kernels, `routers` starts real daemons in them,
`peer` is a scripted BGP peer, `demo` the tour. Invariant: nothing under `routed/` imports this room.
"""
