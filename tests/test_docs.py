"""What the documents show works: links lead to files and headings, commands and recipes are understood."""

from __future__ import annotations

import importlib.util
import re
import shlex
import tomllib
from pathlib import Path

import click
import pytest

from vctool.cli import cli

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCED = re.compile(r"^(```+).*?^\1\s*$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`[^`\n]*`")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
REFERENCE = re.compile(r"^\[[^\]]+\]:\s+(\S+)", re.MULTILINE)
HEADING = re.compile(r"^#+\s+(.+?)\s*$", re.MULTILINE)


BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(document: Path, language: str) -> list[str]:
    return [text for kind, text in BLOCK.findall(document.read_text(encoding="utf-8")) if kind == language]


def links_in(text: str) -> list[str]:
    """Targets of the links of a Markdown text, without those inside code."""
    prose = FENCED.sub("", text)
    return LINK.findall(CODE.sub(lambda code: "x" * len(code[0]), prose)) + REFERENCE.findall(prose)


def anchors_in(text: str) -> set[str]:
    """The names under which GitHub makes a text's headings reachable."""
    found: dict[str, int] = {}
    anchors = set()
    for heading in HEADING.findall(FENCED.sub("", text)):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        name = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        count = found[name] = found.get(name, -1) + 1
        anchors.add(f"{name}-{count}" if count else name)
    return anchors


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files_and_headings_that_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for target in links_in(text):
        if re.match(r"[a-z]+:", target):
            continue  # an address: nothing is fetched in a test
        name, _, anchor = target.partition("#")
        path = document.parent / name if name else document
        assert path.exists() and path.resolve().is_relative_to(ROOT), f"{document.name}: {target}"
        if anchor:
            assert anchor in anchors_in(path.read_text(encoding="utf-8")), f"{document.name}: no heading for {target}"


def test_links_are_found_and_code_is_left_alone() -> None:
    text = "[a](b.md#c) `[d](e)`\n```\n[f](g)\n```\n[`h`](i)\n\n[j]: k.md\n"
    assert links_in(text) == ["b.md#c", "i", "k.md"]
    assert anchors_in("# A b\n## `query` result, twice\n## A b\n```\n# c\n```\n") == {"a-b", "query-result-twice", "a-b-1"}


def commands_in(text: str) -> list[list[str]]:
    """The vctool commands of a shell block or a sentence, as lists of words, without what the shell itself reads."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        for part in re.split(r"&&|\||;", line.removeprefix("$ ")):
            words = shlex.split(part, comments=True)
            if words[:1] == ["vctool"]:
                found.append(words[1:])
    return found


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_that_are_shown_are_understood(document: Path) -> None:
    for block in [*blocks(document, "sh"), *blocks(document, "console")]:
        for words in commands_in(block):
            try:
                parse(cli, "vctool", words, None)
            except click.ClickException as problem:
                pytest.fail(f"{document.name}: vctool {shlex.join(words)}: {problem.format_message()}")


def parse(command: click.Command, name: str, words: list[str], parent: click.Context | None) -> None:
    """Read a command line as click would, without running it. Raises click.UsageError."""
    if not isinstance(command, click.Group):
        command.make_context(name, words, parent=parent)
        return
    # With the command's own settings: click remembers the help option that it makes for the first context.
    context = click.Context(command, info_name=name, parent=parent, **command.context_settings)
    inner = command.get_command(context, words[0]) if words else None
    if inner is None:
        raise click.UsageError(f"no such command: {' '.join(words[:1])}")
    parse(inner, words[0], words[1:], context)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_recipes_that_are_shown_are_recipes(document: Path) -> None:
    recipes = [tomllib.loads(text) for text in blocks(document, "toml")]
    if recipes and importlib.util.find_spec("torch") is None:
        pytest.skip('torch is not installed: pip install "vctool[train]"')
    for values in recipes:
        from vctool.ablation.grid import Ablation
        from vctool.config import from_dict
        from vctool.training.recipe import recipe_from

        if "cell" in values:
            from_dict(Ablation, values, document.name)
        else:
            recipe_from(values, document.name)


def test_a_command_that_does_not_exist_would_be_found() -> None:
    assert commands_in('a | vctool query "b c" --index d && vctool x # e') == [["query", "b c", "--index", "d"], ["x"]]
    for words in (["qury"], ["query", "a", "--index", "b", "--no-such"], ["data", "nothing"]):
        with pytest.raises(click.UsageError):
            parse(cli, "vctool", words, None)
