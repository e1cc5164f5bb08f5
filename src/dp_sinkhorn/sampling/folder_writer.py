"""Writer of a folder of PNG files, one sub-folder per class."""

from pathlib import Path

from PIL import Image

from dp_sinkhorn.sampling.draw import Draws
from dp_sinkhorn.sampling.privacy_facts import png_mark


def write_folder(path: Path, draws: Draws) -> None:
    """Write `path/<class>/<number>.png`; a class without images gets an empty folder."""
    folders = [path / name for name in _folder_names(draws.card.class_names)]
    for folder in folders:
        folder.mkdir(parents=True)
    digits, mark = max(6, len(str(draws.num - 1))), png_mark(draws.card)
    number = 0
    for chunk in draws:
        for image, label in zip(chunk.arrays()[0], chunk.labels.tolist(), strict=True):
            Image.fromarray(image).save(folders[label] / f"{number:0{digits}d}.png", pnginfo=mark)
            number += 1


def _folder_names(names: tuple[str, ...]) -> list[str]:
    """The class names if all are safe and distinct file names on every file system, else their numbers."""
    if all(map(_is_safe, names)) and len({name.casefold() for name in names}) == len(names):
        return list(names)
    digits = len(str(len(names) - 1))  # of equal length, to sort in the order of the classes
    return [f"{index:0{digits}d}" for index in range(len(names))]


def _is_safe(name: str) -> bool:
    plain = all(c.isalnum() or c in " ._-" for c in name)
    return plain and name[:1] not in ("", ".", " ") and name[-1] not in ". " and len(name.encode()) <= 128
