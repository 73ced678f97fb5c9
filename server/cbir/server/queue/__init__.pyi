from .admission import Admission as Admission
from .admission import NotReadyError as NotReadyError
from .admission import OverloadedError as OverloadedError
from .batching import DeadlineError as DeadlineError
from .fair_queue import Lane as Lane
from .flight import Flight as Flight
from .pipeline import Pipeline as Pipeline
from .tally import Histogram as Histogram
