"""What every way of training shares: images, network, optimiser, loop, checkpoint, the files a run leaves."""

from __future__ import annotations

from cbir.indexer.training.export import TrainedMember
from cbir.indexer.training.images import TrainingImages, read_images
from cbir.indexer.training.network import StudentSpec
from cbir.indexer.training.progress import TrainingProgress
from cbir.indexer.training.recipe import Recipe

__all__ = ["Recipe", "StudentSpec", "TrainedMember", "TrainingImages", "TrainingProgress", "read_images"]
