"""Folders of image files: one folder a class, all images in one folder, or deeper trees whose level is declared."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from dp_sinkhorn.data.found import UNUSED_SPLITS, Files, Found, Part, Split, split_of
from dp_sinkhorn.data.pictures import ENDINGS, OTHER_ENDINGS, image_ending
from dp_sinkhorn.data.reading import Reading
from dp_sinkhorn.data.tree import Entry, Tree
from dp_sinkhorn.io.errors import InputError

TABLE_ENDINGS = (".csv", ".tsv", ".tab", ".jsonl", ".ndjson")
_SHEETS = frozenset({".xlsx", ".xls", ".ods"})
_NOT_AN_IMAGE = "not an image"
_CANNOT = "an image format that cannot be read here"
# Names of folders that only say that images are in them.
_PLAIN = frozenset({
    "images", "image", "imgs", "img", "jpegimages", "jpegs", "jpeg", "jpg", "png", "pngs", "photos", "photo",
    "pictures", "pics", "data", "dataset", "files", "all", "raw", "samples", "train2017", "frames",
})  # fmt: skip
_MASKS = frozenset({"mask", "masks", "segmentation", "segmentations", "annotation", "annotations", "labels", "label",
                    "ground_truth", "groundtruth", "segmentationclass", "segmentationobject"})  # fmt: skip
_MASK_STEM = re.compile(r"(.+?)[-_. ](?:mask|masks|seg|segmentation|annotation|groundtruth|gt)(?:[-_. ]?\d+)?")
# Words beside the one that says the split: "train_images", "Test Data".
_FILLERS = frozenset({
    "set", "data", "dataset", "images", "image", "imgs", "img", "split", "samples", "folder", "photos", "pictures",
    "files", "jpg", "jpeg", "png", "resized",
})  # fmt: skip
_NUMBERED_WORD = re.compile(r"([A-Za-z]+)[-_. ]*\d+")
_MOST_WORDS = 100
_Placed = dict[Split, list[tuple[tuple[str, ...], Entry]]]


def split_of_folder(name: str) -> Split | None:
    """The split that a folder's name means: also of "train_set", "Test Data", "val2017" or "valImages"."""
    return split_of(name) or split_of(_plain_word(name))


def unused_split(name: str) -> bool:
    """Whether a name means a part of the data that no verb uses."""
    return name.strip().lower() in UNUSED_SPLITS or _plain_word(name) in UNUSED_SPLITS


def _plain_word(name: str) -> str:
    """The only word of a name beside fillers and numbers; "" if there are several."""
    separated = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name.strip()).lower()
    words = [re.sub(r"\d+$", "", word) for word in re.split(r"[\s_\-.]+", separated)]
    words = [re.sub(r"(?<=.)(?:set|data|images|imgs)$", "", word) for word in words if word not in _FILLERS]
    words = [word for word in words if word]
    return words[0] if len(words) == 1 else ""


def image_files(entries: Sequence[Entry]) -> tuple[list[Entry], list[tuple[str, str]]]:
    """Image files, and (reason, name) of the others, among them masks of other images."""
    images, others = [], []
    for entry in entries:
        ending = image_ending(entry.ending, lambda entry=entry: entry.head)  # type: ignore[misc]
        if ending in ENDINGS and entry.name.lower() != "dicomdir":
            images.append(entry)
        else:
            others.append(entry)
    images, masks = _without_masks(images)
    stems = {(*entry.folder, entry.stem) for entry in images} | {(entry.stem,) for entry in images}
    unused = [("a mask of another image", str(entry)) for entry in masks]
    return images, unused + [(_why_not(entry, stems), str(entry)) for entry in others]


def _why_not(entry: Entry, stems: set[tuple[str, ...]]) -> str:
    """Why a file is not read."""
    if entry.ending in OTHER_ENDINGS or entry.name.lower().endswith(".nii.gz"):
        return _CANNOT
    if (entry.stem,) in stems and entry.ending in (".txt", ".json", ".xml", ".cls", ".csv"):
        return "a file with the name of an image, whose contents are not used"
    if entry.ending in _SHEETS:
        return "a spreadsheet (save it as CSV)"
    return "a table that is not used" if entry.ending in TABLE_ENDINGS else _NOT_AN_IMAGE


def _without_masks(images: list[Entry]) -> tuple[list[Entry], list[Entry]]:
    """Images, and masks: in a folder "masks" beside one that only says "images", or called `X_mask` beside X."""
    stems = {(entry.folder, entry.stem) for entry in images}
    plain = {(entry.folder[:-1], entry.stem) for entry in images if entry.folder and _is_plain(entry.folder[-1])}
    masks = []
    for entry in images:
        match = _MASK_STEM.fullmatch(entry.stem)
        above = entry.folder[:-1]
        of_folder = bool(entry.folder) and entry.folder[-1].lower() in _MASKS
        own = {entry.stem} | ({match[1]} if match else set())
        beside = match is not None and (entry.folder, match[1]) in stems
        if beside or (of_folder and any((above, stem) in plain for stem in own)):
            masks.append(entry)
    left_out = set(map(id, masks))
    return [entry for entry in images if id(entry) not in left_out], masks


def _is_plain(name: str) -> bool:
    return name.lower() in _PLAIN


def class_like(folders: Sequence[tuple[str, ...]]) -> set[str]:
    """The names of last folders that may be classes: no splits, no plain words, no numbered parts of one folder."""
    names = {folder[-1] for folder in folders if folder and not split_of_folder(folder[-1])}
    names = {name for name in names if not _is_plain(name)}
    return set() if len({re.sub(r"[-_. ]*\d+$", "", name) for name in names} - {""}) == 1 < len(names) else names


def image_folders(tree: Tree, how: Reading) -> Found | None:
    """Image files, labelled by a folder of their path.

    Raises:
        InputError: Splits or the level of the classes are ambiguous.
    """
    return labelled_by_folders(tree, how, {})


def labelled_by_folders(tree: Tree, how: Reading, assigned: Mapping[tuple[str, ...], Split]) -> Found | None:
    """The same, where a table assigns the splits: by path."""
    images, unused = image_files(tree.entries)
    if not images:
        if cannot := [name for reason, name in unused if reason == _CANNOT]:
            raise InputError(f"{tree.root} holds images that cannot be read here, such as {cannot[0]}; convert to PNG")
        return None
    if how.label_column is not None:
        raise InputError(
            f"--label-column {how.label_column} needs a table that names the images of {tree.root}, and there is none; "
            "add one, or leave the option out"
        )
    by_split, left_out = splits_of(tree.root, images, how, assigned)
    unused += left_out
    if "train" not in by_split:
        raise InputError(f"{tree.root} holds no training images, only {', '.join(by_split)}; put them into train")
    level = _level(tree.root, by_split, how)
    parts: dict[Split, Part] = {}
    for split, entries in by_split.items():
        kept = [(below, entry) for below, entry in entries if len(below) >= level]
        reason = "an image beside the class folders" if kept else f"an image without a class, in the {split} split"
        unused += [(reason, str(entry)) for below, entry in entries if len(below) < level]
        if kept:
            labels = None if level == 0 else [below[level - 1] for below, _ in kept]
            parts[split] = Part(Files([entry for _, entry in kept]), labels)
    _check_same_classes(tree.root, parts, how)
    labels_from = "nothing: one class" if level == 0 else f"the names of the folders at level {level}"
    found = Found("image files in folders", parts, labels_from, unused=unused)
    found.persons = _persons([below for below, _ in by_split["train"]], level, len(set(parts["train"].labels or [""])))
    if level == 0:
        found.notes += _unused_words([entry for _, entry in by_split["train"]])
    return found


def splits_of(
    root: str, images: Sequence[Entry], how: Reading, assigned: Mapping[tuple[str, ...], Split]
) -> tuple[_Placed, list[tuple[str, str]]]:
    """The images of each split, each with the folders below it; and those that belong to no split that is used.

    Splits are folders at the first level, or at the second below every folder of the first. Folders that hold all
    others are left out, as archives have them.
    """
    paths = _unwrapped([entry.folder for entry in images])
    if assigned:
        placed: _Placed = {}
        unused = []
        for folder, entry in zip(paths, images, strict=True):
            if (split := assigned.get(entry.parts)) is None:
                unused.append(("an image that no list of a split names", str(entry)))
            else:
                placed.setdefault(split, []).append((folder, entry))
        return placed, unused
    for level in (0, 1):
        if (found := _splits_at(level, root, images, paths, how)) is not None:
            return found
    return {"train": list(zip(paths, images, strict=True))}, []


def _splits_at(
    level: int, root: str, images: Sequence[Entry], paths: Sequence[tuple[str, ...]], how: Reading
) -> tuple[_Placed, list[tuple[str, str]]] | None:
    names = {folder[level] for folder in paths if len(folder) > level}
    named = {name for name in names if split_of_folder(name)}
    others = sorted(names - named - {name for name in names if unused_split(name)})
    beside = [entry for folder, entry in zip(paths, images, strict=True) if len(folder) <= level]
    if not any(split_of_folder(name) == "train" for name in named):
        # Only splits, and none to train on; not so if they may be classes beside others.
        if level > 0 or others or beside or not named or not all(map(split_of, named)):
            return None
    elif others or beside:
        if how.class_level is not None or level > 0:
            return None
        stray = f"'{others[0]}'" if others else f"'{beside[0]}'"
        raise InputError(
            f"{root} holds {stray} beside {', '.join(repr(name) for name in sorted(named))}; keep only the splits "
            "there, each with one folder per class, or give --class-level 1 if all of these are classes"
        )
    if how.class_level is not None and how.class_level > max(map(len, paths)) - 1:
        return None  # the user says that these folders are classes
    placed: _Placed = {}
    unused = []
    for folder, entry in zip(paths, images, strict=True):
        split = split_of_folder(folder[level])
        if split is None:
            unused.append((f"the split '{folder[level]}', which no verb uses", str(entry)))
        else:
            placed.setdefault(split, []).append(((*folder[:level], *folder[level + 1 :]), entry))
    return placed, unused


def _unwrapped(folders: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Without folders at the top that hold everything else, but for splits and for the last, which may be a class."""
    shortest = min(map(len, folders))
    common = 0
    while (
        common < shortest - 1
        and len({folder[common] for folder in folders}) == 1
        and not split_of_folder(folders[0][common])
    ):
        common += 1
    folders = [folder[common:] for folder in folders]
    only = {folder[0] if folder else "" for folder in folders}
    if len(only) == 1 and _is_plain(only.pop()):  # a folder "images" is no class
        return [folder[1:] for folder in folders]
    return folders


def _level(root: str, by_split: _Placed, how: Reading) -> int:
    """Which folder below the split names the class."""
    train = by_split["train"]
    depths = Counter(len(below) for below, _ in train)
    deepest = max(depths)
    if how.class_level is not None:
        if how.class_level > deepest:
            raise InputError(
                f"--class-level {how.class_level} is deeper than the folders of {root}; give 0 to {deepest}"
            )
        return how.class_level
    names = [sorted({below[level] for below, _ in train if len(below) > level}) for level in range(deepest)]
    if len(depths) == 1:
        # Where a level has one name only, it tells nothing apart.
        telling = [level for level in range(deepest) if len(names[level]) > 1]
        if len(telling) == 1:
            return telling[0] + 1
        if not telling:
            return next((level + 1 for level in reversed(range(deepest)) if not _is_plain(names[level][0])), 0)
    elif deepest == 1:
        stray = next(entry for below, entry in train if not below)
        raise InputError(
            f"{root} holds '{stray}' beside folders of images; move it into a class folder, "
            "or give --class-level 0 for one class"
        )
    readings = []
    for level, own in enumerate(names, 1):
        shown = ", ".join(own[:3]) + (", …" if len(own) > 3 else "")
        readings.append(f"--class-level {level} for {len(own)} class(es) ({shown})")
    raise InputError(f"{root} has folders in folders, and either may name the class; give {' or '.join(readings)}")


def _check_same_classes(root: str, parts: dict[Split, Part], how: Reading) -> None:
    train = parts.get("train")
    if train is None or train.labels is None:
        return
    known = {str(name) for name in train.labels} | set(how.classes or ())
    for split, part in parts.items():
        if unknown := sorted({str(name) for name in part.labels or ()} - known):
            alike = next((name for name in known if name.casefold() == unknown[0].casefold()), None)
            remedy = f"rename it to '{alike}'" if alike else "remove it, or give --classes or another --class-level"
            raise InputError(f"the {split} split of {root} has class '{unknown[0]}' and train does not; {remedy}")


def _persons(folders: Sequence[tuple[str, ...]], level: int, num_classes: int) -> tuple[int, int] | None:
    """If other folders than classes look like persons: the most images of one, and how many there are.

    Of several levels the one with most folders counts. They look so if there are more than classes, or are numbered.
    """
    deepest = max(map(len, folders))
    others = [place for place in range(deepest) if place != level - 1]
    counts = [Counter(folder[place] for folder in folders if len(folder) > place) for place in others]
    most = max(counts, key=len, default=Counter[str]())
    numbered = all(any(sign.isdigit() for sign in name) for name in most)
    return (max(most.values()), len(most)) if len(most) > 1 and (len(most) > num_classes or numbered) else None


def _unused_words(images: Sequence[Entry]) -> list[str]:
    """A note where all files are called by a word and a number, and there are several words: "cat.1.jpg"."""
    words = set()
    for entry in images:
        if (match := _NUMBERED_WORD.fullmatch(entry.stem)) is None:
            return []
        words.add(match[1])
    if not 1 < len(words) <= _MOST_WORDS:
        return []
    return [f"file names begin with {len(words)} words ({', '.join(sorted(words)[:3])}), which are not used as classes"]
