"""What the model and train sections refuse, and what they say."""

import pytest

from llmrec_ray.config import load_recipe
from llmrec_ray.errors import ConfigError


@pytest.mark.parametrize(("overrides", "message"), [
    (["model.transformer_layers=3"],
     "model: transformer_layers is about the user tower transformer, but user_tower is decayed_means: leave it out, or "
     "set model.user_tower to transformer"),
    (["model.transformer_heads=4"],
     "model: transformer_heads is about the user tower transformer, but user_tower is decayed_means: leave it out, or "
     "set model.user_tower to transformer"),
    (["model.user_tower=transformer", "model.time_constants=[1]"],
     "model: time_constants is about the user tower decayed_means, but user_tower is transformer: leave it out, or "
     "set model.user_tower to decayed_means"),
    (["model.user_tower=transformer", "model.transformer_heads=3"],
     "model: transformer_heads is 3, which does not divide embedding_size (64): set model.transformer_heads to a "
     "divisor of it"),
    (["model.ncf_head=gmf", "model.ncf_hidden=[8]"],
     "model: ncf_hidden is about a perceptron, which ncf_head gmf has not: leave it out, or set model.ncf_head to "
     "neumf or mlp"),
    (["train.loss=full_softmax", "train.negative_sampling=popularity"],
     "train: full_softmax compares with every item, so negative_sampling popularity would do nothing: leave it out, or "
     "set train.loss to sampled_softmax"),
    (["train.positive_value=3"],
     "train: positive_value marks dislikes, which loss sampled_softmax cannot learn from: set train.loss to bce or "
     "focal, or leave train.positive_value empty"),
    (["train.positive_value=3", "train.loss=bce", "data.interactions.columns.value=null"],
     "recipe: train.positive_value is 3, but the log has no values: name their column in "
     "data.interactions.columns.value, or leave train.positive_value empty"),
    (["train.focal_gamma=1"],
     "train: focal_gamma is about loss focal, but loss is sampled_softmax: leave it out, or set train.loss to focal"),
    (["train.popularity_power=1"],
     "train: popularity_power is about negative_sampling popularity, but negative_sampling is uniform: leave it out, "
     "or set train.negative_sampling to popularity"),
    (["train.mined.pool=9"],
     "train: mined is about negative_sampling mined, but negative_sampling is uniform: leave it out, or set "
     "train.negative_sampling to mined"),
    (["train.augment.crop=0.6", "train.augment.mask=0.6"],
     "train.augment: crop, mask and substitute are shares of all windows, but add up to 1.2: lower train.augment to 1 "
     "together"),
])
def test_settings_that_cannot_work_are_refused_with_the_remedy(overrides, message):
    with pytest.raises(ConfigError) as caught:
        load_recipe("movielens-100k", overrides=overrides)
    assert message in str(caught.value)
