"""Shared fixtures of the tests of writers."""

import weakref

import pytest

from dp_sinkhorn.data.images import LabelledImages
from dp_sinkhorn.sampling import draw
from dp_sinkhorn.sampling.draw import Draws


@pytest.fixture
def alive_chunks(monkeypatch) -> list[int]:
    """The numbers of chunks of 100 images in memory, one entry per drawn chunk."""
    alive: weakref.WeakSet[LabelledImages] = weakref.WeakSet()
    most: list[int] = []
    real = Draws.__iter__

    def watched(self):
        for chunk in real(self):
            alive.add(chunk)
            most.append(len(alive))
            yield chunk
            del chunk

    monkeypatch.setattr(draw, "_CHUNK", 100)
    monkeypatch.setattr(Draws, "__iter__", watched)
    return most
