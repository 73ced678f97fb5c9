"""Ensemble-CBIR's client: find the images of a gallery that show the same thing as the query.

>>> from cbir.client import Client
>>> with Client("localhost:50051") as client:  # doctest: +SKIP
...     for hit in client.search("cat.jpg", limit=5).hits:
...         print(f"{hit.score:.2f}", hit.label, hit.image_id)

Needs gRPC and protobuf, nothing heavier; Pillow is loaded only for PIL images and ``max_side``.
"""

from cbir.client._async_client import AsyncClient
from cbir.client._client import Client
from cbir.client._credentials import Tls, Token
from cbir.client._errors import (
    Cancelled,
    CbirClientError,
    DeadlineExceeded,
    FailedPrecondition,
    FieldViolation,
    InvalidQuery,
    NotFound,
    Overloaded,
    PermissionDenied,
    ServerError,
    TooLarge,
    Unauthenticated,
    Unavailable,
    Unsupported,
)
from cbir.client._gallery import Facet, Facets, GalleryImage, ImagePage
from cbir.client._options import Compression, Keepalive, Limits, Proxy
from cbir.client._queries import Crop, Embedding, Fusion, ImageId, Query, SearchOptions, Text
from cbir.client._results import (
    Box,
    Hit,
    ImageBytes,
    IndexInfo,
    LabelPrediction,
    MemberInfo,
    Reloaded,
    Timings,
    Vote,
)
from cbir.client._retry import Retry
from cbir.client._search_result import SearchResult

__all__ = [
    "AsyncClient",
    "Box",
    "Cancelled",
    "CbirClientError",
    "Client",
    "Compression",
    "Crop",
    "DeadlineExceeded",
    "Embedding",
    "Facet",
    "Facets",
    "FailedPrecondition",
    "FieldViolation",
    "Fusion",
    "GalleryImage",
    "Hit",
    "ImageBytes",
    "ImageId",
    "ImagePage",
    "IndexInfo",
    "InvalidQuery",
    "Keepalive",
    "LabelPrediction",
    "Limits",
    "MemberInfo",
    "NotFound",
    "Overloaded",
    "PermissionDenied",
    "Proxy",
    "Query",
    "Reloaded",
    "Retry",
    "SearchOptions",
    "SearchResult",
    "ServerError",
    "Text",
    "Timings",
    "Tls",
    "Token",
    "TooLarge",
    "Unauthenticated",
    "Unavailable",
    "Unsupported",
    "Vote",
]
