"""Resources -> what this node should do: sessions to hold, filters on them, routes to originate; and how plans differ.

Invariants: pure; a plan is a function of the resources and the settings, never of the order they came in; what a
resource asks for and routed does not do is said in `Plan.problems`, never silently ignored. The semantics are those of
Calico's confd and its BIRD templates. What does not belong here: holding the sessions (`core/`), judging routes (`rib/`).
"""
