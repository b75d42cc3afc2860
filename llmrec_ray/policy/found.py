"""What a search without training found: a policy to be served, the overrides that say the same, and what was tried.

    <workspace>/policies/<name>.json   a policy for one Bundle, which `llmrec publish --policy` takes
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from llmrec_ray.artifact import Workspace
from llmrec_ray.bundle import Bundle
from llmrec_ray.errors import ArtifactMismatchError, ArtifactNotFoundError, CorruptArtifactError
from llmrec_ray.signals import FusionPolicy
from llmrec_ray.storage import read_json, write_json_atomic

__all__ = ["KeptPolicy", "PolicyFound", "keep_policy", "load_policy"]

DIGEST = 16
SHOWN = 8


@dataclass(frozen=True)
class PolicyFound:
    """What the search without retraining found on a Bundle's stored scores, validation split.

    It began with settings that were there: in a campaign the winner's, else those of the recipe that was given.
    overrides: dotted overrides of these, such as "fusion.mode=late". value: the metric with them, base: before. table:
    one row per setting tried: its dotted keys, value, candidates, and cold_value where items that nobody had met were
    judged too. curve: [neural share, metric]. policy: all of it, to be served with the Bundle. left_out: key, or
    key=value -> why it was not searched.
    """

    overrides: list[str]
    value: float
    base: float
    table: list[dict[str, Any]]
    curve: list[list[float]]
    weights: dict[str, float]
    seconds: float
    policy: FusionPolicy
    metric: str = "ndcg@10"
    left_out: Mapping[str, str] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        """For programs."""
        return {
            "metric": self.metric, "value": self.value, "base": self.base, "overrides": self.overrides,
            "weights": self.weights, "settings_tried": len(self.table), "seconds": self.seconds,
            "left_out": {**self.left_out},
        }

    def text(self) -> str:
        """For people: the best settings that were tried, what was chosen, and what was left out."""
        keys = list(dict.fromkeys(key for row in self.table for key in row if key not in {"value", "candidates"}))
        rows = sorted(self.table, key=lambda row: (-row["value"], row["candidates"]))[:SHOWN]
        tried = f"{len(self.table)} setting{'s' if len(self.table) > 1 else ''}"
        shown = f"The best {SHOWN} of {tried}" if len(self.table) > SHOWN else tried
        lines = [f"{shown} tried on stored scores in {self.seconds:.1f} s, by what the served pipeline gives:"]
        lines.append(_line([f"validation {self.metric}", "candidates", *keys]))
        lines += [_line([f"{row['value']:.4f}", f"{row['candidates']:.0f}", *(_shown(row, k) for k in keys)])
                  for row in rows]
        weights = ", ".join(f"{name} {weight:.2f}" for name, weight in self.weights.items())
        chosen = ", ".join(self.overrides) or "the settings that there were"
        lines.append(f"Weights of late fusion: {weights}")
        lines.append(f"Chosen: {chosen}, {self.metric} {self.value:.4f}; before this search it was {self.base:.4f}")
        return "\n".join([*lines, *(f"Not searched: {key}, since {why}" for key, why in self.left_out.items())])


class KeptPolicy(BaseModel):
    """A policy on disk: for which Bundle it was found, and what it gave there."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
    bundle: str
    """Id of the Bundle."""
    policy: FusionPolicy
    """What to serve."""
    overrides: list[str]
    """What of it differs from the recipe that was given, for the next training."""
    metric: str
    """What was maximised on the validation split."""
    value: float
    """What the policy gives."""
    base: float
    """What that recipe gives."""


def keep_policy(workspace: Workspace, bundle: Bundle, found: PolicyFound) -> str:
    """Write what was found into the workspace and return its URI; the same policy has the same name."""
    kept = KeptPolicy(
        bundle=bundle.id, policy=found.policy, overrides=found.overrides, metric=found.metric, value=found.value,
        base=found.base,
    )
    content = json.dumps([bundle.id, found.policy.model_dump(mode="json")], sort_keys=True)
    uri = f"{workspace.root('policy')}/policy-{hashlib.sha256(content.encode()).hexdigest()[:DIGEST]}.json"
    write_json_atomic(uri, kept.model_dump(mode="json"))
    return uri


def load_policy(uri: str, bundle: Bundle) -> FusionPolicy:
    """The policy of a file that `keep_policy` wrote, checked against the Bundle that it is to be served with.

    Raises ArtifactNotFoundError, CorruptArtifactError, and ArtifactMismatchError for a policy of another Bundle.
    """
    try:
        kept = KeptPolicy.model_validate(read_json(uri))
    except FileNotFoundError:
        raise ArtifactNotFoundError(
            f"There is no policy at {uri}: run `llmrec tune --policy-only` and give the file that it names."
        ) from None
    except ValidationError as error:
        detail = error.errors()[0]
        where = ".".join(str(part) for part in detail["loc"])
        raise CorruptArtifactError(
            f"{uri} is not a policy ({where}: {detail['msg']}): run `llmrec tune --policy-only` again."
        ) from None
    if kept.bundle != bundle.id:
        raise ArtifactMismatchError(
            f"The policy {uri} was found for bundle {kept.bundle}, but {bundle.uri} is bundle {bundle.id}: name that "
            "bundle with --bundle, or run `llmrec tune --policy-only` on this one."
        )
    _check_signals(uri, kept.policy, bundle)
    return kept.policy


def _check_signals(uri: str, policy: FusionPolicy, bundle: Bundle) -> None:
    weighed = {*policy.weights, *policy.newcomer_weights, *policy.candidates} - {"cold"}
    if missing := sorted(weighed - {*bundle.signal_names}):
        raise ArtifactMismatchError(
            f"The policy {uri} weighs {', '.join(missing)}, but the bundle {bundle.uri} has only "
            f"{', '.join(sorted(bundle.signal_names))}: leave them out of the file, or train with them."
        )


def _line(cells: list[str]) -> str:
    return "  ".join(f"{cell:>16}" for cell in cells)


def _shown(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    return "" if key not in row else f"{value:.4g}" if isinstance(value, float) else str(value)
