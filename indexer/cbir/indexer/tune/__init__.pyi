from .budget import SearchBudget as SearchBudget
from .tuning import tune as tune
from .tuning_report import Gain as Gain
from .tuning_report import TuningReport as TuningReport
