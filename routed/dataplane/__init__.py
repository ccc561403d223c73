"""Make the kernel equal to what is desired: routes read back, compared, applied in batches, retried; and watch the rest.

Invariants: our routes are those with our protocol number in our table, at our metric; nothing else is ever replaced or
removed. Routes stay when we stop. The logic (`engine`, `routes`, `watch`) takes netlink bytes and `now` and gives
netlink bytes, so that the same code runs against the kernel (`kernel`, `sockets`) and against a model of it in tests.

Not here: which routes should exist (`plan`, `rib`), the bytes themselves (`netlink`).
"""
