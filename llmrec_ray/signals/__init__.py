"""From users' pasts to one named raw score per item: traditional signals, and baselines ranked alone.

Numpy and SciPy only; no Ray, no torch. How signals become one score is `late`, `gated` and `modes`.
"""

from llmrec_ray.signals.base import Signal
from llmrec_ray.signals.bpr import Bpr
from llmrec_ray.signals.cold import ColdItems, ItemKernel, Propagation
from llmrec_ray.signals.ease import Ease
from llmrec_ray.signals.fusion import CandidateLists, Fusion, Given, calibrated
from llmrec_ray.signals.gated import GatedFusion
from llmrec_ray.signals.ials import Ials
from llmrec_ray.signals.item_knn import ItemKnn
from llmrec_ray.signals.late import Calibration, FusionPolicy, fuse, recipe_policy
from llmrec_ray.signals.markov import MarkovChain
from llmrec_ray.signals.modes import CascadeFusion, CorrectedFusion, Correction, WeightedFusion, load_fusion
from llmrec_ray.signals.new_items import GrownItemItem, NewItems
from llmrec_ray.signals.popularity import Popularity
from llmrec_ray.signals.profiles import MIN_PROFILES, ProfileMap
from llmrec_ray.signals.recent_popularity import RecentPopularity
from llmrec_ray.signals.text import TEXT_RECENCY, TextCosine, center, to_text_space
from llmrec_ray.signals.tfidf import TfidfContent

__all__ = [
    "MIN_PROFILES",
    "TEXT_RECENCY",
    "Bpr",
    "Calibration",
    "CandidateLists",
    "CascadeFusion",
    "ColdItems",
    "CorrectedFusion",
    "Correction",
    "Ease",
    "Fusion",
    "FusionPolicy",
    "GatedFusion",
    "Given",
    "GrownItemItem",
    "Ials",
    "ItemKernel",
    "ItemKnn",
    "MarkovChain",
    "NewItems",
    "Popularity",
    "ProfileMap",
    "Propagation",
    "RecentPopularity",
    "Signal",
    "TextCosine",
    "TfidfContent",
    "WeightedFusion",
    "calibrated",
    "center",
    "fuse",
    "load_fusion",
    "recipe_policy",
    "to_text_space",
]
