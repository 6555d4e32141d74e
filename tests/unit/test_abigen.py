"""From C to bpf/abi.py: names, numbers, byte order, and what is refused."""

import ctypes
import os
import re
import shutil
import subprocess
import types
from pathlib import Path

import pytest

from bpf import abi, abigen, btf, mapset
from bpf.layout import Either, Record

HEADER = """
#include <linux/types.h>

union place {
	__be32 v4;
	__u8 v6[16];
};

enum colour {
	COLOUR_RED = 1,
	COLOUR_GREEN,
	COLOUR_COUNT,
};

enum paint_flag {
	PAINT_WET = 1 << 0,
};

enum kind {
	KIND_A = 1,
	KIND_B = 2,
	KIND_C = 4,
};

enum limit {
	POTS_PER_SHELF = 4,
	SHELF_MASK = 0xfffff,
};

struct pot_key {
	__be32 address;
	__be16 port;
	__u8 colour;
	__u8 zero;
};

struct pot {
	union place place;
	struct {
		__u32 left;
		__u32 right;
	} half[2];
	__u64 weight;
	char label[8];
};
"""
MENTIONS = """
__attribute__((noinline)) enum colour paint(struct pot *pot, struct pot_key *key, enum limit limit)
{
	return pot->weight + key->port + limit;
}

__attribute__((noinline)) enum kind dry(enum paint_flag flag)
{
	return flag;
}
"""

needs_clang = pytest.mark.skipif(shutil.which("clang") is None, reason="needs clang")


def compiled(header: str, code: str, folder: Path) -> btf.Btf:
    target = folder / "made.o"
    system = f"-I/usr/include/{os.uname().machine}-linux-gnu"
    command = ("clang", "-O2", "-g", "-target", "bpf", system, "-x", "c", "-c", "-", "-o", target)
    subprocess.run(command, input=header + code, text=True, check=True)
    return btf.read(target)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> types.ModuleType:
    found = compiled(HEADER, MENTIONS, tmp_path_factory.mktemp("abi"))
    module = types.ModuleType("made")
    exec(abigen.generate(found, HEADER), module.__dict__)  # noqa: S102 -- what is generated is code
    return module


# ---- the generator ----


@needs_clang
def test_ports_and_addresses_are_big_endian(made: types.ModuleType) -> None:
    key = made.PotKey(address=0xC000020A, port=443, colour=made.Colour.GREEN)
    assert bytes(key) == b"\xc0\x00\x02\x0a\x01\xbb\x02\x00"
    assert (key.address, key.port) == (0xC000020A, 443)


@needs_clang
def test_members_lose_the_name_of_their_enumeration(made: types.ModuleType) -> None:
    assert [(c.name, c.value) for c in made.Colour] == [("RED", 1), ("GREEN", 2)]
    assert {limit.name: limit.value for limit in made.Limit} == {
        "POTS_PER_SHELF": 4,
        "SHELF_MASK": 0xFFFFF,
    }


@needs_clang
def test_bits_are_flags_and_choices_are_not(made: types.ModuleType) -> None:
    assert [base.__name__ for base in (made.PaintFlag.__base__, made.Kind.__base__)] == [
        "IntFlag",
        "IntFlag",
    ]
    assert made.Colour.__base__.__name__ == "IntEnum"


@needs_clang
def test_layout_is_the_compilers(made: types.ModuleType) -> None:
    assert ctypes.sizeof(made.Pot) == 48
    assert (made.Pot.half.offset, made.Pot.weight.offset, made.Pot.label.offset) == (16, 32, 40)
    pot = made.Pot(weight=1, label=b"oak")
    pot.half[1].left = 7
    assert bytes(pot)[24:28] == (7).to_bytes(4, "little")
    assert issubclass(made.Pot, Record)
    assert issubclass(made.Place, Either)


@needs_clang
def test_a_type_that_the_object_does_not_carry_is_named(tmp_path: Path) -> None:
    found = compiled(HEADER, MENTIONS, tmp_path)
    with pytest.raises(abigen.NoType, match="enum absent"):
        abigen.generate(found, HEADER + "enum absent {\n\tABSENT,\n};\n")


@needs_clang
@pytest.mark.parametrize(
    ("body", "where"),
    [("__u8 a; __u32 b;", "before b"), ("__u32 a; __u8 b;", "at the end")],
)
def test_bytes_without_a_name_are_refused(tmp_path: Path, body: str, where: str) -> None:
    header = f"#include <linux/types.h>\nstruct leaky {{ {body} }};\n"
    code = "__attribute__((noinline)) int use(struct leaky *l) { return l->a; }\n"
    with pytest.raises(abigen.NoType, match=f"struct leaky has a hole {where}"):
        abigen.generate(compiled(header, code, tmp_path), header)


@needs_clang
def test_a_pointer_has_no_place_in_a_map(tmp_path: Path) -> None:
    header = "struct bad {\n\tvoid *p;\n};\n"
    code = "__attribute__((noinline)) int use(struct bad *b) { return b->p != 0; }\n"
    with pytest.raises(abigen.NoType, match="a ptr has no place in a map"):
        abigen.generate(compiled(header, code, tmp_path), header)


def test_what_is_no_object_says_what_is_wanted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text").write_text("hello", encoding="ascii")
    assert abigen.main([str(tmp_path / "text")]) == 1
    assert "no 64-bit ELF file; compile it with clang -target bpf -g" in capsys.readouterr().err
    assert abigen.main([]) == 64


@pytest.mark.parametrize(
    ("name", "values", "flags"),
    [
        ("side", [0, 1], False),
        ("choice", [1, 2], False),
        ("setting_flag", [1], True),
        ("state", [1, 2, 4, 8], True),
        ("choice", [1, 2, 3], False),
    ],
)
def test_when_numbers_are_flags(name: str, values: list[int], flags: bool) -> None:
    assert abigen.is_flags(name, values) is flags


# ---- what it wrote ----


def test_verdicts_are_numbered_from_zero_without_a_gap() -> None:
    assert [verdict.value for verdict in abi.Verdict] == list(range(len(abi.Verdict)))
    assert abi.Cpu.verdict.size == len(abi.Verdict) * ctypes.sizeof(abi.Tally)


def test_every_declared_type_is_there() -> None:
    names = abigen.declared(abigen.HEADER.read_text(encoding="utf-8"))
    assert len(names) > 30
    assert [abigen.camel(name) for _, name in names if not hasattr(abi, abigen.camel(name))] == []


def test_the_typed_maps_are_those_of_maps_h() -> None:
    source = (abigen.HEADER.parent / "maps.h").read_text(encoding="utf-8")
    shared = set(re.findall(r'(\w+) SEC\("\.(?:maps|data\.\w+)"\);', source))
    assert set(mapset.names()) <= shared
    assert set(mapset.SETTING) <= set(mapset.names())
    assert set(mapset.names()) >= mapset.CONFIGURATION


# ---- what the structures can do ----


def test_structures_are_values() -> None:
    one, same, other = (abi.Health(id=1), abi.Health(id=1), abi.Health(id=2))
    assert one == same
    assert one != other
    assert len({one, same, other}) == 2
    assert abi.Health.from_bytes(bytes(one)) == one
    assert one != abi.FrontendMark.ECHO


def test_a_copy_does_not_change_with_the_original() -> None:
    original = abi.Backend(id=1)
    copy = abi.Backend.from_bytes(bytes(original))
    original.id = 2
    assert copy.id == 1


def test_bytes_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match="Health is 8 bytes, not 7"):
        abi.Health.from_bytes(bytes(7))


def test_arrays_take_bytes_and_lists() -> None:
    key = abi.Frontend6Key(addr=bytes(range(16)))
    assert bytes(key.addr) == bytes(range(16))
    service = abi.Service(pools=[1, 2])
    assert list(service.pools)[:3] == [1, 2, 0]
    with pytest.raises((RuntimeError, TypeError, IndexError, ValueError)):
        abi.Backend(dmac=bytes(7))


def test_text_stays_text() -> None:
    assert abi.Meta(commit=b"deadbeef").commit == b"deadbeef"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (
            abi.Frontend4Key(addr=0xC000020A, port=443, proto=6),
            "Frontend4Key(addr=192.0.2.10, port=443, proto=6)",
        ),
        (
            abi.Frontend6Key(addr=bytes([0x20, 1, *bytes(13), 1]), port=53, proto=17),
            "Frontend6Key(addr=2001::1, port=53, proto=17)",
        ),
        (abi.Address(v4=0x0A000001), "Address(10.0.0.1)"),
    ],
)
def test_what_is_seen_in_a_failing_test_can_be_read(value: object, said: str) -> None:
    assert repr(value) == said
    assert "dmac=02:00:00:00:00:01" in repr(abi.Backend(dmac=b"\x02\0\0\0\0\x01"))
