from .figures.chart import draw as draw
from .figures.tables import print_tables as print_tables
from .measurement import measure as measure
from .plan import Plan as Plan
