from .lifecycle import Server as Server
from .query_watch import QueryWatch as QueryWatch
from .varints import varint as varint
