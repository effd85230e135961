"""Named optimisation profiles: which shapes an engine is built for, and tuned to.

`interactive`: one query, one clip. `bulk`: as many as an index run sends at once; larger batches are split by the session.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vctool.config import ModelConfig
from vctool.errors import ModelError, UsageProblem
from vctool.runtime.engine_file import Profile, Range

MAX_BATCH = 32
"""Clips (or queries) of the bulk profile."""
CLIPS = 1024
"""Clips that the scorer's profiles take at once."""
LONGEST_CLIP = 64
"""Frames of one clip that the interactive profile takes, where the temporal encoder has no limit of its own."""
SCORED_CLIPS = 4096
"""Clips that a scorer compares with one query at once, at most; in bulk fewer, since it holds a similarity for every two tokens."""

Axis = tuple[int, int, int]  # min, opt, max


def profiles_for(
    graph: str, inputs: Mapping[str, Sequence[int | str]], config: ModelConfig, max_batch: int = MAX_BATCH
) -> tuple[Profile, ...]:
    """The profiles of a graph. inputs: sides of each input, dynamic ones as the name they have in the graph.

    A graph without dynamic axes has one profile, `fixed`. Raises UsageProblem for a batch below 1, ModelError for an axis that no
    profile has a range for.
    """
    if max_batch < 1:
        raise UsageProblem(f"a batch of {max_batch} is not possible", "use --max-batch with 1 or more")
    if all(isinstance(side, int) for sides in inputs.values() for side in sides):
        fixed: dict[str, Range] = {name: (_ints(s), _ints(s), _ints(s)) for name, s in inputs.items()}
        return (Profile("fixed", fixed),)
    axes = _axes(graph, config, max_batch)
    built = []
    for name in ("interactive", "bulk"):
        ranges: dict[str, Range] = {}
        for source, sides in inputs.items():
            ours = _scorer_axes(source, name, config, max_batch) if graph == "scorer" else axes[name]
            columns = [_range(graph, source, at, side, ours) for at, side in enumerate(sides)]
            low, best, high = zip(*columns, strict=True) if columns else ((), (), ())
            ranges[source] = (low, best, high)
        built.append(Profile(name, ranges))
    return tuple(built)


def _axes(graph: str, config: ModelConfig, max_batch: int) -> dict[str, dict[str, Axis]]:
    """Ranges by profile, and by the name of an axis or by place: axis 0 is `batch`, every later axis `inner`."""
    frames = config.frames
    longest = config.temporal.max_frames if config.temporal.kind == "transformer" else max(LONGEST_CLIP, frames)
    many = max(1, max_batch // 2)
    if graph == "text":
        # Where the length is dynamic, a typical sentence has a dozen tokens.
        length = (1, min(12, config.query.max_length), config.query.max_length)
        return {"interactive": {"batch": (1, 1, 1), "inner": length}, "bulk": {"batch": (1, many, max_batch), "inner": length}}
    if graph == "frame":
        one, lot = (1, frames, longest), (1, frames * many, max(frames * max_batch, longest))
        return {"interactive": {"batch": one}, "bulk": {"batch": lot}}
    if graph == "temporal":
        inner = (1, frames, longest)
        return {"interactive": {"batch": (1, 1, 1), "inner": inner}, "bulk": {"batch": (1, many, max_batch), "inner": inner}}
    if graph == "scorer":
        # By the names its axes have: queries, their tokens, clips scored at once, tokens of a clip.
        tokens = longest + config.temporal.expansion_tokens
        shared = {"Q": (1, config.query.max_length, max(config.query.max_length, 77)), "T": (1, frames, tokens)}
        return {
            "interactive": {"B": (1, 1, 1), "C": (1, SCORED_CLIPS, SCORED_CLIPS), **shared},
            "bulk": {"B": (1, many, max_batch), "C": (1, SCORED_CLIPS // 16, SCORED_CLIPS // 16), **shared},
        }
    return {"interactive": {}, "bulk": {}}


def _scorer_axes(source: str, profile: str, config: ModelConfig, max_batch: int) -> dict[str, Axis]:
    """Of `scorer`, whose first axes are queries and clips: one query or many, against a block of clips."""
    if source.startswith("query"):
        tokens = config.query.max_length if config.query.policy == "tokens" else 1
        return {"batch": (1, 1, 1) if profile == "interactive" else (1, max_batch, max_batch), "inner": (1, tokens, tokens)}
    frames = config.temporal.max_frames if config.temporal.kind == "transformer" else max(LONGEST_CLIP, config.frames)
    extra = config.temporal.expansion_tokens
    return {"batch": (1, CLIPS, CLIPS), "inner": (1, config.frames + extra, frames + extra)}


def _range(graph: str, source: str, at: int, side: int | str, axes: Mapping[str, Axis]) -> Axis:
    if isinstance(side, int):
        return side, side, side
    found = axes.get(side) or axes.get("batch" if at == 0 else "inner")
    if found is None:
        raise ModelError(f"graph {graph}: axis {at} ('{side}') of {source} is dynamic, and no profile has a range for it")
    return found


def _ints(sides: Sequence[int | str]) -> tuple[int, ...]:
    return tuple(int(side) for side in sides)
