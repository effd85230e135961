"""A training recipe: one TOML file that says everything about a run. Unknown keys are errors, defaults follow the field.

base      other recipe files, the later ones over the earlier ones; this file has the last word
[model]   what is trained (as `config.json`, with its tables backbone, query, temporal)
[init]    what it starts from
[data]    manifests and how clips enter batches
[optim]   learning rates, length, batch, precision
[loss]    the objective
[run]     name, seed, folders, intervals
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vctool.config import ModelConfig, from_dict
from vctool.errors import InputError, UsageProblem
from vctool.models.interaction import ScoreKernel
from vctool.models.losses import LossConfig
from vctool.training.ranks import Backend
from vctool.training.toml_writer import to_toml


@dataclass(frozen=True)
class InitConfig:
    """checkpoint: open_clip weights for the backbone, a local file, or a model directory whose towers are taken (`vctool fetch`).
    model: a model directory to go on from, all of it; what [model] leaves out is taken from it.

    tokenizer: the `tokenizer.json` of an architecture whose vocabulary open_clip does not carry (SigLIP); not needed with
    `model`, which has its own.

    loss_from_checkpoint: with `checkpoint`, start log-scale and bias where it left them, if it has a bias (SigLIP).
    """

    checkpoint: Path | None = None
    model: Path | None = None
    tokenizer: Path | None = None
    loss_from_checkpoint: bool = True


@dataclass(frozen=True)
class DataConfig:
    """train, validation: JSONL manifests. test: named only so that it can be kept out of the two others.

    In place of `validation`: hold_out, so many clips of `train` (a share of them, below 1), chosen by the hash of their names, are
    kept out and choose the weights; or folds, every clip is held out once, by a model trained on the others, `repeats` times over,
    to find out whether training helps at all (`vctool.training.own_clips`; wants `init.model` and few clips).
    select_on_test: choose the weights by the test clips, as most published code does; the result says so and is no test result.

    cache: where frame maps and text states of frozen towers are kept (default: in the run's folder); it can be deleted.
    fps: take so many frames a second, and never more than `model.frames` (0: always `model.frames`, spread evenly).
    limit, validation_limit: use the first so many clips. workers: decode processes; 0 decodes in this process.
    reverse: a clip with `reversed_captions` enters its batch twice, forwards and backwards.
    caption_choice: `random` takes one caption of a clip at random each epoch; `all` makes every caption a pair of its own.
    validation_captions: how many captions of each validation clip are queries (0: all).
    """

    train: Path
    validation: Path | None = None
    test: Path | None = None
    hold_out: float = 0
    folds: int = 0
    repeats: int = 3
    select_on_test: bool = False
    fps: float = 0
    cache: Path | None = None
    workers: int = 2
    decoder: Literal["pyav", "decord"] = "pyav"
    limit: int | None = None
    validation_limit: int | None = None
    reverse: bool = False
    caption_choice: Literal["random", "all"] = "random"
    validation_captions: int = 1
    strict: bool = False


@dataclass(frozen=True)
class OptimConfig:
    """lr: of new modules; backbone_lr: of pretrained ones (weight decay spares biases, norms, log-scale and bias).

    warmup: share of all steps with a rising rate; then a cosine down to `final_lr` times the peak. epochs, or steps if
    given. batch: clips a batch aims at (a group is never cut, so a few more or fewer). accumulate: batches a step; each is
    scored on its own, so it adds no negatives. freeze_backbone: train on cached features, minutes instead of hours.
    score_kernel: what computes MeanMaxSim: `triton` (NVIDIA GPUs), `tiled` (any device), or `auto`, the first that can.

    encode_rows: rows that one process encodes at once; 0 all of its share of a batch. Less takes less memory and one more forward
    pass, the gradient stays that of the whole batch (see `gradients`). recompute: keep no activations inside transformer
    blocks, compute them again backwards. compile: `torch.compile` for towers and temporal encoder. ema: decay of a running
    average of the weights, such as 0.999, which is then what is validated and exported; 0 is off.
    """

    lr: float = 1e-4
    backbone_lr: float = 1e-7
    weight_decay: float = 0.2
    betas: tuple[float, float] = (0.9, 0.98)
    warmup: float = 0.1
    final_lr: float = 0.0
    epochs: int = 5
    steps: int | None = None
    batch: int = 128
    accumulate: int = 1
    clip_norm: float = 1.0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    freeze_backbone: bool = False
    score_kernel: ScoreKernel = "auto"
    encode_rows: int = 0
    recompute: bool = False
    compile: bool = False
    ema: float = 0.0


@dataclass(frozen=True)
class RunConfig:
    """output: the run's folder (default `runs/NAME` in the current folder). Intervals are in steps.

    validate_every: 0 validates after each epoch. checkpoint_every: 0 saves after each validation only. keep: how many
    checkpoints to go on from are kept. threads: CPU threads (0: torch's choice). best: the metric, or sum of metrics
    joined by `+`, by which the best weights are chosen; `auto` is R@1 of the total score, plus its reversal_accuracy
    where the validation clips have reversed captions. patience: stop after so many validations without a new best (0:
    never). stall_steps: how often to ask whether the loss moves at all (0: never). profile: say at the end where a step's
    time went. backend: what several processes (torchrun) talk through: `nccl` between GPUs, `gloo` anywhere, or `auto`, the first that can.
    """

    name: str = "video-colbert"
    seed: int = 0
    output: Path | None = None
    log_every: int = 10
    validate_every: int = 0
    checkpoint_every: int = 0
    keep: int = 1
    threads: int = 0
    best: str = "auto"
    patience: int = 0
    stall_steps: int = 200
    tensorboard: bool = True
    profile: bool = False
    backend: Backend = "auto"


@dataclass(frozen=True)
class Recipe:
    """The whole recipe, its paths absolute."""

    data: DataConfig
    model: ModelConfig = field(default_factory=ModelConfig)
    init: InitConfig = field(default_factory=InitConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    run: RunConfig = field(default_factory=RunConfig)


# Keys that do not change what is learnt: a run may be resumed under other values.
FREE_KEYS = frozenset(
    (
        # where things lie: what the clips and captions are is checked by their fingerprint
        "data.train",
        "data.validation",
        "data.test",
        "data.cache",
        "run.output",
        # how the work is done and told
        "data.workers",
        "optim.score_kernel",
        "optim.encode_rows",
        "optim.recompute",
        "optim.compile",
        "run.backend",
        "run.name",
        "run.log_every",
        "run.checkpoint_every",
        "run.keep",
        "run.stall_steps",
        "run.tensorboard",
        "run.profile",
    )
)
# Keys that came later: at these values a recipe means what it meant before there were any, and a run keeps its name.
LATER_KEYS: dict[str, Any] = {
    "model.backbone.adapter_rank": 0,
    "data.hold_out": 0,
    "data.folds": 0,
    "data.repeats": 3,
    "data.select_on_test": False,
    "data.fps": 0,
    "optim.ema": 0.0,
}
_PATHS = (
    ("init", "checkpoint"),
    ("init", "model"),
    ("init", "tokenizer"),
    ("data", "train"),
    ("data", "validation"),
    ("data", "test"),
    ("data", "cache"),
    ("run", "output"),
)


RECIPES = Path(__file__).parent / "recipes"


def shipped_recipes() -> dict[str, Path]:
    """The recipes that come with vctool, by name."""
    return {path.stem: path for path in sorted(RECIPES.glob("*.toml"))}


def find_recipe(path: Path) -> Path:
    """`path`, or the shipped recipe of this name. Raises InputError naming the nearest."""
    known = shipped_recipes()
    if path.exists() or path.suffix or len(path.parts) > 1:
        return path
    if str(path) not in known:
        near = difflib.get_close_matches(str(path), known, n=3, cutoff=0.5)
        raise InputError(f"{path}: no such recipe", f"a file, or one of: {', '.join(near or known)}")
    return known[str(path)]


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe; `overrides` are `table.key=value` with the value as TOML has it (a bare word is a text).

    `base` in it names recipe files that it changes. Paths in the file are relative to its folder (in a shipped recipe, to the
    current one), paths in overrides to the current one. Raises UsageProblem for an unknown key (naming the nearest), a value of the
    wrong type or out of range; InputError where the file cannot be read.
    """
    values = _tables(path)
    for text in overrides:
        _override(values, text)
    _resolve(values, Path.cwd())
    return recipe_from(values, str(path))


def quoted(path: Path) -> str:
    """A path as a TOML text."""
    return json.dumps(str(path), ensure_ascii=False)


def data_overrides(path: Path) -> list[str]:
    """Overrides that name the clips: a manifest to train on, or a folder of `train.jsonl`, `validation.jsonl`, `test.jsonl`.

    Raises InputError for a folder without `train.jsonl`.
    """
    if not path.is_dir():
        return [f"data.train={quoted(path)}"]
    if not (path / "train.jsonl").is_file():
        raise InputError(f"{path} has no train.jsonl", "name a manifest, or a folder with train.jsonl (`vctool data manifest` writes one)")
    names = [name for name in ("train", "validation", "test") if (path / f"{name}.jsonl").is_file()]
    chosen = ["data.hold_out=0", "data.folds=0"] if "validation" in names else []
    return [*(f"data.{name}={quoted(path / f'{name}.jsonl')}" for name in names), *chosen]


def _tables(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The tables of a recipe file over those of its `base` files, paths resolved."""
    path = path.resolve()
    if path in above:
        raise UsageProblem(f"{path} is its own base", "take it out of `base`")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        where = f" (a base of {above[-1]})" if above else ""
        raise InputError(f"{path}: no such recipe{where}") from None
    except (OSError, UnicodeDecodeError) as problem:
        raise InputError(f"{path} cannot be read: {problem}") from None
    except tomllib.TOMLDecodeError as problem:
        raise UsageProblem(f"{path} is not TOML: {problem}") from None
    bases = values.pop("base", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise UsageProblem(f"{path}: base is a recipe file, or a list of them, each over the ones before it")
    # Shipped recipes name the user's files, not ours.
    _resolve(values, Path.cwd() if path.is_relative_to(RECIPES.resolve()) else path.parent)
    below: dict[str, Any] = {}
    for base in bases:
        below = _over(below, _tables(path.parent / base, (*above, path)))
    return _over(below, values)


def recipe_from(values: Mapping[str, Any], where: str) -> Recipe:
    """A recipe from its tables; `where` names the source in errors. Raises UsageProblem."""
    table = values.get("data")
    data = table if isinstance(table, Mapping) else {}
    # Before anything is said to be missing: it may be there, misspelt.
    recipe = from_dict(Recipe, _inherited({**values, "data": {"train": "", **data}}), where, UsageProblem)
    for key, others in (("train", ()), ("validation", ("hold_out", "folds", "select_on_test"))):
        if not any(data.get(name) for name in (key, *others)):
            hint = "name a JSONL manifest of clips with captions"
            raise UsageProblem(f"{where}: data.{key} is missing", f"{hint}, or set data.hold_out = 0.1" if others else hint)
    _check(recipe, where)
    return recipe


def _inherited(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The tables, with what [model] leaves out taken from the model directory that training goes on from."""
    init = values.get("init")
    source = init.get("model") if isinstance(init, Mapping) else None
    if not isinstance(source, (str, Path)) or not isinstance(values.get("model", {}), Mapping):
        return values
    try:
        known = json.loads((Path(source) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return values  # what is wrong with it is told when it is loaded
    known.pop("versions", None)
    return {**values, "model": _over(known, values.get("model", {}))}


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Two trees of tables as one; where both have a value, that of `above`."""
    joined = {**below, **above}
    for key, value in above.items():
        if isinstance(value, Mapping) and isinstance(below.get(key), Mapping):
            joined[key] = _over(below[key], value)
    return joined


def recipe_dict(recipe: Recipe) -> dict[str, Any]:
    """The recipe as nested tables of plain values; paths as texts, unset values left out."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items() if v is not None}
        if isinstance(value, (list, tuple)):
            return [plain(v) for v in value]
        return str(value) if isinstance(value, Path) else value

    tables: dict[str, Any] = plain(dataclasses.asdict(recipe))
    return {name: tables[name] for name in ("model", "init", "data", "optim", "loss", "run")}


def recipe_toml(recipe: Recipe) -> str:
    """The resolved recipe as TOML: what `load_recipe` reads back to an equal one."""
    return to_toml(recipe_dict(recipe))


def without_later_keys(tables: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A recipe's tables without the keys of LATER_KEYS that have their first value."""
    kept: dict[str, Any] = {}
    for key, value in tables.items():
        if isinstance(value, Mapping):
            kept[key] = without_later_keys(value, f"{prefix}{key}.")
        elif prefix + key not in LATER_KEYS or value != LATER_KEYS[prefix + key]:
            kept[key] = value
    return kept


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any, Any]]:
    """Dotted keys whose values differ between two recipes as tables, with both values (None: not set)."""
    found: list[tuple[str, Any, Any]] = []
    for key in [*old, *(k for k in new if k not in old)]:
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) or isinstance(b, Mapping):
            found += differences(a or {}, b or {}, f"{prefix}{key}.")
        elif a != b:
            found.append((prefix + key, a, b))
    return found


def _override(values: dict[str, Any], text: str) -> None:
    key, equals, value = text.partition("=")
    names = key.strip().split(".")
    if not equals or len(names) < 2 or not all(names):
        raise UsageProblem(f"--set {text}: expected table.key=value", "for example --set optim.lr=1e-3")
    table = values
    for name in names[:-1]:
        inner = table.setdefault(name, {})
        if not isinstance(inner, dict):
            raise UsageProblem(f"--set {text}: {name} is a value, not a table")
        table = inner
    table[names[-1]] = _parse(value.strip())


def _parse(value: str) -> Any:
    try:
        return tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return value  # a bare word: shells eat the quotes that TOML wants around a text


def _resolve(values: dict[str, Any], folder: Path) -> None:
    for table, key in _PATHS:
        inner = values.get(table)
        if isinstance(inner, dict) and isinstance(inner.get(key), str):
            inner[key] = str(folder / Path(inner[key]).expanduser())


def _check(recipe: Recipe, where: str) -> None:
    optim, run, data = recipe.optim, recipe.run, recipe.data
    for table in (optim, recipe.loss):
        for name, value in vars(table).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise UsageProblem(f"{where}: {name} is {value}, not a number to compute with")
    wrong = [
        (optim.lr >= 0 and optim.backbone_lr >= 0, "optim.lr and optim.backbone_lr must be 0 or more"),
        (optim.weight_decay >= 0, "optim.weight_decay must be 0 or more"),
        (all(0 <= b < 1 for b in optim.betas), "optim.betas must be from 0 up to, not including, 1"),
        (0 <= optim.warmup <= 1, "optim.warmup is a share of all steps, 0 to 1"),
        (0 <= optim.final_lr <= 1, "optim.final_lr is a share of the peak rate, 0 to 1"),
        (optim.epochs >= 1 and (optim.steps is None or optim.steps >= 1), "optim.epochs and optim.steps must be 1 or more"),
        (optim.batch >= 2, "optim.batch must be 2 or more: the other clips of a batch are the negatives"),
        (optim.accumulate >= 1, "optim.accumulate must be 1 or more"),
        (optim.encode_rows >= 0, "optim.encode_rows must be 0 or more"),
        (0 <= optim.ema < 1, "optim.ema must be from 0 up to, not including, 1"),
        (optim.clip_norm > 0, "optim.clip_norm must be more than 0"),
        (min(run.log_every, run.keep) >= 1, "run.log_every and run.keep must be 1 or more"),
        *(
            (getattr(run, name) >= 0, f"run.{name} must be 0 or more")
            for name in ("validate_every", "checkpoint_every", "threads", "patience", "stall_steps", "seed")
        ),
        (data.workers >= 0 and data.validation_captions >= 0, "data.workers and data.validation_captions must be 0 or more"),
        (all(n is None or n >= 1 for n in (data.limit, data.validation_limit)), "data.limit and data.validation_limit must be 1 or more"),
        (
            data.hold_out >= 0 and data.folds != 1 and data.folds >= 0 and data.repeats >= 1,
            "data.hold_out is a share or a number of clips; data.folds must be 2 or more (0: none), data.repeats 1 or more",
        ),
        (
            sum([data.validation is not None, data.hold_out > 0, data.folds > 0, data.select_on_test]) == 1,
            "one of data.validation, data.hold_out, data.folds and data.select_on_test says what chooses the weights",
        ),
        (data.fps >= 0, "data.fps must be 0 (evenly spread) or more"),
        (not data.select_on_test or data.test is not None, "data.select_on_test wants data.test, the clips to choose by"),
        (
            not data.folds or recipe.init.model is not None,
            "data.folds compares with the model that training starts from: name it as init.model (--init MODEL)",
        ),
        (recipe.init.model is None or recipe.init.checkpoint is None, "init.model and init.checkpoint exclude each other"),
    ]
    for good, message in wrong:
        if not good:
            raise UsageProblem(f"{where}: {message}")
    if not run.name or "/" in run.name or "\\" in run.name or run.name in (".", ".."):
        raise UsageProblem(f"{where}: run.name is {run.name!r}, it must be usable as a folder's name")
