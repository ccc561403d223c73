"""core: the rooms above put together into one engine of one node, and questions about it.

Invariants: deterministic, synchronous, bounded; whoever drives it decides about sockets and time, the engine about
everything else. `core` is the engine, `peer` one neighbour as it holds it, `effects` what it asks of the world, `queries`
what people ask of it. What does not belong here: anything that one room above could decide alone.
"""
