from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.rpc import status_pb2 as _status_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Fusion(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FUSION_UNSPECIFIED: _ClassVar[Fusion]
    FUSION_WEIGHTED_VOTE: _ClassVar[Fusion]
    FUSION_RECIPROCAL_RANK: _ClassVar[Fusion]

class Crop(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CROP_UNSPECIFIED: _ClassVar[Crop]
    CROP_NONE: _ClassVar[Crop]
    CROP_BORDER: _ClassVar[Crop]
    CROP_CONTENT: _ClassVar[Crop]
FUSION_UNSPECIFIED: Fusion
FUSION_WEIGHTED_VOTE: Fusion
FUSION_RECIPROCAL_RANK: Fusion
CROP_UNSPECIFIED: Crop
CROP_NONE: Crop
CROP_BORDER: Crop
CROP_CONTENT: Crop

class Vector(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, values: _Optional[_Iterable[float]] = ...) -> None: ...

class EnsembleEmbedding(_message.Message):
    __slots__ = ("vectors",)
    class VectorsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Vector
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Vector, _Mapping]] = ...) -> None: ...
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    vectors: _containers.MessageMap[str, Vector]
    def __init__(self, vectors: _Optional[_Mapping[str, Vector]] = ...) -> None: ...

class Query(_message.Message):
    __slots__ = ("image", "image_id", "embedding", "text", "positive_ids", "negative_ids")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    IMAGE_ID_FIELD_NUMBER: _ClassVar[int]
    EMBEDDING_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    POSITIVE_IDS_FIELD_NUMBER: _ClassVar[int]
    NEGATIVE_IDS_FIELD_NUMBER: _ClassVar[int]
    image: bytes
    image_id: str
    embedding: EnsembleEmbedding
    text: str
    positive_ids: _containers.RepeatedScalarFieldContainer[str]
    negative_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, image: _Optional[bytes] = ..., image_id: _Optional[str] = ..., embedding: _Optional[_Union[EnsembleEmbedding, _Mapping]] = ..., text: _Optional[str] = ..., positive_ids: _Optional[_Iterable[str]] = ..., negative_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class StringList(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, values: _Optional[_Iterable[str]] = ...) -> None: ...

class Filter(_message.Message):
    __slots__ = ("labels", "exclude_labels", "metadata")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: StringList
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[StringList, _Mapping]] = ...) -> None: ...
    LABELS_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_LABELS_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    labels: _containers.RepeatedScalarFieldContainer[str]
    exclude_labels: _containers.RepeatedScalarFieldContainer[str]
    metadata: _containers.MessageMap[str, StringList]
    def __init__(self, labels: _Optional[_Iterable[str]] = ..., exclude_labels: _Optional[_Iterable[str]] = ..., metadata: _Optional[_Mapping[str, StringList]] = ...) -> None: ...

class SearchOptions(_message.Message):
    __slots__ = ("limit", "min_score", "fusion", "weights", "filter", "exclude_query", "crop", "mark_near_duplicates")
    class WeightsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    MIN_SCORE_FIELD_NUMBER: _ClassVar[int]
    FUSION_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_QUERY_FIELD_NUMBER: _ClassVar[int]
    CROP_FIELD_NUMBER: _ClassVar[int]
    MARK_NEAR_DUPLICATES_FIELD_NUMBER: _ClassVar[int]
    limit: int
    min_score: float
    fusion: Fusion
    weights: _containers.ScalarMap[str, float]
    filter: Filter
    exclude_query: bool
    crop: Crop
    mark_near_duplicates: bool
    def __init__(self, limit: _Optional[int] = ..., min_score: _Optional[float] = ..., fusion: _Optional[_Union[Fusion, str]] = ..., weights: _Optional[_Mapping[str, float]] = ..., filter: _Optional[_Union[Filter, _Mapping]] = ..., exclude_query: bool = ..., crop: _Optional[_Union[Crop, str]] = ..., mark_near_duplicates: bool = ...) -> None: ...

class SearchRequest(_message.Message):
    __slots__ = ("query", "options")
    QUERY_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    query: Query
    options: SearchOptions
    def __init__(self, query: _Optional[_Union[Query, _Mapping]] = ..., options: _Optional[_Union[SearchOptions, _Mapping]] = ...) -> None: ...

class Vote(_message.Message):
    __slots__ = ("member", "rank", "similarity", "contribution")
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    SIMILARITY_FIELD_NUMBER: _ClassVar[int]
    CONTRIBUTION_FIELD_NUMBER: _ClassVar[int]
    member: str
    rank: int
    similarity: float
    contribution: float
    def __init__(self, member: _Optional[str] = ..., rank: _Optional[int] = ..., similarity: _Optional[float] = ..., contribution: _Optional[float] = ...) -> None: ...

class Hit(_message.Message):
    __slots__ = ("image_id", "uri", "label", "score", "fused_score", "label_contribution", "votes", "metadata", "near_duplicate")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    IMAGE_ID_FIELD_NUMBER: _ClassVar[int]
    URI_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    FUSED_SCORE_FIELD_NUMBER: _ClassVar[int]
    LABEL_CONTRIBUTION_FIELD_NUMBER: _ClassVar[int]
    VOTES_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    NEAR_DUPLICATE_FIELD_NUMBER: _ClassVar[int]
    image_id: str
    uri: str
    label: str
    score: float
    fused_score: float
    label_contribution: float
    votes: _containers.RepeatedCompositeFieldContainer[Vote]
    metadata: _containers.ScalarMap[str, str]
    near_duplicate: bool
    def __init__(self, image_id: _Optional[str] = ..., uri: _Optional[str] = ..., label: _Optional[str] = ..., score: _Optional[float] = ..., fused_score: _Optional[float] = ..., label_contribution: _Optional[float] = ..., votes: _Optional[_Iterable[_Union[Vote, _Mapping]]] = ..., metadata: _Optional[_Mapping[str, str]] = ..., near_duplicate: bool = ...) -> None: ...

class LabelPrediction(_message.Message):
    __slots__ = ("label", "probability")
    LABEL_FIELD_NUMBER: _ClassVar[int]
    PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    label: str
    probability: float
    def __init__(self, label: _Optional[str] = ..., probability: _Optional[float] = ...) -> None: ...

class Box(_message.Message):
    __slots__ = ("left", "top", "right", "bottom")
    LEFT_FIELD_NUMBER: _ClassVar[int]
    TOP_FIELD_NUMBER: _ClassVar[int]
    RIGHT_FIELD_NUMBER: _ClassVar[int]
    BOTTOM_FIELD_NUMBER: _ClassVar[int]
    left: int
    top: int
    right: int
    bottom: int
    def __init__(self, left: _Optional[int] = ..., top: _Optional[int] = ..., right: _Optional[int] = ..., bottom: _Optional[int] = ...) -> None: ...

class Timings(_message.Message):
    __slots__ = ("decode", "queue", "embed", "search", "fuse")
    DECODE_FIELD_NUMBER: _ClassVar[int]
    QUEUE_FIELD_NUMBER: _ClassVar[int]
    EMBED_FIELD_NUMBER: _ClassVar[int]
    SEARCH_FIELD_NUMBER: _ClassVar[int]
    FUSE_FIELD_NUMBER: _ClassVar[int]
    decode: _duration_pb2.Duration
    queue: _duration_pb2.Duration
    embed: _duration_pb2.Duration
    search: _duration_pb2.Duration
    fuse: _duration_pb2.Duration
    def __init__(self, decode: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., queue: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., embed: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., search: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., fuse: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class SearchResponse(_message.Message):
    __slots__ = ("hits", "labels", "crop", "index_version", "timings")
    HITS_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    CROP_FIELD_NUMBER: _ClassVar[int]
    INDEX_VERSION_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    hits: _containers.RepeatedCompositeFieldContainer[Hit]
    labels: _containers.RepeatedCompositeFieldContainer[LabelPrediction]
    crop: Box
    index_version: str
    timings: Timings
    def __init__(self, hits: _Optional[_Iterable[_Union[Hit, _Mapping]]] = ..., labels: _Optional[_Iterable[_Union[LabelPrediction, _Mapping]]] = ..., crop: _Optional[_Union[Box, _Mapping]] = ..., index_version: _Optional[str] = ..., timings: _Optional[_Union[Timings, _Mapping]] = ...) -> None: ...

class SearchStreamRequest(_message.Message):
    __slots__ = ("request_id", "request")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    request: SearchRequest
    def __init__(self, request_id: _Optional[str] = ..., request: _Optional[_Union[SearchRequest, _Mapping]] = ...) -> None: ...

class SearchStreamResponse(_message.Message):
    __slots__ = ("request_id", "response", "error")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    response: SearchResponse
    error: _status_pb2.Status
    def __init__(self, request_id: _Optional[str] = ..., response: _Optional[_Union[SearchResponse, _Mapping]] = ..., error: _Optional[_Union[_status_pb2.Status, _Mapping]] = ...) -> None: ...

class GetIndexInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class MemberInfo(_message.Message):
    __slots__ = ("name", "backend", "model", "fingerprint", "weight", "embedding_dim", "dim", "metric", "runtime", "text", "precision", "threads")
    NAME_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    EMBEDDING_DIM_FIELD_NUMBER: _ClassVar[int]
    DIM_FIELD_NUMBER: _ClassVar[int]
    METRIC_FIELD_NUMBER: _ClassVar[int]
    RUNTIME_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    THREADS_FIELD_NUMBER: _ClassVar[int]
    name: str
    backend: str
    model: str
    fingerprint: str
    weight: float
    embedding_dim: int
    dim: int
    metric: str
    runtime: str
    text: bool
    precision: str
    threads: int
    def __init__(self, name: _Optional[str] = ..., backend: _Optional[str] = ..., model: _Optional[str] = ..., fingerprint: _Optional[str] = ..., weight: _Optional[float] = ..., embedding_dim: _Optional[int] = ..., dim: _Optional[int] = ..., metric: _Optional[str] = ..., runtime: _Optional[str] = ..., text: bool = ..., precision: _Optional[str] = ..., threads: _Optional[int] = ...) -> None: ...

class GetIndexInfoResponse(_message.Message):
    __slots__ = ("version", "created_at", "images", "labels", "ensemble", "members", "crop", "max_limit", "max_image_bytes", "server_version", "index", "query_side")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    ENSEMBLE_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    CROP_FIELD_NUMBER: _ClassVar[int]
    MAX_LIMIT_FIELD_NUMBER: _ClassVar[int]
    MAX_IMAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SERVER_VERSION_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    QUERY_SIDE_FIELD_NUMBER: _ClassVar[int]
    version: str
    created_at: _timestamp_pb2.Timestamp
    images: int
    labels: int
    ensemble: str
    members: _containers.RepeatedCompositeFieldContainer[MemberInfo]
    crop: Crop
    max_limit: int
    max_image_bytes: int
    server_version: str
    index: str
    query_side: int
    def __init__(self, version: _Optional[str] = ..., created_at: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., images: _Optional[int] = ..., labels: _Optional[int] = ..., ensemble: _Optional[str] = ..., members: _Optional[_Iterable[_Union[MemberInfo, _Mapping]]] = ..., crop: _Optional[_Union[Crop, str]] = ..., max_limit: _Optional[int] = ..., max_image_bytes: _Optional[int] = ..., server_version: _Optional[str] = ..., index: _Optional[str] = ..., query_side: _Optional[int] = ...) -> None: ...

class GetImageRequest(_message.Message):
    __slots__ = ("image_id", "thumbnail")
    IMAGE_ID_FIELD_NUMBER: _ClassVar[int]
    THUMBNAIL_FIELD_NUMBER: _ClassVar[int]
    image_id: str
    thumbnail: int
    def __init__(self, image_id: _Optional[str] = ..., thumbnail: _Optional[int] = ...) -> None: ...

class GetImageResponse(_message.Message):
    __slots__ = ("chunk", "media_type", "total_bytes")
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    MEDIA_TYPE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    chunk: bytes
    media_type: str
    total_bytes: int
    def __init__(self, chunk: _Optional[bytes] = ..., media_type: _Optional[str] = ..., total_bytes: _Optional[int] = ...) -> None: ...

class ListImagesRequest(_message.Message):
    __slots__ = ("filter", "id_prefix", "page_size", "page_token")
    FILTER_FIELD_NUMBER: _ClassVar[int]
    ID_PREFIX_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    filter: Filter
    id_prefix: str
    page_size: int
    page_token: str
    def __init__(self, filter: _Optional[_Union[Filter, _Mapping]] = ..., id_prefix: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class GalleryImage(_message.Message):
    __slots__ = ("image_id", "label", "width", "height", "metadata")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    IMAGE_ID_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    image_id: str
    label: str
    width: int
    height: int
    metadata: _containers.ScalarMap[str, str]
    def __init__(self, image_id: _Optional[str] = ..., label: _Optional[str] = ..., width: _Optional[int] = ..., height: _Optional[int] = ..., metadata: _Optional[_Mapping[str, str]] = ...) -> None: ...

class ListImagesResponse(_message.Message):
    __slots__ = ("images", "next_page_token", "total", "index_version")
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    INDEX_VERSION_FIELD_NUMBER: _ClassVar[int]
    images: _containers.RepeatedCompositeFieldContainer[GalleryImage]
    next_page_token: str
    total: int
    index_version: str
    def __init__(self, images: _Optional[_Iterable[_Union[GalleryImage, _Mapping]]] = ..., next_page_token: _Optional[str] = ..., total: _Optional[int] = ..., index_version: _Optional[str] = ...) -> None: ...

class GetFacetsRequest(_message.Message):
    __slots__ = ("limit",)
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    limit: int
    def __init__(self, limit: _Optional[int] = ...) -> None: ...

class FacetValue(_message.Message):
    __slots__ = ("value", "images")
    VALUE_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    value: str
    images: int
    def __init__(self, value: _Optional[str] = ..., images: _Optional[int] = ...) -> None: ...

class Facet(_message.Message):
    __slots__ = ("values", "distinct")
    VALUES_FIELD_NUMBER: _ClassVar[int]
    DISTINCT_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedCompositeFieldContainer[FacetValue]
    distinct: int
    def __init__(self, values: _Optional[_Iterable[_Union[FacetValue, _Mapping]]] = ..., distinct: _Optional[int] = ...) -> None: ...

class GetFacetsResponse(_message.Message):
    __slots__ = ("labels", "metadata", "index_version")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Facet
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Facet, _Mapping]] = ...) -> None: ...
    LABELS_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    INDEX_VERSION_FIELD_NUMBER: _ClassVar[int]
    labels: Facet
    metadata: _containers.MessageMap[str, Facet]
    index_version: str
    def __init__(self, labels: _Optional[_Union[Facet, _Mapping]] = ..., metadata: _Optional[_Mapping[str, Facet]] = ..., index_version: _Optional[str] = ...) -> None: ...
