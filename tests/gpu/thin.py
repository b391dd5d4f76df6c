#!/usr/bin/env python3
"""Removes the code for all but one GPU architecture from a library with CUDA kernels. The file keeps its size and
addresses; removed code becomes zeros, so that it compresses well.

usage: thin.py SOURCE TARGET [--arch 90] [--drop REGEX]
  --arch  compute capability, for example 90 for sm_90 (H100, H200)
  --drop  also removes code that contains a kernel whose mangled name matches. Only for programs that never launch such
          kernels, with CUDA's default of lazy loading

nvcc stores kernels in the sections .nv_fatbin and __nv_relfatbin, as consecutive containers aligned to 8 bytes. All
numbers are little-endian:

  container  u32 magic, u16 version, u16 size of this header, u64 size of its entries
  entry      u16 kind (1: PTX, 2: ELF with machine code), u16 version, u32 size of this header, u64 size of the code;
             at 16: u32 compressed size, at 28: u32 architecture (90: sm_90), at 40: u64 flags, at 56: u64
             decompressed size

Removed entries make their container shorter. A container without an entry for the architecture stays unchanged: its kernels
could not run there before, and CUDA may expect it to be non-empty.
"""
import argparse
import collections
import ctypes
import re
import struct
import sys

MAGIC = 0xBA55ED50
SECTIONS = (".nv_fatbin", "__nv_relfatbin")
ELF, LZ4, ZSTD = 2, 0x2000, 0x8000

Entry = collections.namedtuple("Entry", "start code end kind arch compressed flags size")


class Unusable(Exception):
    """The file cannot be thinned."""


def sections(data):
    """Start and end of each section with kernels."""
    if data[:6] != b"\x7fELF\x02\x01":
        raise Unusable("not a little-endian 64-bit ELF file")
    table, = struct.unpack_from("<Q", data, 0x28)
    size, count, names = struct.unpack_from("<HHH", data, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", data, table + number * size) for number in range(count)]
    for name, _, _, _, start, length in headers:
        at = headers[names][4] + name
        if data[at:data.index(0, at)].decode() in SECTIONS:
            if start + length > len(data):
                raise Unusable(f"a section ends at {start + length:#x}, past the end of the file")
            yield start, start + length


def containers(data, start, end):
    """Start of the header, start of the entries and end of the entries of each container."""
    while start + 16 <= end:
        magic, _, header, length = struct.unpack_from("<IHHQ", data, start)
        if magic == 0:  # padding
            start += 8
            continue
        if magic != MAGIC:
            raise Unusable(f"expected a container with magic {MAGIC:#010x} at {start:#x}, found {magic:#010x}")
        if header < 16 or start + header + length > end:
            raise Unusable(f"the container at {start:#x} ends past its section")
        yield start, start + header, start + header + length
        start += (header + length + 7) // 8 * 8


def entries(data, start, end):
    """The entries of a container."""
    while start < end:
        if start + 64 > end:
            raise Unusable(f"the entry at {start:#x} is truncated")
        kind, _, header, length = struct.unpack_from("<HHIQ", data, start)
        if header < 64 or start + header + length > end:
            raise Unusable(f"the entry at {start:#x} ends past its container")
        compressed, arch = struct.unpack_from("<I8xI", data, start + 16)
        flags, size = struct.unpack_from("<Q8xQ", data, start + 40)
        yield Entry(start, start + header, start + header + length, kind, arch, compressed, flags, size)
        start += header + length


def machine_code(data, entry):
    """The code of an entry, decompressed."""
    code = bytes(data[entry.code:entry.end])
    if entry.flags & LZ4:
        raise Unusable(f"the entry at {entry.start:#x} is compressed with LZ4, which --drop does not support")
    if not entry.flags & ZSTD:
        return code
    zstd = ctypes.CDLL("libzstd.so.1")
    zstd.ZSTD_decompress.restype = ctypes.c_size_t
    zstd.ZSTD_decompress.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_size_t]
    found = ctypes.create_string_buffer(entry.size)
    if zstd.ZSTD_decompress(found, entry.size, code, entry.compressed) != entry.size:
        raise Unusable(f"cannot decompress the entry at {entry.start:#x} with zstd to the size in its header")
    return found.raw


def thin(data, arch, drop=None):
    """Thins `data` in place. Returns the bytes of all entries before and after, and the bytes that `drop` removed."""
    before = after = dropped = found = 0
    for section in sections(data):
        for header, start, end in list(containers(data, *section)):
            before += end - start
            here = [entry for entry in entries(data, start, end) if entry.kind == ELF and entry.arch == arch]
            if not here:
                after += end - start
                continue
            found += len(here)
            kept = [entry for entry in here if not (drop and drop.search(machine_code(data, entry)))]
            dropped += sum(entry.end - entry.start for entry in set(here) - set(kept))
            code = b"".join(bytes(data[entry.start:entry.end]) for entry in kept)
            data[start:end] = code.ljust(end - start, b"\0")
            struct.pack_into("<Q", data, header + 8, len(code))
            after += len(code)
    if found == 0:
        raise Unusable(f"the file has no code for sm_{arch}")
    return before, after, dropped


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("source")
    parser.add_argument("target")
    parser.add_argument("--arch", type=int, default=90)
    parser.add_argument("--drop", type=lambda text: re.compile(text.encode()))
    arguments = parser.parse_args()
    with open(arguments.source, "rb") as file:
        data = bytearray(file.read())
    try:
        before, after, dropped = thin(data, arguments.arch, arguments.drop)
    except Unusable as error:
        sys.exit(f"error: {arguments.source}: {error}")
    with open(arguments.target, "wb") as file:
        file.write(data)
    mebibytes = [round(size / 2**20, 1) for size in (before, after, dropped)]
    print("{}: {} MiB of kernels, {} MiB kept, {} MiB dropped by name".format(arguments.target, *mebibytes))


if __name__ == "__main__":
    main()
