"""The line of a key of routed.yaml, for errors that are found once the file was read: by who opens what it names.

What is wrong with the file itself is told by `config.py`, with the same lines.
"""

from __future__ import annotations

import re

import yaml


def place_of_key(path: str, key: str) -> str:
    """`FILE:LINE` of a key such as `datastore.endpoints[1]`, or of what it is missing in; `FILE` where that is all of it."""
    try:
        with open(path, "rb") as file:
            node = yaml.compose(file, yaml.SafeLoader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError):  # changed since it was read
        return path
    place = path
    for part in re.findall(r"[^.\[\]]+", key):
        below: dict[str, yaml.Node] = {}
        if isinstance(node, yaml.MappingNode):
            below = {name.value: value for name, value in node.value if isinstance(name, yaml.ScalarNode)}
        elif isinstance(node, yaml.SequenceNode):
            below = {str(index): value for index, value in enumerate(node.value)}
        if part not in below:
            break
        node = below[part]
        place = f"{path}:{node.start_mark.line + 1}"
    return place
