from .lifecycle import Server as Server
from .varints import varint as varint
