from .sample_split import LABELS as LABELS
from .sample_split import SampleSplit as SampleSplit
from .sample_split import draw_sample as draw_sample
from .sample_split import write_split as write_split
