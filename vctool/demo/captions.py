"""Sentences for clips: always who and what happens in which direction or order, sometimes where, in many wordings."""

from __future__ import annotations

import re

import numpy as np

from vctool.demo.backgrounds import PHRASES
from vctool.demo.objects import article, things

Rng = np.random.Generator

# A verb as (finite, gerund).
Verb = tuple[str, str]

_GO: tuple[Verb, ...] = (("moves", "moving"), ("goes", "going"), ("travels", "traveling"))
_GO_BY_CATEGORY: dict[str, tuple[Verb, ...]] = {
    "animal": (("walks", "walking"), ("runs", "running")),
    "person": (("runs", "running"), ("heads", "heading")),
    "flyer": (("flies", "flying"),),
    "aircraft": (("flies", "flying"),),
    "swimmer": (("swims", "swimming"),),
    "vehicle": (("drives", "driving"), ("rolls", "rolling")),
    "boat": (("sails", "sailing"),),
    "ball": (("rolls", "rolling"),),
}
_GO_OTHERWISE: tuple[Verb, ...] = (("slides", "sliding"), ("glides", "gliding"))

_SIDES = {"left": "right", "right": "left"}


def _sideways(to: str) -> tuple[str, ...]:
    back = _SIDES[to]
    return (
        f"to the {to}",
        f"{to}",
        f"{to}wards",
        f"to the {to} side",
        f"from {back} to {to}",
        f"from the {back} side to the {to} side",
        f"toward the {to}",
    )


_DIAGONALS = {
    "moves up right": (
        "up and to the right",
        "diagonally up to the right",
        "from the bottom left to the top right",
        "toward the top right corner",
    ),
    "moves up left": (
        "up and to the left",
        "diagonally up to the left",
        "from the bottom right to the top left",
        "toward the top left corner",
    ),
    "moves down right": (
        "down and to the right",
        "diagonally down to the right",
        "from the top left to the bottom right",
        "toward the bottom right corner",
    ),
    "moves down left": (
        "down and to the left",
        "diagonally down to the left",
        "from the top right to the bottom left",
        "toward the bottom left corner",
    ),
}

_VERBS: dict[str, tuple[Verb, ...]] = {
    "rises": (
        ("rises", "rising"),
        ("goes up", "going up"),
        ("moves up", "moving up"),
        ("moves upwards", "moving upwards"),
        ("climbs to the top", "climbing to the top"),
        ("floats up", "floating up"),
        ("rises from the bottom to the top", "rising from the bottom to the top"),
    ),
    "falls": (
        ("falls", "falling"),
        ("goes down", "going down"),
        ("moves down", "moving down"),
        ("falls down", "falling down"),
        ("drops", "dropping"),
        ("moves downwards", "moving downwards"),
        ("sinks to the bottom", "sinking to the bottom"),
        ("falls from the top to the bottom", "falling from the top to the bottom"),
    ),
    "grows": (
        ("grows", "growing"),
        ("gets bigger", "getting bigger"),
        ("becomes larger", "becoming larger"),
        ("grows bigger and bigger", "growing bigger and bigger"),
        ("gets larger", "getting larger"),
        ("grows from small to big", "growing from small to big"),
        ("expands", "expanding"),
    ),
    "shrinks": (
        ("shrinks", "shrinking"),
        ("gets smaller", "getting smaller"),
        ("becomes smaller", "becoming smaller"),
        ("gets smaller and smaller", "getting smaller and smaller"),
        ("shrinks from big to small", "shrinking from big to small"),
        ("becomes tiny", "becoming tiny"),
    ),
    "fades in": (
        ("fades in", "fading in"),
        ("slowly appears", "slowly appearing"),
        ("gradually becomes visible", "gradually becoming visible"),
        ("fades into view", "fading into view"),
        ("comes into view out of nothing", "coming into view out of nothing"),
    ),
    "fades out": (
        ("fades out", "fading out"),
        ("slowly disappears", "slowly disappearing"),
        ("gradually vanishes", "gradually vanishing"),
        ("fades away", "fading away"),
        ("fades from view until it is gone", "fading from view until it is gone"),
    ),
    "bounces": (
        ("bounces", "bouncing"),
        ("bounces up and down", "bouncing up and down"),
        ("hops up and down", "hopping up and down"),
        ("keeps bouncing", "bouncing again and again"),
    ),
    "shakes": (
        ("shakes", "shaking"),
        ("shakes from side to side", "shaking from side to side"),
        ("wiggles from side to side", "wiggling from side to side"),
        ("jitters left and right", "jittering left and right"),
    ),
    "rocks": (
        ("rocks back and forth", "rocking back and forth"),
        ("tilts to and fro", "tilting to and fro"),
        ("sways", "swaying"),
        ("swings like a pendulum", "swinging like a pendulum"),
    ),
}

_STEPS: dict[str, tuple[Verb, ...]] = {
    "left": (("moves left", "moving left"), ("goes to the left", "going to the left"), ("moves to the left", "moving to the left")),
    "right": (("moves right", "moving right"), ("goes to the right", "going to the right"), ("moves to the right", "moving to the right")),
    "up": (("rises", "rising"), ("goes up", "going up"), ("moves up", "moving up")),
    "down": (("falls", "falling"), ("goes down", "going down"), ("moves down", "moving down")),
}

_TURNS = {
    "turns": (
        ("turns {}", "turning {}"),
        ("rotates {}", "rotating {}"),
        ("spins {}", "spinning {}"),
        ("turns {} on the spot", "turning {} on the spot"),
        ("slowly rotates {}", "slowly rotating {}"),
    ),
    "circles": (
        ("circles {}", "circling {}"),
        ("moves in a {} circle", "moving in a {} circle"),
        ("goes round in a circle {}", "going round in a circle {}"),
        ("travels {} along a circle", "traveling {} along a circle"),
        ("goes around {}", "going around {}"),
    ),
}

# Clauses about two actors, finite and gerund; A and B in canonical roles.
_CLAUSES: dict[str, tuple[Verb, ...]] = {
    "appears before": (
        ("{A} appears before {B}", "{A} appearing before {B}"),
        ("{A} appears first and {B} appears later", "{A} appearing first and {B} appearing later"),
        ("first {A} appears, then {B} joins it", "{A} appearing, then {B} joining it"),
        ("{B} appears after {A}", "{B} appearing after {A}"),
        ("{A} pops up and then {B} pops up beside it", "{A} popping up and then {B} popping up beside it"),
    ),
    "disappears after": (
        ("{B} disappears before {A}", "{B} disappearing before {A}"),
        ("{B} disappears first and {A} disappears later", "{B} disappearing first and {A} disappearing later"),
        ("first {B} disappears, then {A} is gone too", "{B} disappearing, then {A} vanishing too"),
        ("{A} disappears after {B}", "{A} disappearing after {B}"),
        ("{B} vanishes and then {A} vanishes as well", "{B} vanishing and then {A} vanishing as well"),
    ),
    "shown before": (
        ("first {A} is shown, then {B}", "first {A}, then {B}"),
        ("{A} turns into {B}", "{A} turning into {B}"),
        ("{A} is replaced by {B}", "{A} being replaced by {B}"),
        ("{B} takes the place of {A}", "{B} taking the place of {A}"),
        ("{A} changes into {B}", "{A} changing into {B}"),
        ("at first there is {A}, and in the end there is {B}", "{A} at first and {B} in the end"),
    ),
    "catches": (
        ("{A} catches {B}", "{A} catching {B}"),
        ("{A} catches {B} that flies toward it", "{A} catching {B} that flies toward it"),
        ("{B} flies to {A} and is caught", "{B} flying to {A} and being caught"),
        ("{B} is caught by {A}", "{B} being caught by {A}"),
        ("{A} waits and catches {B}", "{A} waiting and catching {B}"),
    ),
    "throws": (
        ("{A} throws {B}", "{A} throwing {B}"),
        ("{A} throws {B} away", "{A} throwing {B} away"),
        ("{B} flies away from {A} that threw it", "{B} flying away from {A} that threw it"),
        ("{B} is thrown by {A}", "{B} being thrown by {A}"),
        ("{A} holds and then throws {B}", "{A} holding and then throwing {B}"),
    ),
    "chases": (
        ("{A} chases {B} to the {to}", "{A} chasing {B} to the {to}"),
        ("{A} runs after {B} to the {to}", "{A} running after {B} to the {to}"),
        ("{B} is chased to the {to} by {A}", "{B} being chased to the {to} by {A}"),
        ("{A} follows {B} from {back} to {to}", "{A} following {B} from {back} to {to}"),
        ("{B} flees to the {to} from {A}", "{B} fleeing to the {to} from {A}"),
        ("{A} chases {B}", "{A} chasing {B}"),
    ),
    "approaches": (
        ("{A} approaches {B}", "{A} approaching {B}"),
        ("{A} comes closer to {B}", "{A} coming closer to {B}"),
        ("{A} moves toward {B}", "{A} moving toward {B}"),
        ("{A} goes up to {B} that stays where it is", "{A} going up to {B} that stays where it is"),
        ("{A} gets nearer and nearer to {B}", "{A} getting nearer and nearer to {B}"),
    ),
    "moves away from": (
        ("{A} moves away from {B}", "{A} moving away from {B}"),
        ("{A} leaves {B}", "{A} leaving {B}"),
        ("{A} goes away from {B} that stays where it is", "{A} going away from {B} that stays where it is"),
        ("{A} backs away from {B}", "{A} backing away from {B}"),
        ("{A} gets farther and farther from {B}", "{A} getting farther and farther from {B}"),
    ),
    "jumps over": (
        ("{A} jumps over {B} to the {to}", "{A} jumping over {B} to the {to}"),
        ("{A} leaps from {back} to {to} over {B}", "{A} leaping from {back} to {to} over {B}"),
        ("{A} hops over {B} from the {back} side to the {to} side", "{A} hopping over {B} from the {back} side to the {to} side"),
        ("{A} jumps {to}wards over {B}", "{A} jumping {to}wards over {B}"),
    ),
    "circles around": (
        ("{A} circles {way} around {B}", "{A} circling {way} around {B}"),
        ("{A} moves around {B} {way}", "{A} moving around {B} {way}"),
        ("{A} goes around {B} in a {way} circle", "{A} going around {B} in a {way} circle"),
        ("{B} stays in the middle while {A} circles it {way}", "{B} in the middle and {A} circling it {way}"),
    ),
}

# {f} finite clause, {g} gerund clause, {w} where. One list per style; a clip gets one sentence of each style.
_STYLES: tuple[tuple[str, ...], ...] = (
    ("{f}",),
    ("{g}",),
    ("{f} {w}", "{w}, {f}", "{g} {w}"),
    ("a clip of {g}", "a video of {g}", "{f} in the picture", "a short video shows {g}", "in this clip, {f}", "we see {g}"),
    (
        "a short animated clip {w} in which {f}",
        "the scene is set {w}, and the camera stays still while {f}",
        "a cartoon video of {g} {w}, seen from a camera that does not move",
        "{w}, we can see how {f} while nothing else changes",
        "in a two-second clip {w}, {f}",
        "this is a little scene {w}: {f}",
    ),
)


def _pick(rng: Rng, choices: tuple[str, ...]) -> str:
    return choices[int(rng.integers(len(choices)))]


def _pick_verb(rng: Rng, choices: tuple[Verb, ...]) -> Verb:
    return choices[int(rng.integers(len(choices)))]


def _solo_verb(event: str, category: str, rng: Rng) -> Verb:
    if event in _VERBS:
        return _pick_verb(rng, _VERBS[event])
    first, _, rest = event.partition(" ")
    if first in _TURNS:
        way = _pick(rng, ("counterclockwise", "anticlockwise", "counterclockwise")) if rest == "counterclockwise" else rest
        finite, gerund = _pick_verb(rng, _TURNS[first])
        return finite.format(way), gerund.format(way)
    if " then " in event:
        one, _, two = event.partition(" then ")
        (f1, g1), (f2, g2) = _pick_verb(rng, _STEPS[one]), _pick_verb(rng, _STEPS[two])
        forms: tuple[Verb, ...] = (
            (f"first {f1}, then {f2}", f"first {g1}, then {g2}"),
            (f"{f1} and then {f2}", f"{g1} and then {g2}"),
            (f"{f1} before it {f2}", f"{g1} before {g2}"),
            (f"{f2} after it {f1}", f"{g2} after {g1}"),
        )
        return _pick_verb(rng, forms)
    finite, gerund = _pick_verb(rng, _GO + _GO_BY_CATEGORY.get(category, _GO_OTHERWISE))
    way = _pick(rng, _DIAGONALS[event]) if event in _DIAGONALS else _pick(rng, _sideways(rest))
    return f"{finite} {way}", f"{gerund} {way}"


def _clause(objects: tuple[str, ...], event: str, rng: Rng) -> Verb:
    """One wording of what happens, finite and gerund, with names but without a place."""
    spoken = []
    for name in objects:
        names = things()[name].names
        noun = names[0] if rng.random() < 0.75 else _pick(rng, names)
        spoken.append(f"{article(noun)} {noun}")
    if len(objects) == 1:
        finite, gerund = _solo_verb(event, things()[objects[0]].category, rng)
        subject = spoken[0] if rng.random() < 0.85 else f"the {spoken[0].split(' ', 1)[1]}"
        return f"{subject} {finite}", f"{subject} {gerund}"
    a, b, to, way = *spoken, "right", "clockwise"
    if event == "shown after":
        a, b, event = b, a, "shown before"
    elif event == "chased left":
        a, b, to, event = b, a, "left", "chases"
    elif event.startswith(("jumps", "circles")):
        verb, to, preposition = event.split(" ")
        way, event = to, f"{verb} {preposition}"
        if way == "counterclockwise" and rng.random() < 0.33:
            way = "anticlockwise"
    elif event == "chases right":
        event = "chases"
    finite, gerund = _pick_verb(rng, _CLAUSES[event])
    words = {"A": a, "B": b, "to": to, "back": _SIDES.get(to, ""), "way": way}
    return finite.format(**words), gerund.format(**words)


def _mend(sentence: str) -> str:
    return sentence.replace(" a anticlockwise", " an anticlockwise").replace(" in in ", " in, in ")


COUNT = len(_STYLES)


def captions(objects: tuple[str, ...], background: str, event: str, rng: Rng) -> tuple[str, ...]:
    """Five different sentences for a clip, one of each style from short to long, in random order.

    Each names every object and the event with its direction or order, so that none fits the time-reversed twin.
    """
    found: list[str] = []
    while len(found) < COUNT:
        style = _STYLES[len(found)]
        finite, gerund = _clause(objects, event, rng)
        sentence = _mend(_pick(rng, style).format(f=finite, g=gerund, w=_pick(rng, PHRASES[background])))
        if style is _STYLES[1] and rng.random() < 0.25:
            sentence = re.sub(r"\b(?:a|an) ", "", sentence)  # as people type into a search box
        if sentence not in found:
            found.append(sentence)
    return tuple(found[int(i)] for i in rng.permutation(COUNT))


def describe(objects: tuple[str, ...], background: str, event: str) -> str:
    """The plain sentence about a clip: always the same words for the same clip."""
    names = [f"{article(name)} {name}" for name in objects]
    where = PHRASES[background][0]
    if len(names) == 1:
        words = event if " then " not in event else f"moves {event}"
        return _mend(f"{names[0]} {words} {where}")
    a, b = names
    plain = {
        "appears before": f"{a} appears, then {b}",
        "disappears after": f"{b} disappears, then {a}",
        "shown before": f"first {a}, then {b}",
        "shown after": f"first {b}, then {a}",
        "chases right": f"{a} chases {b} to the right",
        "chased left": f"{b} chases {a} to the left",
    }
    return f"{plain.get(event, f'{a} {event} {b}')} {where}"
