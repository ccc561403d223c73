"""BGP: bytes <-> messages, and the rules of a session. No sockets, no clock, no tables of routes.

From the wire upwards: `iana` (every number), `attributes` with `as_path` and `attribute_reader`, `nlri` and `update` (what
an UPDATE says, RFC 7606 applied), `messages` and `capabilities` (everything else on the wire and what two speakers agree
on), `fsm` (the state machine as one table), `session` (one connection), `neighbor` (one configured neighbour: who
connects, collisions, back-off, graceful restart). Time is an argument, `now`, in monotonic seconds.

Not here: which routes are used or sent (`rib`), which neighbours there are (`plan`), sockets and timers (`daemon`).
"""
