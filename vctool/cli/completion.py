"""`vctool completion`: the script that lets a shell complete commands and options."""

from __future__ import annotations

import click

from vctool.cli.command import command

_INSTALL = {
    "bash": 'add to ~/.bashrc:  eval "$(vctool completion bash)"',
    "zsh": 'add to ~/.zshrc:  eval "$(vctool completion zsh)"',
    "fish": "vctool completion fish > ~/.config/fish/completions/vctool.fish",
}


@command(
    "completion",
    examples=('eval "$(vctool completion bash)"', "vctool completion fish > ~/.config/fish/completions/vctool.fish"),
)
@click.argument("shell", type=click.Choice(list(_INSTALL)))
def completion(shell: str) -> None:
    """Print the completion script for SHELL on stdout."""
    from click.shell_completion import get_completion_class

    from vctool.cli import cli

    kind = get_completion_class(shell)
    if kind is None:  # click knows all three
        raise click.ClickException(f"no completion for {shell}")
    # Not `source()`: for bash it starts a bash to read its version.
    maker = kind(cli, {}, "vctool", "_VCTOOL_COMPLETE")
    click.echo(maker.source_template % maker.source_vars())
    click.echo(f"# {_INSTALL[shell]}", err=True)
