"""A Bundle: everything needed to score users and items, in one immutable folder without pickle.

    recipe.json  users.parquet  items.parquet  titles.parquet  policy.json
    model.safetensors    weights of the towers and the NCF head
    context.json         encoders of the user and item columns that the model reads, when it reads any
    known_items.parquet  the items whose content speaks for items that come later, with their attributes
    arrays.safetensors   item vectors, text vectors and their centre, map of profiles, state of the fitted signals
    encoder/             weights, tokenizer and config of the text encoder, when items have texts; with
                         encoder.precision int8 also the ONNX file that computes so
    model_card.md        for people: what it is, from what, how it was chosen, what it is not for

Shapes: B users, N items, C candidates, d embedding size, T text vector size. Knows nothing about Ray or HTTP.
"""

from llmrec_ray.bundle.files import KNOWN_ITEMS
from llmrec_ray.bundle.opened import Bundle, BundleTexts, read_signal_names
from llmrec_ray.bundle.parts import BundleParts, save_bundle
from llmrec_ray.bundle.scorer import Scorer

__all__ = ["KNOWN_ITEMS", "Bundle", "BundleParts", "BundleTexts", "Scorer", "read_signal_names", "save_bundle"]
