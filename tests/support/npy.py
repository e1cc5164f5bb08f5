"""NumPy files made by hand."""

import struct

UINT8 = "{'descr': '|u1', 'fortran_order': False, 'shape': (4, 8, 8)}"


def npy(header: str, payload: bytes = bytes(range(256)), version: int = 1, length: int | None = None) -> bytes:
    text = header.encode().ljust(117) + b"\n"
    size = len(text) if length is None else length
    return b"\x93NUMPY" + bytes((version, 0)) + struct.pack("<H" if version == 1 else "<I", size) + text + payload
