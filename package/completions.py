"""What makes the shells complete routedctl's words, as files where each shell looks for such.

They are what `routedctl completion` prints.
"""

from __future__ import annotations

from pathlib import Path

from routed.cli.completion import SCRIPTS

#: Below a prefix's `share`; Debian's zsh has another folder for what packages bring.
PLACES = {
    "bash": "bash-completion/completions/routedctl",
    "zsh": "zsh/site-functions/_routedctl",
    "fish": "fish/vendor_completions.d/routedctl.fish",
}
DEBIAN_ZSH = "zsh/vendor-completions/_routedctl"


def write(folder: Path) -> None:
    """All of them into a folder, which is made."""
    for shell, place in PLACES.items():
        path = folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(SCRIPTS[shell] + "\n", encoding="utf-8")
