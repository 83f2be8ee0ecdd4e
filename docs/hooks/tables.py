"""Reference tables that are read from the code, so that they cannot be stale."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from html import escape
from inspect import cleandoc
from typing import Any

import click


def ops() -> str:
    """What each front end takes, and which rules each op of the core has."""
    from certify import rules
    from certify.frontends import onnx_import  # noqa: F401  fills the table of handlers
    from certify.frontends.onnx_constants import FOLDABLE
    from certify.frontends.onnx_nodes import HANDLERS
    from certify.frontends.torch_import import from_torch  # noqa: F401  fills the table of rules
    from certify.frontends.torch_rules import RULES
    from certify.ops import AFFINE_OPS, NONLINEAR_OPS

    taken = [(name, ", ".join(map(str, sorted(entry.versions)))) for name, entry in sorted(HANDLERS.items())]
    constants = ", ".join(sorted(set(FOLDABLE) - set(HANDLERS)))
    tables = (rules.evaluate, rules.interval, rules.linear, rules.transpose, rules.relax)
    core = [
        (kind.__name__, _first_line(kind), *("yes" if kind in table else "" for table in tables))
        for kind in sorted((*AFFINE_OPS, *NONLINEAR_OPS), key=lambda kind: kind.__name__)
    ]
    missing = [
        name for table in (rules.evaluate, rules.interval) for name in table.covers((*AFFINE_OPS, *NONLINEAR_OPS))
    ]
    if missing:
        raise RuntimeError(f"ops without a rule: {', '.join(missing)}")
    return "\n\n".join(
        [
            "## ONNX",
            table(("op", "revisions that are known (opset in which each began)"), taken),
            f"On constants also: {constants}.",
            "## torch",
            "A module is exported with `torch.export`, and these aten ops are taken: "
            + ", ".join(f"`{name}`" for name in sorted(RULES))
            + ".",
            "## The core",
            table(("op", "mathematics", *(t.name for t in tables)), core),
        ]
    )


def options() -> str:
    """Every command with its options, as its --help says."""
    from certify.cli.main import cli

    return "\n\n".join(part for name in sorted(cli.commands) for part in _command(name, cli.commands[name]))


def _command(name: str, command: click.Command) -> Iterator[str]:
    if isinstance(command, click.Group):
        for below in sorted(command.commands):
            yield from _command(f"{name} {below}", command.commands[below])
        return
    context = click.Context(command, info_name=f"certify {name}")
    usage = " ".join(command.collect_usage_pieces(context))
    yield f"## certify {name}"
    yield f"```text\ncertify {name} {usage}\n```"
    yield cleandoc(command.help or "")
    rows = [
        (f"<code>{escape(record[0])}</code>", escape(record[1]))
        for parameter in command.get_params(context)
        if (record := parameter.get_help_record(context)) is not None
    ]
    yield table(("option", "meaning"), rows)
    if command.epilog:
        text = re.sub(r"\n{2,}", "\n\n", command.epilog.replace("\b", "")).strip()
        yield f"```text\n{text}\n```"


def table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """A Markdown table."""
    head = tuple(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(str(cell)) for cell in row) + " |" for row in lines)


def _cell(text: str) -> str:
    return text.replace("|", "&#124;").replace("\n", " ")


def _first_line(kind: type) -> str:
    return escape((kind.__doc__ or "").strip().split("\n\n")[0])
