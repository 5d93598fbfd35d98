"""Check what a finished wheel contains and what it needs of the system.

    python wheels/check.py dist/fastkd-*.whl

Needs ``auditwheel``, which brings ``pyelftools`` along; ``wheels/build.py`` calls this script for each wheel.
"""

from __future__ import annotations

import argparse
import io
import re
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

from common import GLIBC, Failure
from elftools.elf.elffile import ELFFile

MEGABYTE = 10**6
MOST_BYTES = {"cpu": 10 * MEGABYTE, "cuda": 60 * MEGABYTE}
# Parts of glibc and GCC's runtime. libtorch is not among them, nor is libstdc++, which is linked in.
LIBRARIES = re.compile(r"(libc|libm|libpthread|libdl|librt|libgcc_s|ld-linux-[\w-]+)\.so\.\d+")


def module_of(archive: zipfile.ZipFile) -> bytes:
    """The compiled module.

    Raises:
        Failure: there is none, or there are several libraries.
    """
    found = [name for name in archive.namelist() if ".so" in Path(name).suffixes]
    if len(found) != 1 or not found[0].startswith("fastkd/_C."):
        raise Failure(f"it should have one compiled module, fastkd/_C, and has {found or 'none'}")
    return archive.read(found[0])


def needed(elf: ELFFile) -> list[str]:
    """The libraries that the module loads."""
    return [tag.needed for tag in elf.get_section_by_name(".dynamic").iter_tags("DT_NEEDED")]


def unversioned(elf: ELFFile) -> list[str]:
    """Undefined functions that come neither from Python nor, in a stated version, from glibc or GCC.

    The linker leaves those undefined that are younger than the glibc that the module was linked for. Weak
    ones may be missing.
    """
    versions = elf.get_section_by_name(".gnu.version")
    found = []
    for index, symbol in enumerate(elf.get_section_by_name(".dynsym").iter_symbols()):
        undefined = symbol["st_shndx"] == "SHN_UNDEF" and symbol["st_info"]["bind"] == "STB_GLOBAL"
        without = versions.get_symbol(index)["ndx"] in ("VER_NDX_LOCAL", "VER_NDX_GLOBAL")
        if symbol.name and undefined and without and not re.match("_?Py", symbol.name):
            found.append(symbol.name)
    return found


def exported(elf: ELFFile) -> list[str]:
    """The names that other libraries of the process can see."""
    symbols = elf.get_section_by_name(".dynsym").iter_symbols()
    return [symbol.name for symbol in symbols if symbol.name and symbol["st_shndx"] != "SHN_UNDEF"]


def version_of(archive: zipfile.ZipFile) -> str:
    """The version in the wheel's metadata.

    Raises:
        Failure: the public part of it is not ``fastkd.__version__``.
    """
    (path,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    stated = str(Parser().parsestr(archive.read(path).decode())["Version"])
    source = archive.read("fastkd/__init__.py").decode()
    (inside,) = re.findall(r'^__version__ = "(.+)"$', source, flags=re.MULTILINE)
    if stated.partition("+")[0] != inside:
        raise Failure(f"its version is {stated}, and fastkd.__version__ is {inside}")
    return stated


def tag_of_auditwheel(wheel: Path) -> str:
    """The oldest system that ``auditwheel show`` finds the wheel to work on."""
    command = [sys.executable, "-m", "auditwheel", "show", str(wheel)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r'platform\s+tag:\s+"(\S+)"', shown)
    if found is None:
        raise Failure(f"auditwheel shows no platform:\n{shown}")
    return found[1]


def version_numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def check(wheel: Path) -> str:
    """A sentence on the wheel.

    Raises:
        Failure: something about it is not as documented.
    """
    with zipfile.ZipFile(wheel) as archive:
        version = version_of(archive)
        elf = ELFFile(io.BytesIO(module_of(archive)))
        foreign = [
            name for name in archive.namelist() if not re.match(r"fastkd/|fastkd-[\w.+]+\.dist-info/", name)
        ]
        if foreign:
            raise Failure(f"it has files outside the package: {foreign[:5]}")
        if not any(name.endswith("licenses/LICENSE") for name in archive.namelist()):
            raise Failure("it lacks the licence")
    kind = "cuda" if "+" in version else "cpu"
    most, glibc = MOST_BYTES[kind], GLIBC[kind]
    size = wheel.stat().st_size
    if size > most:
        raise Failure(f"it has {size / MEGABYTE:.1f} MB, and at most {most / MEGABYTE:.0f} are allowed")
    others = [library for library in needed(elf) if not LIBRARIES.fullmatch(library)]
    if others:
        raise Failure(f"it needs {', '.join(others)}")
    if missing := unversioned(elf):
        raise Failure(f"glibc {glibc} lacks {', '.join(missing)}")
    if exported(elf) != ["PyInit__C"]:
        raise Failure(f"it exports {exported(elf)}, not PyInit__C alone")
    tag = tag_of_auditwheel(wheel)
    found = re.match(r"manylinux_(\d+)_(\d+)_", tag)
    if tag not in wheel.name or found is None or tuple(map(int, found.groups())) > version_numbers(glibc):
        raise Failure(f"auditwheel finds {tag}, which should be in its name and not newer than glibc {glibc}")
    return f"{wheel.name}: {size / MEGABYTE:.1f} MB, {tag}, needs {', '.join(needed(elf))}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("wheels", nargs="+", type=Path)
    options = parser.parse_args(arguments)
    status = 0
    for wheel in options.wheels:
        try:
            print(check(wheel))
        except Failure as failure:
            print(f"{wheel.name}: {failure}")
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
