"""lab: laboratories of network namespaces on this machine, in two ways.

`namespaces` is for tests that build their network by hand: nodes, wires, programs. The rest runs a containerlab topology
file on plain namespaces: `clab` reads the file, `images` says which of this machine's programs stand for an image, `inside`
is what runs as process 1 of a node, `nodes` starts, enters and ends one, `deploy` brings up and ends a whole laboratory,
`expect` checks what must hold in it, and `main` is the command line behind `make lab`.
"""

from routed.testing.lab.namespaces import POLL, Lab, LabError, Namespace, Port, Process, Segment, run, stays, wait_for

__all__ = ["POLL", "Lab", "LabError", "Namespace", "Port", "Process", "Segment", "run", "stays", "wait_for"]
