"""Shell completion: `completion bash|zsh|fish` prints a few lines for the shell, which ask `routedctl complete` back.

What can follow is worked out here from the parser itself, so a new command completes without more ado; the addresses of
neighbours come from the daemon, if it answers at once.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator, Sequence

from routed.cli.command import Commands, ExitStatus, UsageError, emit, socket_path
from routed.control.client import ControlClient
from routed.errors import RoutedError

SCRIPTS = {
    "bash": """\
_routedctl() {
    local line=${COMP_LINE:0:COMP_POINT} words last
    read -ra words <<< "$line"
    [[ $line != *[[:space:]] ]] || words+=("")
    last=${words[-1]}
    local IFS=$'\\n'
    COMPREPLY=($(routedctl complete -- "${words[@]:1}" 2>/dev/null))
    if [ "${COMPREPLY[0]}" = ":files" ]; then COMPREPLY=(); compopt -o default; fi
    # bash has split an IPv6 address at its colons, and replaces what stands behind the last one
    if [[ $last == *:* && $COMP_WORDBREAKS == *:* ]]; then COMPREPLY=("${COMPREPLY[@]#"${last%"${last##*:}"}"}"); fi
}
complete -F _routedctl routedctl""",
    "zsh": """\
#compdef routedctl
_routedctl() {
    local -a found
    found=("${(@f)$(routedctl complete -- "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    if [[ "${found[1]}" == ":files" ]]; then _files; else compadd -a found; fi
}
if [[ "${funcstack[1]}" == "_routedctl" ]]; then _routedctl "$@"; else compdef _routedctl routedctl; fi""",
    "fish": """\
function __routedctl
    set -l words (commandline -opc) (commandline -ct)
    set -l found (routedctl complete -- $words[2..-1] 2>/dev/null)
    if test "$found[1]" = ":files"
        __fish_complete_path (commandline -ct)
    else
        printf '%s\\n' $found
    end
end
complete -c routedctl -f -a '(__routedctl)'""",
}

FILES = ":files"
"""What is printed where a file is wanted: the shell knows them better."""

#: Seconds a daemon may take to say its neighbours' addresses.
PATIENCE = 1.0


def add(commands: Commands) -> None:
    completion = commands.add(
        "completion",
        _completion,
        "print what makes a shell complete the words of routedctl",
        examples=[
            ("routedctl completion bash > /etc/bash_completion.d/routedctl", "for bash"),
            ("routedctl completion zsh > /usr/local/share/zsh/site-functions/_routedctl", "for zsh"),
            ("routedctl completion fish > /etc/fish/completions/routedctl.fish", "for fish"),
        ],
    )
    completion.add_argument("shell", choices=sorted(SCRIPTS), help="the shell")
    complete = commands.add(
        "complete",
        lambda arguments: _complete(commands, arguments),
        "what can stand at the place of the last word; the shell asks this",
        examples=[("routedctl complete -- show nei", "prints `neighbors`")],
        abbreviate=False,
    )
    complete.add_argument("words", nargs="*", metavar="WORD", help="the words so far, the last one unfinished")


def _completion(arguments: argparse.Namespace) -> int:
    _must_be_text(arguments)
    emit([SCRIPTS[arguments.shell]])
    return ExitStatus.OK


def _complete(commands: Commands, arguments: argparse.Namespace) -> int:
    _must_be_text(arguments)
    words = arguments.words or [""]
    emit(sorted({each for each in candidates(commands, arguments, words) if each.startswith((words[-1], FILES))}))
    return ExitStatus.OK


def _must_be_text(arguments: argparse.Namespace) -> None:
    if "json" in arguments:
        raise UsageError("--json: what a shell reads is no JSON")


def candidates(commands: Commands, arguments: argparse.Namespace, words: Sequence[str]) -> Iterator[str]:
    """All that can stand at the place of the last word, whatever is there of it."""
    parser, positionals, before = commands.parser, 0, commands.in_full(words[:-1])
    expected: argparse.Action | None = None
    for word in before:
        options = {name: action for action in parser._actions for name in action.option_strings}
        if expected is not None:
            expected = None
        elif word.startswith("-"):
            action = options.get(word)
            expected = action if action is not None and action.nargs is None and "=" not in word else None
        else:
            inner = _subcommands(parser)
            if word in inner:
                parser, positionals = inner[word], 0
            else:
                positionals += 1
    if expected is not None:
        yield from _values(expected, arguments)
    elif words[-1].startswith("-"):
        yield from (name for action in parser._actions for name in action.option_strings if name.startswith("--"))
    elif _subcommands(parser):
        yield from _subcommands(parser)
    else:
        wanted = [action for action in parser._actions if not action.option_strings]
        if positionals < len(wanted) or (wanted and wanted[-1].nargs == "*"):
            yield from _values(wanted[min(positionals, len(wanted) - 1)], arguments)


def _subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    return {
        name: inner
        for action in parser._actions
        if isinstance(action, argparse._SubParsersAction)
        for name, inner in action.choices.items()
        if name != "complete"
    }


def _values(action: argparse.Action, arguments: argparse.Namespace) -> Iterator[str]:
    """Values an argument can have: by its choices, or by what its metavar says it is."""
    if action.choices is not None:
        yield from map(str, action.choices)
    elif action.metavar == "ADDR":
        yield from _neighbors(arguments)
    elif action.metavar == "soft [in|out]":
        yield from ("soft", "in", "out")
    elif action.metavar == "KIND":
        yield from _kinds(one=action.dest == "kind")
    elif isinstance(action.metavar, str) and {"FILE", "FOLDER", "DIR", "PATH"} & set(action.metavar.split("|")):
        yield FILES


def _kinds(*, one: bool) -> Iterator[str]:
    """What resources are asked for by, or (one) a kind as the daemon calls it."""
    from routed.model.schema import KIND_TABLE  # noqa: PLC0415 - most of what is completed needs no resources

    yield from (kind.name if one else kind.plural for kind in KIND_TABLE.values())


def _neighbors(arguments: argparse.Namespace) -> Iterator[str]:
    with contextlib.suppress(RoutedError), ControlClient(socket_path(arguments), PATIENCE) as client:
        for row in client.stream("neighbors"):
            if isinstance(row, dict):
                yield str(row.get("address"))
