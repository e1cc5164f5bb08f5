"""WebDataset: `.tar` files in which files of one name belong together, `0001.jpg` and `0001.cls` or `0001.json`."""

import json
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from dp_sinkhorn.data.files import MAX_BYTES, reading
from dp_sinkhorn.data.found import Files, Found, Part, Split, split_of_prefix
from dp_sinkhorn.data.layouts.image_folders import image_files, split_of_folder
from dp_sinkhorn.data.reading import Reading
from dp_sinkhorn.data.tree import TAR_ENDINGS, Entry, Tree, archive_tree
from dp_sinkhorn.io.errors import InputError, did_you_mean

_LABEL_ENDINGS = (".cls", ".json", ".txt")
_MAX_LABEL_BYTES = 2**20
_LABEL_NAMES = ("label", "class", "cls", "target", "category")


def webdataset(tree: Tree, how: Reading) -> Found | None:
    """Shards in a folder, or one archive; the beginning of a shard's name says its split, else all are for training.

    Raises:
        InputError: Splits or labels are ambiguous.
    """
    shards = tree.ending(*TAR_ENDINGS)
    if shards:
        by_split = _by_split(shards)
        others = [entry for entry in tree.entries if entry not in shards]
    elif tree.root.lower().endswith(TAR_ENDINGS) or tree.ending(".cls"):
        by_split, others = {"train": list(tree.entries)}, []
    else:
        return None  # other files beside images, in folders, are no labels
    labels = {split: _labels(entries) for split, entries in by_split.items()}
    entries = [entry for own in by_split.values() for entry in own]
    flat = shards and image_files(entries)[0] and not any(entry.folder for entry in entries)
    if not any(labels.values()) and not (flat and not others):
        return None
    found = Found("WebDataset", {}, "nothing: one class")
    found.unused += [("beside the shards", str(entry)) for entry in others]
    kinds: set[str] = set()
    for split, own in by_split.items():
        _add_part(found, split, own, labels[split] if any(labels.values()) else None, how, kinds)
    if kinds:
        found.labels_from = f"the {' and '.join(sorted(kinds))} files beside the images"
    return found


def _by_split(shards: Sequence[Entry]) -> dict[Split, list[Entry]]:
    by_split: dict[Split, list[Entry]] = {}
    held = 0
    splits = [
        next((s for part in reversed(shard.folder) if (s := split_of_folder(part))), split_of_prefix(shard.name))
        for shard in shards
    ]
    for shard, split in zip(shards, splits, strict=True):
        if split is None and any(splits):
            raise InputError(f"{shard.where} does not name its split; begin its name with train or test")
        entries = archive_tree(shard).entries
        if not shard.name.lower().endswith(".tar") or shard.path is None:
            held += sum(entry.size for entry in entries)  # in memory
        if held > MAX_BYTES:
            raise InputError(f"the shards beside {shard.where} unpack to more than {MAX_BYTES} bytes; write plain .tar")
        by_split.setdefault(split or "train", []).extend(entries)
    return by_split


def _add_part(
    found: Found,
    split: Split,
    entries: Sequence[Entry],
    labels: dict[tuple[str, ...], Entry] | None,
    how: Reading,
    kinds: set[str],
) -> None:
    """Add the images of one split, with their labels (None: there are none anywhere), and what is not used."""
    images, rest = image_files(entries)
    kept: dict[tuple[str, ...], Entry] = {}
    values, used = [], set()
    for entry in images:
        key = _key(entry)
        source = None if labels is None else labels.get(key)
        if key in kept or entry.name.count(".") > 1:
            found.unused.append(("another image of the same sample", str(entry)))
        elif labels is not None and source is None:
            found.unused.append(("an image without a label beside it", str(entry)))
        else:
            kept[key] = entry
            if source is not None:
                values.append(_label(source, how))
                used.add((source.root, str(source)))
                kinds.add(source.ending)
    names = {name for _, name in used}
    found.unused += [(reason, name) for reason, name in rest if name not in names]
    if kept:
        found.parts[split] = Part(Files(list(kept.values())), None if labels is None else values)


def _key(entry: Entry) -> tuple[str, ...]:
    return (entry.root, *entry.folder, entry.name.partition(".")[0])


def _labels(entries: Sequence[Entry]) -> dict[tuple[str, ...], Entry]:
    """The file of each key that holds its label: `.cls`, or else `.json`, or else `.txt`."""
    images = {_key(entry) for entry in image_files(entries)[0]}
    for ending in _LABEL_ENDINGS:
        found = {_key(entry): entry for entry in entries if entry.ending == ending and _key(entry) in images}
        if 2 * len(found) >= len(images) > 0:
            return found
    return {}


def _label(entry: Entry, how: Reading) -> str:
    if entry.size > _MAX_LABEL_BYTES:
        raise InputError(f"{entry.where} has {entry.size} bytes, more than a label; shorten it")
    with reading(Path(entry.where), "write it again"), closing(entry.open()) as file:
        text = file.read(_MAX_LABEL_BYTES + 1).decode("utf-8-sig").strip()
        facts: Any = json.loads(text) if entry.ending == ".json" else text
    if not isinstance(facts, dict):
        if how.label_column is not None:
            raise InputError(f"{entry.where} holds a label and no field {how.label_column}; leave out --label-column")
        return str(facts)
    names = [how.label_column] if how.label_column else [name for name in _LABEL_NAMES if name in facts]
    if len(names) != 1 or names[0] not in facts:
        fields = ", ".join(map(str, facts))
        meant = did_you_mean(how.label_column or "", map(str, facts))
        raise InputError(f"{entry.where} has the fields {fields[:500]}; choose one with --label-column{meant}")
    return str(facts[names[0]])
