"""Files from the Hugging Face hub, whole or not at all: resumed where a download stopped, and checked by hash before they are used.

The cache is the hub client's own (`HF_HOME`, `HF_HUB_CACHE`), so what other programs have downloaded is not downloaded again, and
`HF_HUB_OFFLINE`, `HF_ENDPOINT`, `HF_TOKEN` and proxies mean what they mean everywhere. What the client does not do is done here: it
throws half a download away, and it compares sizes, not hashes. This is the only module of vctool that opens a connection, and only
`fetch` imports it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from vctool.errors import InputError, MissingExtraError, ModelError, VctoolError, VerificationError

_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
_SPARE = 64 << 20  # bytes that a disk keeps free beside the file

Say = Callable[[str], None]


@dataclass(frozen=True)
class HubFile:
    """A file of a repository, on this machine. revision: the commit it is of. sha256: of its contents; bytes: its size."""

    path: Path
    repository: str
    name: str
    revision: str
    sha256: str
    bytes: int


class NoNetworkError(VctoolError):
    """The hub cannot be reached, or must not be, and the file is not in the cache."""


def fetch_file(repository: str, names: Sequence[str], *, sha256: str | None = None, say: Say) -> HubFile:
    """The first of `names` that the repository has, from the cache or the hub, its hash checked.

    sha256: the hex sum that it must have, whatever the hub says. Raises NoNetworkError without a network and a cached copy (the caller
    knows the ways out), VerificationError where the content is not what was published, InputError where the disk is full or the
    download stopped, ModelError where the hub refuses.
    """
    hub = _client()
    reason = ""
    for name in names:
        if not reason:  # asked once is enough: behind some firewalls every question takes the full timeout
            told, reason = _ask(hub, repository, name)
            if told is not None:
                return _online(hub, repository, name, told, sha256, say)
        cached = hub.try_to_load_from_cache(repository, name) if reason else None
        if isinstance(cached, str):
            return _from_cache(repository, name, Path(cached), sha256)
    if reason:
        raise NoNetworkError(f"{reason}, and {repository} is not in the cache")
    raise ModelError(f"{repository} on the hub has none of {', '.join(names)}", "the repository may have changed: report it")


def _ask(hub: Any, repository: str, name: str) -> tuple[Any, str]:
    """What the hub says of a file: its address, hash and size. Or None, and why it could not be asked ("": it has no such file)."""
    try:
        return hub.get_hf_file_metadata(hub.hf_hub_url(repository, name)), ""
    except hub.errors.EntryNotFoundError:
        return None, ""
    except hub.errors.OfflineModeIsEnabled:
        return None, "HF_HUB_OFFLINE is set"
    except hub.errors.HfHubHTTPError as problem:
        if getattr(problem.response, "status_code", 0) < 500:
            _refused(hub, repository, problem)
        return None, f"{hub.constants.ENDPOINT} answers {problem.response.status_code}"
    except Exception as problem:  # the client's HTTP library differs from version to version, and so do its exceptions
        return None, f"{hub.constants.ENDPOINT} cannot be reached ({_first_line(problem)})"


def _client() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.errors
        import huggingface_hub.file_download
    except ImportError:
        raise MissingExtraError("huggingface_hub", "export") from None
    if not sys.stderr.isatty():
        huggingface_hub.utils.disable_progress_bars()  # type: ignore[attr-defined]
    huggingface_hub.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    return huggingface_hub


def _refused(hub: Any, repository: str, problem: Any) -> NoReturn:
    status = problem.response.status_code
    if isinstance(problem, hub.errors.GatedRepoError):
        raise ModelError(
            f"{repository} is given only to those who accepted its terms", "accept them on its page, then set HF_TOKEN"
        ) from None
    if isinstance(problem, hub.errors.RepositoryNotFoundError) or status in (401, 403, 404):
        raise ModelError(
            f"{repository}: the hub has no such repository, or hides it ({status})", "check HF_ENDPOINT and HF_TOKEN"
        ) from None
    raise ModelError(f"{repository}: the hub answers {status}", "try again later") from None


def _online(hub: Any, repository: str, name: str, told: Any, sha256: str | None, say: Say) -> HubFile:
    """The file as the hub has it now. `told`: its address, size and entity tag (SHA-256 of a large file, git's blob id of a small one)."""
    tag = str(told.etag or "")
    if sha256 is None and not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", tag):
        raise VerificationError(
            f"{hub.constants.ENDPOINT} does not say what {name} of {repository} must contain", "give its sum yourself: --sha256 HEX"
        )
    folder = Path(hub.constants.HF_HUB_CACHE) / hub.file_download.repo_folder_name(repo_id=repository, repo_type="model")
    blob = folder / "blobs" / (tag or str(sha256))
    try:
        blob.parent.mkdir(parents=True, exist_ok=True)
        with _locked(hub, folder, blob.name):
            if blob.exists() and not _is(blob, tag, sha256):
                say(f"the copy of {name} in the cache is damaged and is downloaded again")
                blob.unlink()
            if not blob.exists():
                _download(hub, repository, name, told, blob, sha256, say)
    except OSError as problem:
        raise InputError(f"{folder} cannot be written: {problem.strerror or problem}", "set HF_HOME to a folder with room") from None
    path = blob
    with contextlib.suppress(Exception):  # the client finds the blob in its place and adds what its cache needs beside it
        path = Path(hub.hf_hub_download(repository, name))
    return HubFile(path, repository, name, str(told.commit_hash), sum_of(path), path.stat().st_size)


def _download(hub: Any, repository: str, name: str, told: Any, blob: Path, sha256: str | None, say: Say) -> None:
    part = blob.with_name(blob.name + ".vctool-part")
    have = part.stat().st_size if part.exists() else 0
    if told.size is not None and have > told.size:
        part.unlink()
        have = 0
    if told.size is not None:
        free = shutil.disk_usage(blob.parent).free
        if free < told.size - have + _SPARE:
            raise InputError(
                f"{name} needs {_mb(told.size - have)} on the disk of {blob.parent}, {_mb(free)} are free",
                "make room, or set HF_HOME to another disk",
            )
    whole = f" of {_mb(told.size)}" if told.size is not None else ""
    say(f"going on at {_mb(have)}{whole}: {repository}/{name}" if have else f"downloading{whole}: {repository}/{name}")
    address = hub.hf_hub_url(repository, name, revision=told.commit_hash)
    try:
        with part.open("ab") as out:
            hub.file_download.http_get(
                address,
                out,
                resume_size=have,
                headers=hub.utils.build_hf_headers() | {"Accept-Encoding": "identity"},  # ranges of what is compressed are not ours
                expected_size=told.size,
                displayed_filename=name,
            )
    except Exception as problem:  # of the HTTP library, which is not ours to name
        arrived = part.stat().st_size if part.exists() else 0
        if isinstance(problem, OSError) and problem.errno in _FULL:
            raise InputError(
                f"the disk of {blob.parent} is full: {name} stopped at {_mb(arrived)}{whole}",
                "make room and run it again: it goes on where it stopped",
            ) from None
        raise InputError(
            f"the download of {name} stopped at {_mb(arrived)}{whole} ({_first_line(problem)})",
            "run it again: it goes on where it stopped",
        ) from None
    if not _is(part, blob.name, sha256):
        found, wanted = sum_of(part), sha256 or blob.name
        part.unlink()
        raise VerificationError(
            f"{repository}/{name} is not what was published: its sum is {found[:12]}…, it should be {wanted[:12]}…",
            "nothing of it was kept; something between here and the hub alters files, or --sha256 is of another file",
        )
    part.replace(blob)


def _from_cache(repository: str, name: str, path: Path, sha256: str | None) -> HubFile:
    """A file that the cache has, where the hub cannot be asked. Its name in the cache is its hash, where the disk has links."""
    tag = path.resolve().name
    known = bool(re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", tag))
    if (known or sha256) and not _is(path, tag, sha256):
        raise VerificationError(f"{path} in the cache is damaged", "delete it, and fetch again with a network")
    revision = path.parents[len(Path(name).parts) - 1].name
    return HubFile(path, repository, name, revision, sum_of(path), path.stat().st_size)


def sum_of(path: Path) -> str:
    """SHA-256 of a file, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is(path: Path, tag: str, sha256: str | None) -> bool:
    """Whether a file is what its entity tag says and what the user says."""
    if sha256 is not None and sum_of(path) != sha256.lower():
        return False
    if re.fullmatch(r"[0-9a-f]{64}", tag):
        return (sha256 or "").lower() == tag or sum_of(path) == tag
    if re.fullmatch(r"[0-9a-f]{40}", tag):
        blob = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: blob).hexdigest() == tag
    return True


@contextlib.contextmanager
def _locked(hub: Any, folder: Path, tag: str) -> Iterator[None]:
    """The lock that the client takes for the same file: two programs do not download it twice."""
    path = folder.parent / ".locks" / folder.name / f"{tag}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with hub.utils.WeakFileLock(path):
        yield


def _mb(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def _first_line(problem: BaseException) -> str:
    text = str(problem).strip().splitlines()
    return (text[0] if text else type(problem).__name__).rstrip(".")[:160]
