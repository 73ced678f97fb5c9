from .evaluation import EvaluationReport as EvaluationReport
from .evaluation import evaluate as evaluate
from .query_set import gallery_queries as gallery_queries
from .query_set import source_queries as source_queries
from .report.findings import examine as examine
from .report.page import write_report as write_report
