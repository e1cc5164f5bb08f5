"""CIFAR-10 and CIFAR-100 as their authors distribute them: pickled batches, parsed without running any pickle.

A parser knows the few operations that build dictionaries, lists, strings, integers and NumPy arrays of bytes. Anything
else in a file is refused.
"""

import io
import math
import pickletools
import re
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dp_sinkhorn.data.files import reading
from dp_sinkhorn.data.found import Arrays, Found, Part, Split, rest, without_effect
from dp_sinkhorn.data.reading import Reading
from dp_sinkhorn.data.tree import Entry, Tree
from dp_sinkhorn.io.errors import InputError, did_you_mean
from dp_sinkhorn.io.safe_read import shown

MAX_BATCH_BYTES = 2**29  # the training file of CIFAR-100 has 2**27
MAX_OPERATIONS = 10**6  # for each image a label, a file name, and some to place them
_REMEDY = "get the python version again, or convert it to an .npz"
_BATCHES = re.compile(r"data_batch_\d+")
_SIDE, _CHANNELS, _MAX_AXES = 32, 3, 4


def cifar(tree: Tree, how: Reading) -> Found | None:
    """`data_batch_1` to `data_batch_5`, `test_batch` and `batches.meta`; or `train`, `test` and `meta` of CIFAR-100.

    Raises:
        InputError: Batches of several data sets lie there, or one is damaged or holds anything unusual.
    """
    named: dict[str, list[Entry]] = {}
    for entry in tree.entries:
        if _BATCHES.fullmatch(entry.name) or entry.name in ("test_batch", "batches.meta", "train", "test", "meta"):
            named.setdefault(entry.name, []).append(entry)
    names = sorted((name for name in named if _BATCHES.fullmatch(name)), key=lambda name: int(name[11:]))
    hundred = not names
    if hundred and not {"train", "meta"} <= named.keys():
        return None
    wanted = ["train", "test", "meta"] if hundred else [*names, "test_batch", "batches.meta"]
    used = [entry for name in wanted for entry in named.get(name, [])]
    if len({entry.folder for entry in used}) > 1:
        raise InputError(f"{tree.root} holds several data sets, with {used[0]} and {used[-1]}; give one folder")
    first = {name: entries[0] for name, entries in named.items()}
    files: dict[Split, list[Entry]] = {"train": [first["train"]] if hundred else [first[name] for name in names]}
    if (test := first.get("test" if hundred else "test_batch")) is not None:
        files["test"] = [test]
    column, notes = "labels", without_effect(how, one_label=not hundred)
    if hundred:
        column = _column(how.label_column or "fine_labels")
    parts = {split: _part(entries, column) for split, entries in files.items()}
    meta = first.get("meta" if hundred else "batches.meta")
    class_names = None if meta is None else _texts(_load(meta), f"{column[:-1]}_names", meta)
    unused = rest(tree.entries, {entry.parts for entry in used}, "not a batch")
    return Found("CIFAR's python batches", parts, f"{column} of the batches", class_names, True, unused, notes)


def _column(chosen: str) -> str:
    """ "coarse", "coarse_label" and "coarse_labels" are the same."""
    stem = re.sub(r"_?labels?$", "", chosen)
    return f"{stem}_labels" if stem else "labels"


def _part(entries: list[Entry], column: str) -> Part:
    images: list[NDArray[np.uint8]] = []
    labels: list[int] = []
    for entry in entries:
        batch = _load(entry)
        data, own = batch.get("data"), batch.get(column)
        if not isinstance(data, np.ndarray) or data.ndim != 2 or data.shape[1] != _CHANNELS * _SIDE**2:
            raise InputError(f"{entry.where} holds no images of {_SIDE}x{_SIDE} RGB pixels; {_REMEDY}")
        if not isinstance(own, list) or not all(type(label) is int and 0 <= label < 2**31 for label in own):
            lists = sorted(key for key in batch if key.endswith("labels"))
            raise InputError(
                f"{entry.where} has no list {column} of labels; give --label-column with one of these: "
                f"{', '.join(lists) or 'none'}{did_you_mean(column, lists)}"
            )
        if len(own) != len(data):
            raise InputError(f"{entry.where} has {len(own)} labels for {len(data)} images; {_REMEDY}")
        images.append(data.reshape(-1, _CHANNELS, _SIDE, _SIDE))
        labels += own
    return Part(Arrays(np.concatenate(images), entries[0].where, (0.0, 255.0)), np.array(labels, np.int64))


def _texts(meta: dict[str, Any], key: str, entry: Entry) -> tuple[str, ...]:
    names = meta.get(key)
    if not isinstance(names, list) or not all(isinstance(name, str | bytes) for name in names):
        raise InputError(f"{entry.where} holds no list {key} of class names; {_REMEDY}")
    return tuple(_text(name) for name in names)


def _load(entry: Entry) -> dict[str, Any]:
    if entry.size > MAX_BATCH_BYTES:
        raise InputError(f"{entry.where} has {entry.size} bytes, more than {MAX_BATCH_BYTES}; {_REMEDY}")
    with reading(Path(entry.where), _REMEDY), closing(entry.open()) as file:
        found = parse_pickle(file.read(entry.size), entry.where)
        if not isinstance(found, dict):
            raise InputError(f"{entry.where} holds no dictionary; {_REMEDY}")
        return {_text(key): value for key, value in found.items() if isinstance(key, str | bytes)}


class _StrangeError(Exception):
    """What no batch holds."""


class _Function:
    """What stands for a function or a type that batches name; nothing is imported."""


_RECONSTRUCT, _NDARRAY, _DTYPE, _ENCODE, _BYTES = (_Function() for _ in range(5))
_GLOBALS = {
    "numpy.core.multiarray _reconstruct": _RECONSTRUCT,
    "numpy._core.multiarray _reconstruct": _RECONSTRUCT,
    "numpy ndarray": _NDARRAY,
    "numpy dtype": _DTYPE,
    "_codecs encode": _ENCODE,
    "__builtin__ bytes": _BYTES,
}


class _Bytes:
    """The dtype of bytes."""


@dataclass(repr=False)
class _Array:
    """An array, before and after its content is known."""

    values: NDArray[np.uint8] | None = None


_LITERALS: dict[str, Any] = {
    **dict.fromkeys(
        ("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
        lambda value: value,
    ),
    **dict.fromkeys(("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"), lambda value: value),
    **dict.fromkeys(("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "BINFLOAT"), lambda value: value),
    "EMPTY_DICT": lambda _: {},
    "EMPTY_LIST": lambda _: [],
    "EMPTY_TUPLE": lambda _: (),
    "NONE": lambda _: None,
    "NEWTRUE": lambda _: True,
    "NEWFALSE": lambda _: False,
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def parse_pickle(content: bytes, where: str) -> Any:
    """The value that a pickle of plain types and byte arrays describes; nothing is imported and nothing is called.

    Raises:
        InputError: It holds any other operation, type or array, or is damaged.
    """
    try:
        return _Parser(content).parse()
    except _StrangeError as strange:
        raise InputError(f"{where} {strange}; {_REMEDY}") from None
    # What a damaged pickle raises: an empty stack, an unknown place of the memo, a text that is not UTF-8, ...
    except Exception as error:
        raise InputError(f"{where} is no pickle of a batch ({shown(str(error))}); {_REMEDY}") from error


class _Parser:
    """The machine that a pickle drives: a stack, marks on it, and a memo."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.room = len(content)  # bytes that may be made of texts: each text is needed once
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def parse(self) -> Any:
        """Follow the operations up to the end."""
        for number, (operation, argument, _) in enumerate(pickletools.genops(io.BytesIO(self.content))):
            if number >= MAX_OPERATIONS:
                raise _StrangeError(f"has more than {MAX_OPERATIONS} operations")
            if operation.name == "STOP":
                return _finished(self.stack.pop())
            self._step(operation.name, argument)
        raise _StrangeError("ends too early")

    def _step(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in _LITERALS:
            stack.append(_LITERALS[name](argument))
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            self.memo[int(argument)] = stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(self.memo[int(argument)])
        elif name == "MARK":
            self.marks.append(len(stack))
        elif name == "APPEND":
            _extend(stack, [stack.pop()])
        elif name == "APPENDS":
            _extend(stack, self._since_mark())
        elif name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            _update(stack, [key, value])
        elif name == "SETITEMS":
            _update(stack, self._since_mark())
        elif name == "LIST":
            stack.append(self._since_mark())
        elif name == "DICT":
            values = self._since_mark()
            stack.append({})
            _update(stack, values)
        elif name == "TUPLE":
            stack.append(tuple(self._since_mark()))
        elif name in _TUPLES:
            values = [stack.pop() for _ in range(_TUPLES[name])]
            stack.append(tuple(reversed(values)))
        elif name == "GLOBAL":
            stack.append(_named(argument))
        elif name == "STACK_GLOBAL":
            own, module = _expect(stack.pop(), str), _expect(stack.pop(), str)
            stack.append(_named(f"{module} {own}"))
        elif name == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            stack.append(self._made(function, _expect(arguments, tuple)))
        elif name == "BUILD":
            state = stack.pop()
            self._build(stack[-1], _expect(state, tuple))
        elif name not in ("PROTO", "FRAME"):
            raise _StrangeError(f"holds the pickle operation {name}, which no batch needs")

    def _made(self, function: object, arguments: tuple[Any, ...]) -> Any:
        """What a call would make of these arguments; it is not called."""
        if function is _ENCODE and len(arguments) == 2 and isinstance(arguments[0], str):
            return self._encoded(arguments[0])  # bytes as Python 3 pickles them with an old protocol
        if function is _BYTES and not arguments:
            return b""
        if function is _RECONSTRUCT and len(arguments) == 3 and arguments[0] is _NDARRAY:
            return _Array()
        if function is _DTYPE and arguments and arguments[0] in ("u1", "uint8", b"u1", b"uint8"):
            return _Bytes()
        if function is _DTYPE:
            raise _StrangeError("holds an array of other values than bytes")
        raise _StrangeError("calls something that no batch needs")

    def _build(self, target: Any, state: tuple[Any, ...]) -> None:
        if isinstance(target, _Bytes):
            return
        if not isinstance(target, _Array) or target.values is not None:
            raise _StrangeError("holds an object that no batch needs")
        _, shape, dtype, fortran, content = state
        axes = _expect(shape, tuple)
        content = self._encoded(content) if isinstance(content, str) else _expect(content, bytes)
        # Few axes and small numbers, since the product of many large ones takes for ever.
        right = len(axes) <= _MAX_AXES and all(type(axis) is int and 0 <= axis <= len(content) for axis in axes)
        if not (isinstance(dtype, _Bytes) and right and math.prod(axes) == len(content)):
            raise _StrangeError("holds an array whose shape does not fit its bytes")
        target.values = np.frombuffer(content, np.uint8).reshape(axes, order="F" if fortran else "C")

    def _encoded(self, text: str) -> bytes:
        self.room -= len(text)
        if self.room < 0:
            raise _StrangeError("uses a text for many arrays (a decompression bomb?)")
        return text.encode("latin-1")

    def _since_mark(self) -> list[Any]:
        mark = self.marks.pop()
        if mark > len(self.stack):
            raise _StrangeError("has a mark above its stack")
        values = self.stack[mark:]
        del self.stack[mark:]
        return values


def _extend(stack: list[Any], values: list[Any]) -> None:
    _expect(stack[-1], list).extend(values)


def _update(stack: list[Any], values: list[Any]) -> None:
    target = _expect(stack[-1], dict)
    for key, value in zip(values[::2], values[1::2], strict=True):
        if not isinstance(key, str | bytes | int):  # others may take for ever to hash
            raise _StrangeError(f"holds a key of type {type(key).__name__}")
        target[key] = _finished(value)


def _named(name: str) -> _Function:
    if name not in _GLOBALS:
        raise _StrangeError(f"names {shown(name)}, which no batch needs")
    return _GLOBALS[name]


def _finished(value: Any) -> Any:
    return value.values if isinstance(value, _Array) else value


def _expect(value: Any, kind: type[Any]) -> Any:
    if not isinstance(value, kind):
        raise _StrangeError(f"holds a {type(value).__name__} where batches have a {kind.__name__}")
    return value


def _text(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value
