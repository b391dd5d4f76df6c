"""Tests thin.py with a hand-made library. usage: python3 -m unittest tests/gpu/test_thin.py"""
import re
import struct
import unittest

from thin import ELF, MAGIC, Unusable, entries, containers, sections, thin

PTX = 1


def entry(kind, arch, code):
    code = code.ljust(-(-len(code) // 8) * 8, b"\0")
    header = struct.pack("<HHIQIIHHIIIQQQ", kind, 0x101, 64, len(code), 0, 0, 0, 0, arch, 0, 0, 0, 0, 0)
    return header + code


def container(*content):
    content = b"".join(content)
    return struct.pack("<IHHQ", MAGIC, 1, 16, len(content)) + content


def library(*content):
    """An ELF file whose section .nv_fatbin has this content."""
    names, fatbin = b"\0.nv_fatbin\0", b"".join(content)
    header = b"\x7fELF\x02\x01".ljust(0x28, b"\0") + struct.pack("<QIHHHHHH", 64, 0, 64, 0, 0, 64, 2, 1)
    at = 64 + 2 * 64
    table = struct.pack("<IIQQQQ", 1, 1, 0, 0, at + len(names), len(fatbin)).ljust(64, b"\0")
    table += struct.pack("<IIQQQQ", 0, 3, 0, 0, at, len(names)).ljust(64, b"\0")
    return bytearray(header + table + names + fatbin)


def kernels(data):
    return [[(each.kind, each.arch) for each in entries(data, start, end)]
            for section in sections(data) for _, start, end in containers(data, *section)]


class Thin(unittest.TestCase):
    def test_thinning_keeps_one_architecture_and_the_file_size_and_containers_without_it(self):
        data = library(container(entry(ELF, 80, b"old"), entry(ELF, 90, b"new"), entry(PTX, 90, b"text")), bytes(8),
                       container(entry(ELF, 75, b"alone")))
        size = len(data)
        thin(data, 90)
        self.assertEqual(len(data), size)
        self.assertEqual(kernels(data), [[(ELF, 90)], [(ELF, 75)]])
        self.assertIn(b"new", data)
        self.assertNotIn(b"old", data)

    def test_drop_removes_kernels_by_name(self):
        data = library(container(entry(ELF, 90, b"flash_attention")), container(entry(ELF, 90, b"convolution")))
        self.assertEqual(thin(data, 90, re.compile(b"flash"))[2], 64 + 16)
        self.assertEqual(kernels(data), [[], [(ELF, 90)]])

    def test_invalid_files_are_refused(self):
        whole = library(container(entry(ELF, 90, b"new")))
        invalid = {"not a little-endian": bytearray(b"text"), "no code for sm_90": library(container(entry(ELF, 80, b"old"))), "expected a container": library(b"wrong".ljust(16)),
                 "past the end": whole[:-8], "truncated": library(container(b"short".ljust(8)))}
        for reason, data in invalid.items():
            with self.assertRaisesRegex(Unusable, reason):
                thin(data, 90)
