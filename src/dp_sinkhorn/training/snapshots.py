"""Pictures of the generator's images during training: public facts only."""

import math
from io import BytesIO
from pathlib import Path

import torch
from PIL import Image

from dp_sinkhorn.data.grid import draw_grid, rows_a_class
from dp_sinkhorn.data.images import LabelledImages, to_pixels
from dp_sinkhorn.generators.base import Generator, as_released
from dp_sinkhorn.io.atomic import write_whole
from dp_sinkhorn.release.card import NOT_PRIVATE
from dp_sinkhorn.sampling.privacy_facts import warning_mark
from dp_sinkhorn.settings import RunConfig

# Shares of a run's steps, dense at the start, where images change most. A picture is taken at the end of its block.
_SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 1.0)
_COLUMNS, _MOST_CLASSES = 10, 20
_SEED = 0  # of the latents: the same at each step, so that the pictures show the same images


class Snapshots:
    """PNG grids of the averaged generator's images, at about ten public steps.

    Guarantees: The pictures are post-processing of released tensors: fixed latents, as many images of each class.
    Taking one changes neither the generator nor any stream of random numbers.

    Args:
        folder: Folder of the files, for example `step-00200.png`; made for the first of them.
        block: Number of steps in a block.
    """

    def __init__(self, folder: Path, block: int, config: RunConfig) -> None:
        self.folder, num_steps = folder, config.plan.num_steps
        self.class_names = config.data.class_names[:_MOST_CLASSES]
        self.mark = None if config.settings.test_seed is None else warning_mark(NOT_PRIVATE)
        ends = {block * math.ceil(share * num_steps / block) for share in _SHARES}
        self.steps = sorted(min(end, num_steps) for end in ends)
        self.digits = max(5, len(str(num_steps)))

    def take(self, step: int, generator: Generator) -> Image.Image | None:
        """Take this step's picture and write it atomically; None if none is due or the file exists."""
        path = self.folder / f"step-{step:0{self.digits}d}.png"
        if step not in self.steps or path.exists():
            return None
        grid = draw_grid(self._images(generator), _COLUMNS)
        self.folder.mkdir(exist_ok=True)
        drawn = BytesIO()
        grid.save(drawn, "PNG", pnginfo=self.mark)
        write_whole(path, drawn.getvalue())
        return grid

    @torch.no_grad()
    def _images(self, generator: Generator) -> LabelledImages:
        labels = torch.arange(len(self.class_names)).repeat_interleave(_COLUMNS * rows_a_class(len(self.class_names)))
        with as_released(generator):
            images = generator.sample(labels, torch.Generator().manual_seed(_SEED)).cpu()
        return LabelledImages(to_pixels(images).unflatten(1, generator.shape), labels, self.class_names)
