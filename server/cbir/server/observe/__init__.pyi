from .logs import configure_logs as configure_logs
from .loop_lag import LoopLag as LoopLag
from .prometheus import MetricsEndpoint as MetricsEndpoint
from .prometheus import ServerCollector as ServerCollector
from .systemd import Notifier as Notifier
from .traces import STAGE_ORDER as STAGE_ORDER
from .traces import Traces as Traces
