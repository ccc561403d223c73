"""Where resources come from: a snapshot and then changes, as `model.Update`s. Today a folder of YAML files.

Invariants: existence is the value (`Update(key, value or None)`), so a snapshot and a change look the same; every
resource is validated here, at the edge, and what is not valid is reported as a `Problem` while the last good state
stays; nothing is ever deleted because it could not be read. What does not belong here: what resources mean.
"""
