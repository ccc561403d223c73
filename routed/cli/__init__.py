"""routedctl: questions to the daemon on this node, answered as tables for people or JSON for programs.

Invariants: a thin program over `control/` that imports no engine (replay excepted); what the daemon says is shown, not
judged; every failure is one sentence on standard error and an exit status a script can tell apart.
"""
