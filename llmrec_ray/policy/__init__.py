"""What is chosen on stored scores of the validation split, without training: weights, candidate counts, and the rest.

One owner for the whole project: training, tuning and `publish` take from here what they serve.
"""

from llmrec_ray.policy.components import Components, component_scores, validation_users
from llmrec_ray.policy.found import KeptPolicy, PolicyFound, keep_policy, load_policy
from llmrec_ray.policy.search import check_bundle, choose_mode, mode_values, search_policy
from llmrec_ray.policy.trained import (
    ValidatedFusion,
    choose_weights,
    fuse_on_validation,
    make_policy,
    newcomer_weights,
    policy_of,
)
from llmrec_ray.policy.weights import WeightSearch, search_weights, weight_curve

__all__ = [
    "Components",
    "KeptPolicy",
    "PolicyFound",
    "ValidatedFusion",
    "WeightSearch",
    "check_bundle",
    "choose_mode",
    "choose_weights",
    "component_scores",
    "fuse_on_validation",
    "keep_policy",
    "load_policy",
    "make_policy",
    "mode_values",
    "newcomer_weights",
    "policy_of",
    "search_policy",
    "search_weights",
    "validation_users",
    "weight_curve",
]
