"""What training knows about a Bundle -> a model card (Mitchell et al. 2019) in Markdown.

The card says what was made, from what, how it was chosen and what it should not be used for. What nobody can know
here, the licence of the data and who may be harmed where it is used, it asks the owner to fill in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from llmrec_ray import __version__
from llmrec_ray.artifact import library_versions
from llmrec_ray.config import FusionConfig, Recipe

__all__ = ["CardFacts", "model_card"]


@dataclass(frozen=True)
class CardFacts:
    """What a card tells of, besides the recipe.

    users, items, cold_items, train_events, parameters: counts; cold items are those without a train event.
    has_content: items have texts or attributes. weights: of the late fusion, by signal. cold_scale: of cold items.
    parents: ids of the artifacts that it was made from. metrics: as in the manifest; only numbers are shown, those
    inside of others by their path.
    """

    users: int
    items: int
    cold_items: int
    train_events: int
    parameters: int
    has_encoder: bool
    has_content: bool
    weights: Mapping[str, float]
    cold_scale: float
    parents: Mapping[str, str]
    metrics: Mapping[str, Any]


def model_card(recipe: Recipe, facts: CardFacts) -> str:
    """The card as Markdown."""
    return "\n\n".join([
        f"# Model card: {_plain(recipe.name)}",
        _details(recipe, facts),
        INTENDED_USE,
        _training_data(recipe, facts),
        _selection(recipe, facts),
        _figures(facts),
        _limits(recipe, facts),
        _licences(recipe, facts),
        _settings(recipe),
        _versions(),
    ]) + "\n"


CROSS_FITTED = "learnt from train events that a second model had not seen."
INTENDED_USE = """## Intended use

Ranking the items of one catalogue for the people who use it: known people by what they did, new people by a few items,
a profile or a query. It is meant to be served by `llmrec serve` together with the Index that was built from it.

Not meant for: decisions about people (credit, work, housing, health), guessing traits of people from what they
consume, or catalogues and populations other than the one below without a new evaluation."""


def _details(recipe: Recipe, facts: CardFacts) -> str:
    encoder = f"`{_code(recipe.encoder.model)}`, {recipe.encoder.tuning}" if facts.has_encoder else "none"
    return (
        "## Model details\n\n"
        "A recommender that fuses a text encoder, neural collaborative filtering and item-item co-occurrence.\n\n"
        f"- Fusion: `{recipe.fusion.mode}`{_weights(recipe.fusion, facts)}\n"
        f"- Item vectors: `{recipe.fusion.item_vector}`, {recipe.model.embedding_size} wide\n"
        f"- Text encoder: {encoder}\n"
        f"- Learned parameters, without the encoder: {facts.parameters:,}\n"
        f"- Seed: {recipe.seed}"
    )


def _weights(fusion: FusionConfig, facts: CardFacts) -> str:
    """Of the modes that rank by them."""
    if fusion.mode in {"gated", "cascade"}:
        return ""
    return ", weights " + ", ".join(f"{name} {weight:.2f}" for name, weight in facts.weights.items() if weight)


def _training_data(recipe: Recipe, facts: CardFacts) -> str:
    made_from = "\n".join(f"- Made from {kind} `{_code(parent)}`" for kind, parent in facts.parents.items())
    source = f"- Public data set: {recipe.data.fetch}\n" if recipe.data.fetch else ""
    return (
        f"## Training data\n\n{source}"
        f"- {facts.users:,} users, {facts.items:,} items, {facts.train_events:,} train events\n"
        f"- {facts.cold_items:,} items without a train event\n"
        f"- Split: `{recipe.data.split}`; the model and its signals learn from train events only\n"
        f"{made_from}"
    )


def _selection(recipe: Recipe, facts: CardFacts) -> str:
    return (
        "## How it was chosen\n\n"
        f"The epoch with the best validation NDCG@10 is kept. {_fitted(recipe.fusion)} The test split had no say; "
        "`llmrec evaluate` reads it and logs every look. Which other recipes were tried is not known here: say so "
        "beside any figure that you publish."
    )


def _fitted(fusion: FusionConfig) -> str:
    """Where the numbers of the fusion come from."""
    if fusion.mode == "gated":
        return f"The gates of the fusion {CROSS_FITTED}"
    if fusion.weights is not None or fusion.mode in {"feature", "cascade"}:
        weights = "Fusion weights follow from the recipe."
    else:
        weights = "Fusion weights were searched there too."
    return f"{weights} The network that corrects them {CROSS_FITTED}" if fusion.mode == "learned" else weights


def _figures(facts: CardFacts) -> str:
    rows = "\n".join(f"| {_plain(name)} | {_figure(value)} |" for name, value in _numbers(facts.metrics))
    return (
        "## Validation figures\n\n"
        f"| figure | value |\n|---|---|\n{rows}\n\n"
        "These chose the model, so they flatter it. What it is worth beside baselines, with intervals, by segments and "
        "on test data, `llmrec evaluate` tells in its `report.html`."
    )


def _limits(recipe: Recipe, facts: CardFacts) -> str:
    known = (
        "It holds a learned vector per known user: forgetting a person means training without his or her events."
        if recipe.model.user_embedding else "It holds no vector per user."
    )
    return (
        "## Limits\n\n"
        "- It learns from what was shown and chosen, and repeats the favour that popular items were given: look at "
        "coverage, Gini and the tail segment of the report.\n"
        f"- {_cold_limit(facts)}\n"
        f"- {known} Ids of users are in `users.parquet`: treat the folder as personal data.\n"
        "- Texts of items and queries bring the prejudices of the encoder's own training data.\n"
        "- It knows nothing that happened after its data; measure again when habits or the catalogue change."
    )


def _cold_limit(facts: CardFacts) -> str:
    if not facts.has_content:
        nothing = "Items without a train event have no text or attribute to go by"
        return f"{nothing}: they are ranked as the least popular ones."
    if not facts.cold_scale:
        return "Items without a train event stay in the middle of the catalogue: the cold scale is 0."
    return (
        f"Items without a train event are scored from texts and attributes, with a cold scale of {facts.cold_scale:g}; "
        "what lifting them costs known items has to be measured."
    )


def _licences(recipe: Recipe, facts: CardFacts) -> str:
    encoder = _code(recipe.encoder.model)
    weights = f"- Weights: `encoder/` holds a copy of `{encoder}` under its own licence: (fill in)\n"
    return (
        "## Licences\n\n"
        f"- Data: (fill in; nothing here grants the right to pass it on)\n{weights if facts.has_encoder else ''}"
        "- This program: Apache-2.0; it makes no claim on what was trained with it"
    )


def _settings(recipe: Recipe) -> str:
    changed = yaml.safe_dump(
        recipe.model_dump(mode="json", exclude_defaults=True), sort_keys=False, allow_unicode=True
    )
    indented = "".join(f"    {line}\n" for line in changed.splitlines())
    return (
        "## Recipe\n\nSettings that differ from the defaults of this version; `recipe.json` has all.\n\n"
        f"{indented.rstrip()}"
    )


def _versions() -> str:
    versions = {"llmrec_ray": __version__, **library_versions()}
    return "## Versions\n\n" + "\n".join(f"- {name} {version}" for name, version in versions.items())


def _numbers(metrics: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{name}, ")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}{name}", value


def _figure(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _plain(text: str) -> str:
    """On one line, without a meaning in Markdown or HTML."""
    escaped = "".join(f"\\{letter}" if letter in r"\`*_[]<>|#&" else letter for letter in text)
    return " ".join(escaped.split())


def _code(text: str) -> str:
    """On one line within backticks."""
    return " ".join(text.replace("`", "'").split())
