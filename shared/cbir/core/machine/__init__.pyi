from .compiled_loops import jit as jit
from .compiled_loops import keep_compiled as keep_compiled
from .thread_shares import Threads as Threads
from .thread_shares import idle_quietly as idle_quietly
from .thread_shares import search_alone as search_alone
from .thread_shares import share_out as share_out
from .thread_shares import step_back as step_back
from .thread_shares import threads as threads
