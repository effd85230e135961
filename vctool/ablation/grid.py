"""An ablation file: a base recipe, and the cells that each change something of it.

name      of the ablation, and of its table
question  what it asks, for the table
base      the recipe that all cells share (its [data] is the data line); relative to the file
set       changes of the base that all cells share, as `--set` has them: a list of "table.key=value"
baseline  what the unchanged base is called in the table
seeds     one run for each
captions  how many captions of each test clip are queries (0: all)
metrics   columns of the table
[[cell]]  name, set, note; optional = true leaves it out where it changes nothing of the base
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vctool.config import from_dict
from vctool.errors import InputError, UsageProblem
from vctool.evaluation.environment import file_sha256
from vctool.metrics import METRIC_NAMES
from vctool.training.recipe import FREE_KEYS, Recipe, load_recipe, recipe_dict, without_later_keys

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
RECIPES = Path(__file__).parent / "recipes"
METRICS = ("R@1", "R@5", "R@10", "MRR", "nDCG@10")


@dataclass(frozen=True)
class Cell:
    """One variant. set: its changes of the base. note: a few words for the table. optional: may be what the base has already."""

    name: str
    set: tuple[str, ...] = ()
    note: str = ""
    optional: bool = False


@dataclass(frozen=True)
class Ablation:
    """An ablation file as written; see the module's text for its keys."""

    name: str
    base: Path
    question: str = ""
    set: tuple[str, ...] = ()
    baseline: str = "baseline"
    seeds: tuple[int, ...] = (0, 1, 2)
    captions: int = 1
    metrics: tuple[str, ...] = METRICS
    cell: tuple[Cell, ...] = ()


@dataclass(frozen=True)
class Run:
    """One cell under one seed. key: sha256 over all that its result depends on; equal runs of several files have one key."""

    cell: Cell
    seed: int
    recipe: Recipe
    captions: int
    key: str

    @property
    def folder(self) -> str:
        """The run's folder in the output folder."""
        return f"{self.cell.name}-seed{self.seed}-{self.key[:12]}"


@dataclass(frozen=True)
class Grid:
    """An ablation, resolved: the baseline's cell first, and all runs, seed by seed."""

    ablation: Ablation
    cells: tuple[Cell, ...]
    runs: tuple[Run, ...]


def find_file(path: Path, what: str) -> Path:
    """`path`, or the file of this name that ships with vctool (`loss`, `world`). Raises InputError, listing those there are."""
    shipped = {file.stem: file for file in sorted(RECIPES.glob("*.toml"))}
    if path.exists() or path.suffix:
        return path
    if str(path) not in shipped:
        raise InputError(f"{path}: no such {what}", f"a file, or one that ships with vctool: {', '.join(shipped)}")
    return shipped[str(path)]


def load_grid(path: Path, output: Path, overrides: Sequence[str] = (), seeds: Sequence[int] = (), base: Path | None = None) -> Grid:
    """Read an ablation file and resolve every cell. overrides change all cells; seeds and base replace the file's.

    Raises UsageProblem for an unknown key (naming the nearest), a cell that changes nothing or repeats another, and whatever
    is wrong in a resulting recipe; InputError for files that cannot be read.
    """
    ablation = read_ablation(path)
    if seeds:
        ablation = replace(ablation, seeds=tuple(dict.fromkeys(seeds)))
    base = path.resolve().parent / ablation.base.expanduser() if base is None else base
    common = [*ablation.set, *overrides]
    cells = (Cell(ablation.baseline, (), "the base recipe as it is"), *ablation.cell)
    recipes = {cell.name: _resolved(path, cell, base, common, output) for cell in cells}
    cells = tuple(cell for cell in cells if not (cell.optional and _same(recipes[cell.name], recipes[ablation.baseline])))
    _refuse_repeats(path, {cell.name: recipes[cell.name] for cell in cells})
    sources = _sources(path, recipes[ablation.baseline])
    runs = []
    for seed in ablation.seeds:
        for cell in cells:
            recipe = recipes[cell.name]
            recipe = replace(recipe, run=replace(recipe.run, seed=seed, name=cell.name))
            runs.append(Run(cell, seed, recipe, ablation.captions, _key(recipe, ablation.captions, sources)))
    return Grid(ablation, cells, tuple(runs))


def read_ablation(path: Path) -> Ablation:
    """The file itself, checked for what can be wrong without its base. Raises UsageProblem, InputError."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such ablation file") from None
    except (OSError, UnicodeDecodeError) as problem:
        raise InputError(f"{path} cannot be read: {problem}") from None
    except tomllib.TOMLDecodeError as problem:
        raise UsageProblem(f"{path} is not TOML: {problem}") from None
    for key in ("name", "base"):
        if key not in values:
            what = "a training recipe (`vctool train`) is not an ablation file" if "data" in values else "see docs/ablations.md"
            raise UsageProblem(f"{path}: '{key}' is missing", what)
    for number, cell in enumerate(values.get("cell", []) if isinstance(values.get("cell", []), list) else [], 1):
        if isinstance(cell, dict) and "name" not in cell:
            raise UsageProblem(f"{path}: cell {number} has no name")
    ablation = from_dict(Ablation, values, str(path), UsageProblem)
    _check(ablation, path)
    return ablation


def _check(ablation: Ablation, path: Path) -> None:
    if not ablation.cell:
        raise UsageProblem(f"{path}: there is no [[cell]]", "a cell is a name and a list of changes: set = [...]")
    names = [ablation.name, ablation.baseline, *(cell.name for cell in ablation.cell)]
    for name in names:
        if not _NAME.fullmatch(name):
            raise UsageProblem(f"{path}: {name!r} cannot be a name", "use letters, digits, and . _ + -")
    for name in names[1:]:
        if names[1:].count(name) > 1:
            raise UsageProblem(f"{path}: two cells are called '{name}'", "the unchanged base is a cell too: see `baseline`")
    for metric in ablation.metrics:
        if metric not in METRIC_NAMES:
            near = difflib.get_close_matches(metric, METRIC_NAMES, n=1)
            raise UsageProblem(f"{path}: there is no metric '{metric}'", f"did you mean '{near[0]}'?" if near else f"one of {METRIC_NAMES}")
    if not ablation.seeds or min(ablation.seeds) < 0 or len(set(ablation.seeds)) < len(ablation.seeds):
        raise UsageProblem(f"{path}: seeds must be different numbers from 0, got {list(ablation.seeds)}")
    if ablation.captions < 0:
        raise UsageProblem(f"{path}: captions must be 0 (all) or more")
    if not ablation.metrics:
        raise UsageProblem(f"{path}: metrics is empty")


def _resolved(path: Path, cell: Cell, base: Path, common: Sequence[str], output: Path) -> Recipe:
    try:
        recipe = load_recipe(base, [*common, *cell.set])
    except UsageProblem as problem:
        raise UsageProblem(f"{path}, cell '{cell.name}': {problem.message}", problem.hint) from None
    if recipe.data.test is None:
        raise UsageProblem(
            f"{base}: data.test is missing", "an ablation is measured on clips that neither train nor choose: name their manifest"
        )
    if recipe.data.cache is None:
        recipe = replace(recipe, data=replace(recipe.data, cache=output.resolve() / "cache"))
    return recipe


def _learnt(recipe: Recipe) -> dict[str, Any]:
    """The recipe without what does not change a result."""
    tables = without_later_keys(recipe_dict(recipe))
    for key in FREE_KEYS:
        table, name = key.split(".")
        tables[table].pop(name, None)
    tables["model"].pop("name", None)
    return tables


def _same(a: Recipe, b: Recipe) -> bool:
    return _learnt(a) == _learnt(b)


def _refuse_repeats(path: Path, recipes: dict[str, Recipe]) -> None:
    seen: dict[str, str] = {}
    for name, recipe in recipes.items():
        text = json.dumps(_learnt(recipe), sort_keys=True)
        if text in seen:
            first = next(iter(recipes))
            what = (
                f"cell '{name}' changes nothing of the base" if seen[text] == first else f"cells '{seen[text]}' and '{name}' are the same"
            )
            raise UsageProblem(f"{path}: {what}", "its values are the base's: take it out, or correct its `set`")
        seen[text] = name


def _sources(path: Path, recipe: Recipe) -> dict[str, str]:
    """Hashes of the manifests. Clips that change under an unchanged manifest are found by training itself."""
    found = {}
    for name in ("train", "validation", "test"):
        manifest = getattr(recipe.data, name)
        if manifest is None:
            continue  # the weights are chosen by clips of the training manifest
        try:
            found[name] = file_sha256(manifest)
        except InputError as problem:
            raise InputError(
                f"{path}: data.{name}: {problem.message}", "name your manifests: --set data.train=… (and validation, test)"
            ) from None
    return found


def _key(recipe: Recipe, captions: int, sources: dict[str, str]) -> str:
    content = {"recipe": _learnt(recipe), "captions": captions, "sources": sources}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
