from .calibration_pictures import gallery_pictures as gallery_pictures
from .embedding_cache import EmbeddingCache as EmbeddingCache
from .gallery import Gallery as Gallery
from .gallery import GalleryImage as GalleryImage
from .index_version import IndexVersion as IndexVersion
from .manifest import Manifest as Manifest
from .store import IndexStore as IndexStore
from .version_writer import VersionWriter as VersionWriter
