"""What the sections of a recipe are made of: their base, and the types that several use."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

__all__ = [
    "ColdSignalName",
    "Fraction",
    "MergeName",
    "Prompt",
    "Section",
    "SignalName",
    "SourceName",
    "Uri",
    "Weight",
    "has_credentials",
]

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
SignalName = Literal["neural", "ncf", "item_item", "text", "popularity"]
SourceName = Literal["neural", "item_item", "text", "popularity", "cold"]
ColdSignalName = Literal["item_item", "neural", "text"]
MergeName = Literal["all", "reciprocal_rank", "weights"]
Weight = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]


def has_credentials(text: str) -> bool:
    """Whether a URI in it carries a password or a key."""
    return re.search(r"://[^/?#]*:[^/?#]*@|[?&](access_key|secret_key|session_token)=", text) is not None


def _without_credentials(uri: str) -> str:
    if has_credentials(uri):
        raise ValueError(
            "the URI carries credentials, which would be written into every artifact: take them out and give them "
            "through the environment or the machine's role"
        )
    return uri


def _with_one_place(prompt: str) -> str:
    if prompt.count("{text}") != 1:
        raise ValueError(f"the prompt {prompt!r} must have {{text}} exactly once: write it where the text goes")
    return prompt


Uri = Annotated[str, AfterValidator(_without_credentials)]
Prompt = Annotated[str, AfterValidator(_with_one_place)]


class Section(BaseModel):
    """Base of every section: immutable, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
