from .kinds import VectorIndex as VectorIndex
from .kinds import build_index as build_index
from .kinds import check_index as check_index
from .kinds import index_file as index_file
from .kinds import is_index_name as is_index_name
from .kinds import load_index as load_index
from .kinds import resolve_index as resolve_index
