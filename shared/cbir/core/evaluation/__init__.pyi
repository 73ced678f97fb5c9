from .metrics import CONVENTIONS as CONVENTIONS
from .metrics import Measures as Measures
from .metrics import average_precision as average_precision
from .metrics import bootstrap_interval as bootstrap_interval
from .metrics import calibration_error as calibration_error
from .metrics import measure as measure
from .metrics import reliability as reliability
