"""CIFAR-10 and CIFAR-100 as their authors distribute them: pickled batches, parsed without running any pickle.

A parser knows the few operations that build dictionaries, lists, strings, integers and NumPy arrays of bytes. Anything
else in a file is refused.
"""

import math
import pickletools
import re
from contextlib import closing
from pathlib import Path
from typing import IO, Any

import numpy as np

from dp_sinkhorn.data.files import MAX_BYTES, reading
from dp_sinkhorn.data.found import Arrays, Found, Part, Split, rest
from dp_sinkhorn.data.reading import Reading
from dp_sinkhorn.data.tree import Entry, Tree
from dp_sinkhorn.io.errors import InputError

_REMEDY = "get the python version again, or convert it to an .npz"
_BATCHES = re.compile(r"data_batch_\d+")
_SIDE, _CHANNELS = 32, 3
_MAX_OPERATIONS = 10**7
_ARRAY, _DTYPE, _ENCODE = object(), object(), object()
_GLOBALS = {
    "numpy.core.multiarray _reconstruct": _ARRAY,
    "numpy._core.multiarray _reconstruct": _ARRAY,
    "numpy ndarray": _ARRAY,
    "numpy dtype": _DTYPE,
    "_codecs encode": _ENCODE,
}


def cifar(tree: Tree, how: Reading) -> Found | None:
    """`data_batch_1` to `data_batch_5`, `test_batch` and `batches.meta`; or `train`, `test` and `meta` of CIFAR-100."""
    named = {entry.name: entry for entry in tree.entries if not entry.ending or entry.name == "batches.meta"}
    ten = sorted((entry for name, entry in named.items() if _BATCHES.fullmatch(name)), key=lambda entry: entry.parts)
    if ten:
        files: dict[Split, list[Entry]] = {"train": ten, "test": [named["test_batch"]] if "test_batch" in named else []}
        meta, names_key, default = named.get("batches.meta"), "label_names", "labels"
    elif {"train", "test", "meta"} <= named.keys():
        files = {"train": [named["train"]], "test": [named["test"]]}
        meta, names_key, default = named["meta"], "fine_label_names", "fine_labels"
    else:
        return None
    column = default
    if not ten and how.label_column is not None:
        column = how.label_column if how.label_column.endswith("s") else f"{how.label_column}s"
        names_key = f"{column.removesuffix('s')}_names"
    parts = {split: _part(entries, column) for split, entries in files.items() if entries}
    names = None if meta is None else _texts(_load(meta).get(names_key), meta)
    used = {entry.parts for entry in named.values()}
    return Found(
        "CIFAR's python batches", parts, f"{column} of the batches", names, rest(tree.entries, used, "not a batch")
    )


def _part(entries: list[Entry], column: str) -> Part:
    images, labels = [], []
    for entry in entries:
        batch = _load(entry)
        data, own = batch.get("data"), batch.get(column)
        if not isinstance(data, np.ndarray) or data.ndim != 2 or data.shape[1] != _CHANNELS * _SIDE**2:
            raise InputError(f"{entry.where} holds no images of {_SIDE}x{_SIDE} RGB pixels; {_REMEDY}")
        if not isinstance(own, list) or not all(isinstance(label, int) for label in own):
            known = ", ".join(sorted(key for key in batch if key.endswith("labels")))
            raise InputError(f"{entry.where} has no list {column}, only {known}; give --label-column, or {_REMEDY}")
        images.append(data.reshape(-1, _CHANNELS, _SIDE, _SIDE))
        labels += own
    return Part(Arrays(np.concatenate(images), entries[0].where, (0.0, 255.0)), np.array(labels, np.int64))


def _texts(value: object, entry: Entry) -> tuple[str, ...] | None:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise InputError(f"{entry.where} holds no names of this column; {_REMEDY}")
    return tuple(value)


def _load(entry: Entry) -> dict[str, Any]:
    with reading(Path(entry.where), _REMEDY), closing(entry.open()) as file:
        found = parse_pickle(file, entry.where)
    if not isinstance(found, dict):
        raise InputError(f"{entry.where} holds no dictionary; {_REMEDY}")
    return {_text(key): value for key, value in found.items()}


def parse_pickle(file: IO[bytes], where: str) -> Any:
    """The value that a pickle of plain types and byte arrays describes; nothing is imported and nothing is called.

    Raises:
        InputError: It holds any other operation, type or array.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    argument: Any
    for number, (operation, argument, _) in enumerate(pickletools.genops(file)):
        if number > _MAX_OPERATIONS:
            raise InputError(f"{where} has more than {_MAX_OPERATIONS} operations; {_REMEDY}")
        name = operation.name
        if name in ("PROTO", "FRAME"):
            continue
        if name == "STOP":
            return stack.pop()
        if name == "MARK":
            marks.append(len(stack))
        elif name in _LITERALS:
            stack.append(_LITERALS[name](argument))
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            memo[int(argument)] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(memo[int(argument)])
        elif name == "APPEND":
            value = stack.pop()
            _expect(stack[-1], list, where).append(value)
        elif name in ("APPENDS", "SETITEMS", "TUPLE", "LIST", "DICT"):
            mark = marks.pop()
            values = stack[mark:]
            del stack[mark:]
            _gather(name, values, stack, where)
        elif name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            _expect(stack[-1], dict, where)[_key(key)] = value
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            stack[-count:] = [tuple(stack[-count:])]
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            if name == "STACK_GLOBAL":
                argument = " ".join(map(_text, reversed([stack.pop(), stack.pop()])))
            if argument not in _GLOBALS:
                raise InputError(f"{where} names {argument!r}, which no batch needs; {_REMEDY}")
            stack.append(_GLOBALS[argument])
        elif name == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            stack.append(_made(function, arguments, where))
        elif name == "BUILD":
            state = stack.pop()
            _build(stack[-1], state, where)
        else:
            raise InputError(f"{where} holds the pickle operation {name}, which no batch needs; {_REMEDY}")
    raise InputError(f"{where} ends too early; {_REMEDY}")


_TEXTS = (
    "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINBYTES", "SHORT_BINBYTES",
    "BINUNICODE8", "BINBYTES8",
)  # fmt: skip
_LITERALS: dict[str, Any] = {
    **dict.fromkeys(_TEXTS, lambda value: value),
    **dict.fromkeys(("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "BINFLOAT"), lambda value: value),
    "EMPTY_DICT": lambda _: {},
    "EMPTY_LIST": lambda _: [],
    "EMPTY_TUPLE": lambda _: (),
    "NONE": lambda _: None,
    "NEWTRUE": lambda _: True,
    "NEWFALSE": lambda _: False,
}


class _Unfinished(list[Any]):
    """An array or a dtype before its state is known; afterwards its one element is the value."""

    def __init__(self, kind: object, arguments: tuple[Any, ...]) -> None:
        super().__init__()
        self.kind, self.arguments = kind, arguments


def _gather(name: str, values: list[Any], stack: list[Any], where: str) -> None:
    values = [_finished(value) for value in values]
    if name == "TUPLE":
        stack.append(tuple(values))
    elif name == "LIST":
        stack.append(values)
    elif name == "APPENDS":
        _expect(stack[-1], list, where).extend(values)
    else:
        pairs = {_key(key): value for key, value in zip(values[::2], values[1::2], strict=True)}
        if name == "DICT":
            stack.append(pairs)
        else:
            _expect(stack[-1], dict, where).update(pairs)


def _made(function: object, arguments: Any, where: str) -> Any:
    if not isinstance(arguments, tuple):
        raise InputError(f"{where} calls something without arguments; {_REMEDY}")
    if function is _ENCODE:  # bytes as Python 3 pickles them with an old protocol
        return str(arguments[0]).encode("latin-1")
    if function in (_ARRAY, _DTYPE):
        return _Unfinished(function, arguments)
    raise InputError(f"{where} calls something that no batch needs; {_REMEDY}")


def _build(target: Any, state: Any, where: str) -> None:
    if not isinstance(target, _Unfinished):
        raise InputError(f"{where} holds an object that no batch needs; {_REMEDY}")
    if target.kind is _DTYPE:
        if str(target.arguments[0]) not in ("u1", "uint8"):
            raise InputError(f"{where} holds an array of {target.arguments[0]!r}, not of bytes; {_REMEDY}")
        return
    _, shape, _, fortran, content = state
    content = content.encode("latin-1") if isinstance(content, str) else content
    if not isinstance(content, bytes) or math.prod(shape) != len(content) or len(content) > MAX_BYTES:
        raise InputError(f"{where} holds an array whose shape does not fit its bytes; {_REMEDY}")
    array = np.frombuffer(content, np.uint8).reshape(shape, order="F" if fortran else "C")
    target[:] = [array]


def _finished(value: Any) -> Any:
    return value[0] if isinstance(value, _Unfinished) and value.kind is _ARRAY and value else value


def _expect(value: Any, kind: type[Any], where: str) -> Any:
    if not isinstance(value, kind) or isinstance(value, _Unfinished):
        raise InputError(f"{where} is no pickle of plain types; {_REMEDY}")
    return value


def _key(value: Any) -> Any:
    return value if isinstance(value, bytes | str | int) else str(value)


def _text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)
