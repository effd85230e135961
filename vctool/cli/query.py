"""`vctool query`: clips found by a sentence, with the reasons."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from vctool.cli.command import command
from vctool.cli.console import clock, plain_table, print_json, say, stdout
from vctool.cli.options import PATH, device_option, json_option, provider_option, threads_option
from vctool.cli.scorer import chosen_scorer, scorer_options
from vctool.errors import InputError, UsageProblem, VctoolError

if TYPE_CHECKING:
    from vctool.runtime.allowed import Allowed
    from vctool.runtime.encoder import QueryTokens
    from vctool.runtime.evidence import Branch
    from vctool.runtime.model import Model
    from vctool.runtime.search import Hit, SearchResult, Wanted
    from vctool.store import Store

_SHORT = 10.0  # seconds
_WORDS_WIDE, _WORDS_NARROW, _WIDE = 5, 3, 100  # words shown a hit, by the width of the terminal
_SETTINGS = ":k 5, :branch f|v|fv, :where FILTER, :min-score 0.3, :next, :explain"
_BLOCK = 64  # queries of a file answered in one pass over the store


@command(
    "query",
    examples=(
        'vctool query "a dog catching a frisbee" --index clips.npz',
        "vctool query --queries sentences.txt --index clips.npz -k 5 --json",
        """vctool query "a goal" --index clips.npz --where 'duration < 60 and tag = "sport"'""",
    ),
)
@click.argument("text", nargs=-1, metavar="TEXT")
@click.option("--index", "store", type=PATH, required=True, envvar="VCTOOL_INDEX", metavar="CLIPS.npz", help="The token store to search.")
@click.option("--model", type=PATH, envvar="VCTOOL_MODEL", help="Model directory.  [default: the one that made the store]")
@click.option("-k", type=click.IntRange(min=1), default=10, show_default=True, help="How many clips to show.")
@click.option("--branch", type=click.Choice(["f", "v", "fv"]), help="Frames, video tokens, or both.  [default: the model's own]")
@click.option("--queries", type=click.Path(), metavar="FILE|-", help="Many queries, one a line; - is standard input.")
@click.option("--tokens", type=PATH, metavar="Q.npy", help="Queries encoded elsewhere: an array [tokens, D] or [queries, tokens, D].")
@click.option("--mask", type=PATH, metavar="M.npy", help="Which of --tokens count: an array without the last axis.")
@click.option("--where", metavar="FILTER", help="Only clips whose metadata pass, like 'duration < 60 and tag = \"sport\"'.")
@click.option("--ids", type=click.Path(), metavar="FILE|-", help="Only the clips named there, one id a line.")
@click.option("--offset", type=click.IntRange(min=0), default=0, metavar="N", help="Leave out the first N hits.")
@click.option("--min-score", type=float, metavar="S", help="Leave out hits that score less.")
@click.option(
    "--template",
    "templates",
    multiple=True,
    metavar="TEXT",
    help='Put the query into this, "a photo of {}"; repeat to average (pooled models).',
)
@click.option("--explain", is_flag=True, help="Show what every token of the query adds to each score.")
@click.option("-i", "--interactive", is_flag=True, help="Ask again and again with the model loaded; Ctrl-D leaves.")
@click.option("--exact", is_flag=True, help="Compare every clip, however many there are.")
@click.option("--two-stage", is_flag=True, help="Compare only clips that a scan of pooled vectors picks.  [default: from 20,000 clips on]")
@click.option("--candidates", type=click.IntRange(min=1), metavar="N", help="Two-stage, comparing N clips.  [default: as recall asks]")
@device_option
@provider_option
@scorer_options
@threads_option
@json_option
def query(
    text: tuple[str, ...],
    store: Path,
    model: Path | None,
    k: int,
    branch: str | None,
    queries: str | None,
    tokens: Path | None,
    mask: Path | None,
    where: str | None,
    ids: str | None,
    offset: int,
    min_score: float | None,
    explain: bool,
    interactive: bool,
    exact: bool,
    two_stage: bool,
    candidates: int | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """Search a token store for TEXT and show which words hit when. TEXT `-` reads one query a line from standard input.

    Each word of the query looks for its best frame and its best moment; the shares of all words add up to the score.
    """
    if sum((bool(text), queries is not None, tokens is not None, interactive)) != 1:
        raise UsageProblem(
            "give one of: a text, --queries FILE, --tokens Q.npy, -i",
            'for example: vctool query "a dog catching a frisbee" --index clips.npz',
        )
    if mask is not None and tokens is None:
        raise UsageProblem("--mask says which of --tokens count", "give --tokens Q.npy too")
    if exact and (two_stage or candidates is not None):
        raise UsageProblem("--exact compares every clip", "leave out --two-stage and --candidates, or --exact")
    source = "-" if text == ("-",) else queries
    if ids == "-" and (source == "-" or interactive):
        raise UsageProblem("standard input cannot be both queries and ids", "write one of them to a file")
    from vctool.runtime.search import Wanted
    from vctool.store import open_store

    wanted = Wanted(k, offset, min_score, True if exact else False if two_stage else None, candidates)
    listed = None if ids is None else _ids_of(ids)
    asked = _Asked(open_store(store), model, wanted, where, listed, cast("Branch | None", branch), explain, as_json, settings)
    if interactive:
        _interactive(asked)
    elif tokens is not None:
        from vctool.runtime.query_arrays import read_queries

        encoded = read_queries(tokens, mask)
        for start in range(0, len(encoded), _BLOCK):
            asked.answer(encoded[start : start + _BLOCK], titled=len(encoded) > 1)
    elif source == "-":
        for line in _standard_input():
            asked.answer([line], titled=True)
    elif source is not None:
        lines = _lines_of(Path(source))
        for start in range(0, len(lines), _BLOCK):
            asked.answer(lines[start : start + _BLOCK], titled=len(lines) > 1)
    else:
        asked.answer([" ".join(text)])


class _Asked:
    """The store, the model (loaded on first use) and how to show answers."""

    def __init__(
        self,
        store: Store,
        model: Path | None,
        wanted: Wanted,
        where: str | None,
        ids: list[str] | None,
        branch: Branch | None,
        explain: bool,
        as_json: bool,
        settings: dict[str, Any],
    ) -> None:
        from vctool.runtime.allowed import allowed_clips

        self._templates: tuple[str, ...] = settings.pop("templates")
        self.scorer = chosen_scorer(settings.pop("scorer"), settings.pop("memory"), settings)
        self.store, self._model, self._settings, self._ids = store, model, settings, ids
        self.wanted, self.branch, self.explain, self.as_json = wanted, branch, explain, as_json
        self.allowed: Allowed = allowed_clips(store, where, ids)
        self._told: set[str] = set()
        self.last: str | None = None

    def restrict(self, where: str | None) -> None:
        """Another filter from now on."""
        from vctool.runtime.allowed import allowed_clips

        self.allowed = allowed_clips(self.store, where, self._ids)

    @cached_property
    def model(self) -> Model:
        from vctool.runtime.model import load_model
        from vctool.runtime.search import find_model

        model = load_model(find_model(self.store) if self._model is None else self._model, **self._settings)
        if self._templates:
            model.text.use_templates(self._templates)
        return model

    def answer(self, asked: list[str | QueryTokens] | list[str] | list[QueryTokens], titled: bool = False) -> None:
        from vctool.runtime.search import search_wanted

        model = self.model if any(isinstance(q, str) for q in asked) else None
        for result in search_wanted(asked, self.store, model, self.branch, self.wanted, self.allowed, self.scorer):
            for note in result.notes:
                if note not in self._told:  # once, not for every query
                    say(f"warning: {note}")
                    self._told.add(note)
            if result.query.dropped:
                say(f"warning: the query is longer than the model reads; cut off: {_short(result.query.dropped)!r}")
            if self.as_json:
                print_json(result.to_json())
            else:
                show(result, titled, self.explain)


def show(result: SearchResult, titled: bool, explain: bool) -> None:
    from rich.text import Text

    console = stdout()
    if titled:
        console.print(Text(result.query.text, style="bold"))
    if not result.hits:
        say(_nothing(result))
        return
    table = plain_table("#", "score", "clip", "best at", "which words hit when")
    for column in (0, 1, 3):
        table.columns[column].no_wrap = True
        table.columns[column].justify = "right"
    for hit in result.hits:
        table.add_row(
            str(hit.rank),
            f"{hit.score:.3f}",
            Text(hit.id),
            _best_at(hit),
            Text(_words(hit, _WORDS_WIDE if console.width >= _WIDE else _WORDS_NARROW)),
        )
    console.print(table)
    if result.mode == "two-stage":
        among = "" if result.allowed is None else f" of {result.allowed:,} allowed"
        say(f"two-stage: {result.candidates:,}{among} clips compared exactly (--exact compares all)")
    elif result.allowed is not None:
        say(f"exact: {result.candidates:,} allowed clips compared")
    if explain and result.query.pooled:
        say("the query is one pooled vector, against the best frame (f) and the mean of frames (v): this model has no token training")
    if explain:
        for hit in result.hits:
            _explain(hit, result)


def _best_at(hit: Hit) -> str:
    """The interval in a long clip; a short one is a moment itself, so its best second is told."""
    moment = hit.evidence.moment
    if moment is None or (hit.end is not None and hit.end - hit.start < _SHORT):
        return clock(hit.evidence.best_second)
    return f"{clock(math.floor(moment.start))[:-2]}–{clock(math.ceil(moment.end))[:-2]}"


def _nothing(result: SearchResult) -> str:
    if result.allowed == 0:
        return "no clip to show: none passes the filter"
    if result.candidates == 0:
        return "no clip to show: the store is empty"
    if result.offset:
        return f"no clip to show after the first {result.offset:,}"
    return "no clip to show: none scores as much as --min-score"


def _words(hit: Hit, count: int) -> str:
    """The words with the largest shares, in their order in the query; words that speak against the clip hit nothing."""
    words = hit.evidence.words
    strongest = sorted((i for i, word in enumerate(words) if word.share > 0), key=lambda i: (-words[i].share, i))[:count]
    return " · ".join(f"{words[i].text} {_when(words[i].second)}" for i in sorted(strongest))


def _when(second: float | None) -> str:
    return "global" if second is None else clock(second)


def _explain(hit: Hit, result: SearchResult) -> None:
    from rich.text import Text

    table = plain_table(
        "token", "share", *(["frame", "at"] if "f" in result.branch else []), *(["video", "at"] if "v" in result.branch else [])
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for token in hit.evidence.tokens:
        if token.pad:
            continue
        row = [Text(token.text), Text(f"{token.share:+.4f}")]
        if token.frame_share is not None:
            row += [Text(f"{token.frame_share:+.4f}"), Text(clock(token.frame_second))]
        if token.video_share is not None:
            row += [Text(f"{token.video_share:+.4f}"), Text(_when(token.video_second))]
        table.add_row(*row)
    pads = sum(token.pad for token in hit.evidence.tokens)
    if pads:
        table.add_row(f"{pads} pads", f"{hit.evidence.pad_share:+.4f}")
    table.add_row(Text("score", style="bold"), Text(f"{hit.score:+.4f}", style="bold"))
    console = stdout()
    console.print(Text(f"\n{hit.rank}. {hit.id}", style="bold"))
    console.print(table)


# --- where queries come from ----------------------------------------------------------------------------------------------


def _standard_input() -> Iterator[str]:
    if sys.stdin.isatty():
        raise UsageProblem(
            "standard input is a terminal: nothing to read queries from",
            'echo "a dog catching a frisbee" | vctool query - --index clips.npz, or use -i',
        )
    empty = True
    try:
        for line in sys.stdin:
            if line.strip():
                empty = False
                yield line.strip()
    except UnicodeDecodeError:
        raise InputError("standard input is not UTF-8 text") from None
    if empty:
        raise InputError("standard input holds no query", "write one query a line")


def _lines_of(path: Path) -> list[str]:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").split("\n")]
    except FileNotFoundError:
        raise InputError(f"{path}: no such file", "--queries takes a text file with one query a line") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: is not UTF-8 text") from None
    except OSError as problem:
        raise InputError(f"{path}: cannot be read: {problem.strerror}") from None
    lines = [line for line in lines if line]
    if not lines:
        raise InputError(f"{path}: holds no query", "write one query a line")
    return lines


def _ids_of(source: str) -> list[str]:
    if source == "-":
        text, name = "".join(_standard_lines()), "standard input"
    else:
        name = source
        try:
            text = Path(source).read_text(encoding="utf-8-sig", errors="surrogateescape")
        except FileNotFoundError:
            raise InputError(f"{source}: no such file", "--ids takes a text file with one clip id a line") from None
        except OSError as problem:
            raise InputError(f"{source}: cannot be read: {problem.strerror}") from None
    ids = [line.removesuffix("\r") for line in text.split("\n") if line.strip()]
    if not ids:
        raise InputError(f"{name}: holds no clip id", "write one clip id a line; `vctool info` lists them")
    return ids


def _standard_lines() -> list[str]:
    try:
        return list(sys.stdin)
    except UnicodeDecodeError:
        raise InputError("standard input is not UTF-8 text") from None


def _interactive(asked: _Asked) -> None:
    terminal = sys.stdin.isatty()
    asked.model.text  # noqa: B018  (load now: the first answer should be as quick as the others)
    if terminal:
        say(f"{len(asked.store)} clips. Type a query; {_SETTINGS} change settings; Ctrl-D leaves.")
        with suppress(ImportError):  # Windows has none, and edits lines by itself
            import readline  # noqa: F401  (input() uses it once it is imported)
    while True:
        try:
            line = input("query> " if terminal else "").strip()
        except EOFError:
            if terminal:
                say("")
            return
        try:
            if line.startswith(":"):
                _set(asked, line)
            elif line:
                asked.last, asked.wanted = line, replace(asked.wanted, offset=0)
                asked.answer([line])
        except VctoolError as problem:
            say(f"error: {problem}" + (f"\n{problem.excerpt}" if problem.excerpt else ""))


def _set(asked: _Asked, line: str) -> None:
    name, _, value = line[1:].partition(" ")
    value = value.strip()
    if name == "k" and value.isdecimal() and int(value) > 0:
        asked.wanted = replace(asked.wanted, k=int(value))
    elif name == "where":
        asked.restrict(value or None)
    elif name == "min-score" and (not value or _is_number(value)):
        asked.wanted = replace(asked.wanted, min_score=float(value) if value else None)
    elif name == "next" and not value and asked.last is not None:
        asked.wanted = replace(asked.wanted, offset=asked.wanted.offset + asked.wanted.k)
        asked.answer([asked.last])
    elif name == "branch" and value in ("f", "v", "fv"):
        asked.branch = cast("Branch", value)
    elif name == "explain" and not value:
        asked.explain = not asked.explain
    else:
        raise UsageProblem(f"not a setting: {line}", _SETTINGS)


def _is_number(text: str) -> bool:
    try:
        return not math.isnan(float(text))
    except ValueError:
        return False


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "…"
