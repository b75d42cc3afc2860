"""The model card of a Bundle: what people are told about it, and what they have to fill in."""

import re

import pytest

from llmrec_ray.bundle import Bundle
from llmrec_ray.config import FusionConfig
from llmrec_ray.data import Dataset
from llmrec_ray.model_card import CardFacts, model_card

HEADINGS = [
    "Model details", "Intended use", "Training data", "How it was chosen", "Validation figures", "Limits", "Licences",
    "Recipe", "Versions",
]


def facts(**fields):
    return CardFacts(**{
        "users": 943, "items": 1682, "cold_items": 33, "train_events": 98114, "parameters": 280_000,
        "has_encoder": True, "has_content": True, "weights": {"neural": 0.8, "item_item": 0.2, "text": 0.0},
        "cold_scale": 0.7,
        "parents": {"dataset": "abc"},
        "metrics": {"epochs": 14, "validation_ndcg@10": {"neural": 0.1234, "fused": 0.15}, "fusion_curve": [[0, 1]]},
        **fields,
    })


def test_a_card_has_the_sections_that_readers_look_for(tiny_recipe):
    assert re.findall(r"^## (.+)$", model_card(tiny_recipe, facts()), re.MULTILINE) == HEADINGS


def test_counts_weights_figures_and_parents_are_told(tiny_recipe):
    card = model_card(tiny_recipe, facts())
    for said in (
        "943 users, 1,682 items, 98,114 train events", "33 items without a train event",
        "`late`, weights neural 0.80, item_item 0.20\n", "Learned parameters, without the encoder: 280,000",
        "| epochs | 14 |", "| validation\\_ndcg@10, fused | 0.15 |", "Made from dataset `abc`", "cold scale of 0.7",
    ):
        assert said in card
    assert "curve" not in card


def test_licences_are_left_to_the_owner_and_the_encoders_is_named(tiny_recipe):
    card = model_card(tiny_recipe, facts())
    assert "- Data: (fill in; nothing here grants the right to pass it on)" in card
    assert f"holds a copy of `{tiny_recipe.encoder.model}` under its own licence: (fill in)" in card


def test_without_texts_the_card_promises_nothing_about_texts(tiny_recipe):
    card = model_card(tiny_recipe, facts(has_encoder=False, has_content=False))
    assert "- Text encoder: none" in card
    assert "have no text or attribute to go by: they are ranked as the least popular ones." in card
    assert "holds a copy of" not in card


SECOND = "learnt from train events that a second model had not seen. The test split"


@pytest.mark.parametrize(("fusion", "said"), [
    ({"mode": "late"}, "Fusion weights were searched there too. The test split"),
    ({"mode": "late", "weights": {"neural": 1.0}}, "Fusion weights follow from the recipe. The test split"),
    ({"mode": "feature"}, "Fusion weights follow from the recipe. The test split"),
    ({"mode": "cascade"}, "Fusion weights follow from the recipe. The test split"),
    ({"mode": "gated"}, f"The gates of the fusion {SECOND}"),
    ({"mode": "learned"}, f"Fusion weights were searched there too. The network that corrects them {SECOND}"),
])
def test_where_the_fusion_comes_from_is_said(tiny_recipe, fusion, said):
    card = model_card(tiny_recipe.model_copy(update={"fusion": FusionConfig(**fusion)}), facts())
    assert said in card
    assert (f"`{fusion['mode']}`, weights neural 0.80" in card) == (fusion["mode"] in {"late", "feature", "learned"})


def test_a_cold_scale_of_0_is_said(tiny_recipe):
    assert "stay in the middle of the catalogue: the cold scale is 0" in model_card(tiny_recipe, facts(cold_scale=0.0))


@pytest.mark.parametrize("user_embedding", [True, False])
def test_whether_people_have_vectors_of_their_own_is_said(tiny_recipe, user_embedding):
    model = tiny_recipe.model.model_copy(update={"user_embedding": user_embedding})
    card = model_card(tiny_recipe.model_copy(update={"model": model}), facts())
    assert ("forgetting a person means training without" in card) == user_embedding
    assert "treat the folder as personal data" in card


def test_a_name_cannot_make_markup(tiny_recipe):
    card = model_card(tiny_recipe.model_copy(update={"name": "<b>|`x`\n# y"}), facts())
    assert card.splitlines()[0] == "# Model card: \\<b\\>\\|\\`x\\` \\# y"


def test_the_recipe_of_a_card_shows_what_differs_from_the_defaults(tiny_recipe):
    card = model_card(tiny_recipe, facts())
    assert "    name: board\n" in card
    assert "      epochs: 8\n" in card
    assert "keep_checkpoints" not in card


def test_a_bundle_carries_its_card(tiny_release):
    bundle, dataset = Bundle.open(tiny_release.bundle.uri), Dataset.open(tiny_release.dataset.uri)
    card = (bundle.artifact.path / "model_card.md").read_text()
    events = len(dataset.histories("train").item_rows)
    assert f"{len(dataset.users)} users, {len(dataset.items)} items, {events} train events" in card
    assert f"Made from dataset `{dataset.id}`" in card
    assert "model_card.md" in bundle.artifact.manifest.files
