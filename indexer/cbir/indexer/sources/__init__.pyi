from .collection import Sources as Sources
from .collection import open_sources as open_sources
from .image import ScanProblem as ScanProblem
from .image import SourceImage as SourceImage
