from .prometheus import MetricsEndpoint as MetricsEndpoint
from .prometheus import ServerCollector as ServerCollector
