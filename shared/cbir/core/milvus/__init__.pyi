from .store import MilvusStore as MilvusStore
from .store import vector_store as vector_store
