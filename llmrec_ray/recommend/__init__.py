"""From a request to an ordered, explained list: plain objects that evaluation, tests and serving all use.

    Resolver   requests with outside ids -> rows, and rows -> responses
    Encoder    texts -> vectors in text space
    Retriever  histories and vectors -> candidates that pass the filters
    Reranker   candidates -> the final order with each signal's share

`Pipeline` runs them one after the other in this process. No Ray, no FastAPI.
"""

from llmrec_ray.recommend.batch import Encoded, Ranked, RequestBatch, Retrieved
from llmrec_ray.recommend.encoder import Encoder
from llmrec_ray.recommend.loading import open_bundle, open_dataset, open_index, signal_names
from llmrec_ray.recommend.messages import (
    Filters,
    PastItem,
    RecommendedItem,
    Request,
    Response,
    SimilarItem,
    SimilarResponse,
)
from llmrec_ray.recommend.pipeline import Pipeline
from llmrec_ray.recommend.reranker import Reranker
from llmrec_ray.recommend.resolver import Resolver
from llmrec_ray.recommend.retriever import Retriever

__all__ = [
    "Encoded",
    "Encoder",
    "Filters",
    "PastItem",
    "Pipeline",
    "Ranked",
    "RecommendedItem",
    "Request",
    "RequestBatch",
    "Reranker",
    "Resolver",
    "Response",
    "Retrieved",
    "Retriever",
    "SimilarItem",
    "SimilarResponse",
    "open_bundle",
    "open_dataset",
    "open_index",
    "signal_names",
]
