"""Recipes and their settings -> text as a person would write it, in YAML or in words.

A recipe is written with what differs from the defaults only, and loads again as an equal one. Does not know how
campaigns went.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from llmrec_ray.config import Recipe, TuneConfig

__all__ = ["duration_text", "finalists_text", "recipe_yaml", "scheduler_text", "setting_of", "setting_text"]

LINE_WIDTH = 100


def recipe_yaml(recipe: Recipe, comments: Sequence[str] = ()) -> str:
    """The recipe's YAML; each comment is one line above it, whatever characters it holds."""
    tree = recipe.model_dump(mode="json", exclude_defaults=True)
    if tree.get("workspace") == f"runs/{recipe.name}":
        del tree["workspace"]
    head = "".join(f"# {' '.join(comment.splitlines())}".rstrip() + "\n" for comment in comments)
    sections = [_dump({key: value}) for key, value in tree.items()]
    return "\n".join([*([head] if head else []), *sections])


def setting_of(recipe: Recipe, key: str) -> Any:
    """What the recipe holds at a dotted key; None below a section that is empty."""
    node: Any = recipe.model_dump(mode="json")
    for part in key.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node


def setting_text(value: Any) -> str:
    """One value as the recipe would write it, on one line: `0.00312`, `late`, `{neural: 0.6, text: 0.4}`."""
    if isinstance(value, float):
        return f"{value:.4g}"
    text = yaml.safe_dump(value, default_flow_style=True, width=float("inf"), allow_unicode=True, sort_keys=False)
    return " ".join(text.removesuffix("\n").removesuffix("\n...").split())


class _Dumper(yaml.SafeDumper):
    """Lists of plain values on one line, as people write them."""

    def represent_sequence(self, tag: str, sequence: Any, flow_style: bool | None = None) -> yaml.SequenceNode:
        """Only lists of sections get a line per entry."""
        plain = not any(isinstance(entry, (Mapping, list)) for entry in sequence)
        return super().represent_sequence(tag, sequence, flow_style=plain or flow_style)


def _dump(tree: Mapping[str, Any]) -> str:
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=LINE_WIDTH)

def finalists_text(config: TuneConfig) -> str:
    """`3, seeds 11, 12`, or `none`."""
    seeds = ", ".join(map(str, config.finalist_seeds))
    return f"{config.finalists}, seeds {seeds}" if seeds else "none"


def scheduler_text(config: TuneConfig) -> str:
    """What ends trials early, or changes them."""
    if config.scheduler == "asha":
        return f"ASHA: from epoch {config.grace_epochs}, one in {config.reduction_factor} goes on"
    rules = config.pbt_rules
    return "nothing" if config.scheduler == "none" else (
        f"nothing; PBT: every {rules.every_epochs} epochs the worst {rules.quantile:.0%} take over from the best"
    )


def duration_text(seconds: float) -> str:
    """`3.4 s`, `12 min 5 s`, `2 h 7 min`."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
