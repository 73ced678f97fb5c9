from .duplicates import DedupReport as DedupReport
from .duplicates import StoredFile as StoredFile
from .duplicates import find_duplicates as find_duplicates
from .sheet import GROUPS_SHOWN as GROUPS_SHOWN
from .sheet import draw_duplicates as draw_duplicates
from .sheet import size_text as size_text
