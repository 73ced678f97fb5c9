from .asset import Asset as Asset
from .asset import assets as assets
