"""WebDataset: `.tar` files in which files of one name belong together, `0001.jpg` and `0001.cls` or `0001.json`."""

import json
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from dp_sinkhorn.data.files import reading
from dp_sinkhorn.data.found import Files, Found, Part, Split, split_of, split_of_prefix
from dp_sinkhorn.data.layouts.image_folders import image_files
from dp_sinkhorn.data.reading import Reading
from dp_sinkhorn.data.tree import TAR_ENDINGS, Entry, Tree, tree_of
from dp_sinkhorn.io.errors import InputError

_LABEL_ENDINGS = (".cls", ".json", ".txt")
_MAX_LABEL_BYTES = 2**20
_LABEL_NAMES = ("label", "class", "cls", "target", "category")


def webdataset(tree: Tree, how: Reading) -> Found | None:
    """Shards in a folder, or one archive; the beginning of a shard's name says its split, else all are for training."""
    shards = [entry for entry in tree.ending(*TAR_ENDINGS) if entry.path is not None]
    if shards:
        by_split: dict[Split, list[Entry]] = {}
        for shard in shards:
            split = next((s for part in reversed(shard.folder) if (s := split_of(part))), split_of_prefix(shard.name))
            if split is None and len(shards) > 1 and any(split_of_prefix(other.name) for other in shards):
                raise InputError(f"{shard.where} does not name its split; begin its name with train or test")
            assert shard.path is not None  # noqa: S101 - chosen so
            by_split.setdefault(split or "train", []).extend(tree_of(shard.path).entries)
        others = [entry for entry in tree.entries if entry not in shards]
    else:
        by_split, others = {"train": list(tree.entries)}, []
    labels = {split: _labels(entries) for split, entries in by_split.items()}
    if not any(labels.values()):
        return None
    parts: dict[Split, Part] = {}
    unused = [("beside the shards", str(entry)) for entry in others]
    kinds: set[str] = set()
    for split, entries in by_split.items():
        images, rest = image_files(entries)
        kept, values = [], []
        used = set()
        for entry in images:
            source = labels[split].get(_key(entry))
            if source is None:
                unused.append(("an image without a label beside it", str(entry)))
                continue
            kept.append(entry)
            values.append(_label(source, how))
            used.add(str(source))
            kinds.add(source.ending)
        unused += [(reason, name) for reason, name in rest if name not in used]
        parts[split] = Part(Files(kept), values)
    return Found("WebDataset", parts, f"the {' and '.join(sorted(kinds))} files beside the images", unused=unused)


def _key(entry: Entry) -> tuple[str, ...]:
    return (entry.root, *entry.folder, entry.name.partition(".")[0])


def _labels(entries: Sequence[Entry]) -> dict[tuple[str, ...], Entry]:
    """The file of each key that holds its label: `.cls`, or else `.json`, or else `.txt`."""
    images = {_key(entry) for entry in image_files(entries)[0]}
    found: dict[tuple[str, ...], Entry] = {}
    for ending in _LABEL_ENDINGS:
        for entry in entries:
            if entry.ending == ending and _key(entry) in images:
                found.setdefault(_key(entry), entry)
    return found


def _label(entry: Entry, how: Reading) -> str:
    if entry.size > _MAX_LABEL_BYTES:
        raise InputError(f"{entry.where} has {entry.size} bytes, more than a label; shorten it")
    with reading(Path(entry.where), "write it again"), closing(entry.open()) as file:
        text = file.read().decode("utf-8-sig").strip()
        if entry.ending != ".json":
            return text
        facts = json.loads(text)
    if not isinstance(facts, dict):
        return str(facts)
    names = [how.label_column] if how.label_column else [name for name in _LABEL_NAMES if name in facts]
    if len(names) != 1 or names[0] not in facts:
        raise InputError(f"{entry.where} has the fields {', '.join(map(str, facts))}; choose one with --label-column")
    return str(facts[names[0]])
