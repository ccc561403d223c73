"""The CNI plugin: a thin client of the daemon, in two forms that speak the same protocol (see `protocol`).

`client.py` is plain Python that runs anywhere; `routed-cni.c` is the same in C, for the milliseconds an interpreter takes
to start, built where there is a compiler. What a CNI call means is the daemon's business, not this room's.
"""
