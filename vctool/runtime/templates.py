"""Templates: sentences that a query is put into before it is encoded, as CLIP's zero-shot recipe has them.

Several are encoded each, and their pooled vectors averaged. Only for models whose query is one pooled vector: in a model with
token training every word of the template would count as a query token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from vctool.errors import UsageProblem

if TYPE_CHECKING:
    from vctool.runtime.encoder import QueryTokens

PLACE = "{}"  # where the query goes


def checked(templates: Sequence[str], policy: str) -> tuple[str, ...]:
    """The templates, if they can be used with a query policy. Raises UsageProblem otherwise."""
    for template in templates:
        if template.count(PLACE) != 1:
            raise UsageProblem(f"the template {template!r} needs {PLACE} once, where the query goes", 'for example "a photo of {}"')
    if templates and policy != "pooled":
        raise UsageProblem(
            "templates are for models whose query is one pooled vector",
            f"this model's query policy is '{policy}': its words are query tokens",
        )
    return tuple(templates)


def filled(texts: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Every text in every template, one text's after the other."""
    return [template.replace(PLACE, text) for text in texts for template in templates]


def averaged(text: str, queries: Sequence[QueryTokens], templates: tuple[str, ...]) -> QueryTokens:
    """The pooled queries of one text in each of its templates as one: the unit vector along their mean."""
    from vctool.preprocessing.tokenizer import Word
    from vctool.runtime.encoder import QueryTokens

    mean_D = np.mean([query.query_QD[0].astype(np.float64) for query in queries], axis=0)
    length = float(np.linalg.norm(mean_D))
    vector_D = mean_D / length if length else queries[0].query_QD[0]
    dropped = next((query.dropped for query in queries if query.dropped), "")
    mask, pad = np.ones(1, dtype=np.bool_), np.zeros(1, dtype=np.bool_)
    return QueryTokens(text, vector_D.astype(np.float32)[None], mask, [text], pad, [Word(text, 0, 1)], dropped, True, templates)
