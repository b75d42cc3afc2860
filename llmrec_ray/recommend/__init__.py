"""From a request to an ordered, explained list: plain objects that evaluation, tests and serving all use.

    Resolver   requests with outside ids -> rows, and rows -> responses
    Encoder    texts -> vectors in text space
    Retriever  histories and vectors -> candidates that pass the filters
    Reranker   candidates -> the final order with each signal's share

`Pipeline` runs them one after the other in this process. No Ray, no FastAPI.
"""

from llmrec_ray.recommend.batch import Encoded, Ranked, RequestBatch, Retrieved
from llmrec_ray.recommend.catalogue import Catalogue
from llmrec_ray.recommend.encoder import Encoder
from llmrec_ray.recommend.loading import open_bundle, open_dataset, open_index
from llmrec_ray.recommend.messages import (
    About,
    Facet,
    FacetValue,
    Filters,
    NamedItem,
    PastItem,
    Range,
    RecommendedItem,
    Request,
    Response,
    SimilarItem,
    SimilarResponse,
    UserHistory,
    UserSummary,
)
from llmrec_ray.recommend.order import retriever_order
from llmrec_ray.recommend.pipeline import Pipeline
from llmrec_ray.recommend.reranker import Reranker
from llmrec_ray.recommend.resolver import Resolver
from llmrec_ray.recommend.retriever import Retriever
from llmrec_ray.recommend.snapshot import Snapshot

__all__ = [
    "About",
    "Catalogue",
    "Encoded",
    "Encoder",
    "Facet",
    "FacetValue",
    "Filters",
    "NamedItem",
    "PastItem",
    "Pipeline",
    "Range",
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
    "Snapshot",
    "UserHistory",
    "UserSummary",
    "open_bundle",
    "open_dataset",
    "open_index",
    "retriever_order",
]
