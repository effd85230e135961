"""The error tree: every failure a user can cause is one of these, with one line that says what to do next."""

from __future__ import annotations

from pathlib import Path


class VctoolError(Exception):
    """A failure with a message for a person and an exit code for a script.

    `hint` says what to do next; it is printed on its own line after the message. `excerpt` is what the user wrote with a mark
    below the place that is wrong, printed between the two.
    """

    exit_code = 1
    excerpt = ""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message} ({self.hint})"


class UsageProblem(VctoolError):
    """The command or call was put together wrongly."""

    exit_code = 2


class InputError(VctoolError):
    """A file, folder, manifest or text that the user gave cannot be used."""


class VideoError(InputError):
    """One video cannot be read. `path` is the file, `reason` a short phrase without the path."""

    def __init__(self, path: str | Path, reason: str, hint: str | None = None) -> None:
        super().__init__(f"{path}: {reason}", hint)
        self.path = Path(path)
        self.reason = reason
        self._args = (path, reason, hint)

    def __reduce__(self) -> tuple[type[VideoError], tuple[str | Path, str, str | None]]:
        # Travels from decode workers to the parent: the default would call __init__ with the joined message alone.
        return (type(self), self._args)


class StoreError(VctoolError):
    """A token store is damaged, foreign, of another model, or cannot be written."""


class ModelError(VctoolError):
    """A model directory is incomplete, altered, or does not fit the request."""


def install_line(extra: str) -> str:
    """The pip command for what an extra holds, by the packages' own names: vctool may come from a clone, not from an index."""
    import importlib.metadata  # slow to import, and only a failure needs it
    import re

    try:
        declared = importlib.metadata.requires("vctool") or []
    except importlib.metadata.PackageNotFoundError:
        return f'pip install "vctool[{extra}]"'

    def packages(wanted: str) -> list[str]:
        found: list[str] = []
        for line in declared:
            requirement, _, marker = (part.strip() for part in line.partition(";"))
            if re.search(rf"""extra == ['"]{re.escape(wanted)}['"]""", marker):
                own = re.fullmatch(r"vctool\[(.+)\]", requirement)
                found += [name for nested in own[1].split(",") for name in packages(nested.strip())] if own else [f'"{requirement}"']
        return found

    return f"pip install {' '.join(dict.fromkeys(packages(extra)))}" if packages(extra) else f'pip install "vctool[{extra}]"'


class MissingExtraError(VctoolError):
    """An optional dependency is not installed; the hint is the command that installs it."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} is not installed", f"install it with: {install_line(extra)}")
        self._what, self._extra = what, extra

    def __reduce__(self) -> tuple[type[MissingExtraError], tuple[str, str]]:
        return (type(self), (self._what, self._extra))


class VerificationError(VctoolError):
    """A checksum, tolerance or promised minimum does not hold."""

    exit_code = 3


class SkippedInputsError(VctoolError):
    """Under --strict: the work is done, but some inputs were skipped."""

    exit_code = 4


class Diverged(VctoolError):
    """Training left the numbers: a loss or a gradient that is not finite."""


class Interrupted(VctoolError):
    """Ctrl-C; what was finished has been committed."""

    exit_code = 130
