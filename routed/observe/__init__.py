"""How the daemon is watched: log lines for people, recordings of everything the core is told, and their replay.

Invariants: whatever a peer can influence is made harmless before it is shown; a recording holds every input in full, so
that replaying it gives the same outputs byte for byte; who does not record pays nothing. What does not belong here:
what is worth saying (the rooms say it, as `core.effects.Log` or in a daemon's own words).
"""
