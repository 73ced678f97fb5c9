from .deployment import Deployment as Deployment
from .deployment import EngineConfig as EngineConfig
from .serve_options import access as access
from .serve_options import add_arguments as add_arguments
from .serve_options import engine_config as engine_config
from .watching import reload_unasked as reload_unasked
from .watching import watch as watch
