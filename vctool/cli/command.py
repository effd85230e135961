"""What every command shares: examples first in its help, a lazily loaded group, one place where failures become exit codes."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NoReturn

import click

from vctool.errors import VctoolError

LazyCommand = tuple[str, str, str]  # module, attribute, one line of help
DEBUG_VARIABLE = "VCTOOL_DEBUG"


class Command(click.Command):
    """A command whose help begins with examples, and that takes `--debug` like the whole program."""

    def __init__(self, *args: Any, examples: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = tuple(examples)
        self.params.append(_debug_option())

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        _write_examples(self.examples, formatter)
        super().format_help_text(ctx, formatter)


class Group(click.Group):
    """A group of commands, each imported when it is run or its own help is asked for.

    lazy: the table of commands, in the order of the help. Failures end in one line on stderr and an exit code, see `exit_code_of`.
    """

    def __init__(self, *args: Any, lazy: Mapping[str, LazyCommand] | None = None, examples: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.lazy = dict(lazy or {})
        self.examples = tuple(examples)
        self.params.append(_debug_option())

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*self.lazy, *(name for name in self.commands if name not in self.lazy)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in self.lazy:
            module, attribute, _ = self.lazy[cmd_name]
            command = getattr(importlib.import_module(module), attribute)
            if not isinstance(command, click.Command):
                raise TypeError(f"{module}.{attribute} is not a click command")
            return command
        return super().get_command(ctx, cmd_name)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0] if args else ""
        known = self.list_commands(ctx)
        if name and name not in known and not name.startswith("-"):
            near = difflib.get_close_matches(name, known, n=1)
            ctx.fail(f"No such command '{name}'." + (f" Did you mean '{near[0]}'?" if near else ""))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = []
        for name in self.list_commands(ctx):
            line = self.lazy[name][2] if name in self.lazy else self.commands[name].get_short_help_str(limit=formatter.width)
            rows.append((name, line))
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        _write_examples(self.examples, formatter)
        super().format_help_text(ctx, formatter)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            raise _ReaderLeftError from None  # click would make an exit code 1 of it
        return result

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        def run() -> Any:
            return super(Group, self).main(args, prog_name, complete_var, standalone_mode=False, **extra)

        if not standalone_mode:
            return run()
        sys.exit(exit_code_of(run, debug=_wants_debug(args)))


class _ReaderLeftError(Exception):
    """Whoever read our output has gone (`| head -1`)."""


def command(name: str, *, examples: Sequence[str], **attributes: Any) -> Callable[[Callable[..., Any]], click.Command]:
    """Like `click.command`, with examples that its help shows first."""
    return click.command(name, cls=Command, examples=examples, **attributes)


def group(name: str, *, examples: Sequence[str], **attributes: Any) -> Callable[[Callable[..., Any]], Group]:
    """Like `click.group`, with examples that its help shows first."""
    return click.group(name, cls=Group, examples=examples, **attributes)


def exit_code_of(run: Callable[[], Any], debug: bool = False) -> int:
    """Run a click program (`standalone_mode=False`) and turn what comes out of it into an exit code and a line on stderr.

    0 done, 1 failed, 2 usage, 3 verification, 4 inputs skipped under --strict, 130 interrupted. With `debug` the
    traceback of a failure is printed before its line.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, ValueError):
            # A file name that is not UTF-8 must not end a listing; in JSON the escape is even right.
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        result = run()
        return result if isinstance(result, int) and not isinstance(result, bool) else 0
    except _ReaderLeftError:
        _discard_stdout()
        return 0
    except click.ClickException as problem:
        problem.show()
        return problem.exit_code
    except (click.Abort, KeyboardInterrupt):
        _say("interrupted")
        return 130
    except VctoolError as problem:
        _trace(debug)
        _say(f"error: {_line(problem.message)}")
        if problem.excerpt:
            _say(problem.excerpt)
        if problem.hint:
            _say(f"hint: {_line(problem.hint)}")
        return problem.exit_code
    except SystemExit as leaving:  # click's shell completion
        return leaving.code if isinstance(leaving.code, int) else 0
    except Exception as problem:
        _trace(debug)
        again = "" if debug else " (run again with --debug to see where, and please report it)"
        _say(f"internal error: {type(problem).__name__}: {_line(str(problem))}{again}")
        return 1


def _debug_option() -> click.Option:
    return click.Option(["--debug"], is_flag=True, expose_value=False, help="Show the traceback of a failure.")


def _wants_debug(args: Sequence[str] | None) -> bool:
    given = list(sys.argv[1:] if args is None else args)
    options = given[: given.index("--")] if "--" in given else given
    return "--debug" in options or bool(os.environ.get(DEBUG_VARIABLE))


def _write_examples(examples: Sequence[str], formatter: click.HelpFormatter) -> None:
    if examples:
        with formatter.section("Examples"):
            for example in examples:
                formatter.write(f"{'':>{formatter.current_indent}}{example}\n")


def _line(text: str) -> str:
    """One line, with control characters made visible: a file name must not move the cursor."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in " ".join(text.splitlines()))


def _trace(debug: bool) -> None:
    if debug:
        import traceback

        traceback.print_exc()


def _say(text: str) -> None:
    with suppress(OSError, ValueError):
        click.echo(text, err=True)


def _discard_stdout() -> None:
    """Python flushes stdout once more on exit, and would complain about the closed pipe."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def fail_usage(message: str) -> NoReturn:
    """End with click's usage error (exit code 2) of the current command."""
    click.get_current_context().fail(message)
