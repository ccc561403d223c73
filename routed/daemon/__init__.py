"""The process: owns the loop, and connects the core with sockets, the kernel, the datastore, people and systemd.

Invariants: one thread touches the core; every input carries the time it came; effects are carried out in order; a bug
in handling one peer's input ends that session and nothing else. What does not belong here: any decision that follows
from the protocol, the resources or the routes (the pure rooms), tables for people (`cli/`).
"""
