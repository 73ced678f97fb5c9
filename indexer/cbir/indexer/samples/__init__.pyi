from .sample_split import LABELS as LABELS
from .sample_split import SampleSplit as SampleSplit
from .sample_split import write_split as write_split
