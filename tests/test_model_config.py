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
])
def test_settings_that_cannot_work_are_refused_with_the_remedy(overrides, message):
    with pytest.raises(ConfigError) as caught:
        load_recipe("movielens-100k", overrides=overrides)
    assert message in str(caught.value)
