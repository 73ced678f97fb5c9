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
from cbir.client._queries import Crop, Embedding, Fusion, ImageId, Query, SearchOptions, Text
from cbir.client._results import (
    Box,
    Hit,
    ImageBytes,
    IndexInfo,
    LabelPrediction,
    MemberInfo,
    Reloaded,
    SearchResult,
    Timings,
    Vote,
)

__all__ = [
    "AsyncClient",
    "Box",
    "Cancelled",
    "CbirClientError",
    "Client",
    "Crop",
    "DeadlineExceeded",
    "Embedding",
    "FailedPrecondition",
    "FieldViolation",
    "Fusion",
    "Hit",
    "ImageBytes",
    "ImageId",
    "IndexInfo",
    "InvalidQuery",
    "LabelPrediction",
    "MemberInfo",
    "NotFound",
    "Overloaded",
    "PermissionDenied",
    "Query",
    "Reloaded",
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
