"""The local socket: how programs on this node ask the daemon, and what it answers.

`protocol` is the wire form, `server` answers with handlers somebody registers, `client` asks and waits. Invariants: this
room knows no question and no answer, only their envelope; a client can neither block the daemon nor make it hold more
than one batch of a reply in memory. What does not belong here: what a request means (`daemon/`), tables (`cli/`).
"""
