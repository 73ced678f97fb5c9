from .index_speed import IndexPlan as IndexPlan
from .index_speed import measure_index as measure_index
from .report import draw as draw
from .report import print_report as print_report
from .search_speed import SearchPlan as SearchPlan
from .search_speed import measure_search as measure_search
