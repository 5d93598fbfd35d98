"""Translate CUDA sources to C++ for the emulation: inline PTX and shared memory.

An ``asm`` statement becomes a call of the PTX interpreter with the same text, and a ``__shared__`` variable a
reference into the shared memory of the emulated block. Everything else stays as it is.
"""

from __future__ import annotations

import re

_ASM = re.compile(r"\basm\s*(?:volatile\s*)?\(")
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_OPERAND = re.compile(r'\s*"([^"]+)"\s*\((.*)\)\s*', re.DOTALL)
_DYNAMIC = re.compile(r"extern __shared__ ([^;\[\]]+?) (\w+)\[\];")
_SHARED = re.compile(r"__shared__ ([^;\[\]=]+?) (\w+)((?:\[[^;]*\])?);")


def _closing(text: str, start: int) -> int:
    """The position of the parenthesis that closes the one at ``start``."""
    depth, position = 0, start
    while position < len(text):
        string = _STRING.match(text, position)
        if string:
            position = string.end()
            continue
        depth += {"(": 1, ")": -1}.get(text[position], 0)
        if depth == 0:
            return position
        position += 1
    raise ValueError(f"no closing parenthesis: {text[start : start + 60]!r}")


def _split(text: str, separator: str) -> list[str]:
    """The parts of ``text`` between separators that are not in parentheses, brackets or strings."""
    parts, depth, position = [""], 0, 0
    while position < len(text):
        string = _STRING.match(text, position)
        piece = string.group() if string else text[position]
        depth += {"(": 1, "[": 1, ")": -1, "]": -1}.get(piece, 0)
        if piece == separator and depth == 0:
            parts.append("")
        else:
            parts[-1] += piece
        position += len(piece)
    return parts


def _operands(text: str) -> list[str]:
    """The expressions of operands such as ``"r"(address), "l"(from)``."""
    if not text.strip():
        return []
    found = [_OPERAND.fullmatch(part) for part in _split(text, ",")]
    if None in found:
        raise ValueError(f"operands that cannot be translated: {text.strip()}")
    return [match.group(2) for match in found if match]


def _asm(body: str) -> str:
    template, outputs, inputs, _clobbers = [*_split(body, ":"), "", "", ""][:4]
    literal = " ".join(_STRING.findall(template))
    if any('"+' in part for part in (outputs, inputs)):
        raise ValueError(f"an operand that is read and written cannot be translated: {body}")
    out, into = _operands(outputs), _operands(inputs)
    written = ", ".join(f"emulation::output({x})" for x in out)
    read = ", ".join(f"emulation::input({x})" for x in into)
    return (
        f"[&] {{ static const emulation::Program program({literal}, {len(out)}); "
        f"program.run({{{written}}}, {{{read}}}); }}()"
    )


def translate(text: str) -> str:
    """The C++ of a CUDA source."""
    out, position = "", 0
    for match in _ASM.finditer(text):
        end = _closing(text, match.end() - 1)
        out += text[position : match.start()] + _asm(text[match.end() : end])
        position = end + 1
    out += text[position:]
    out = _DYNAMIC.sub(r"\1* const \2 = reinterpret_cast<\1*>(emulation::dynamic_shared());", out)
    return _SHARED.sub(
        r"using \2_type = emulation::Watched<\1>\3; "
        r'\2_type& \2 = emulation::shared_variable<\2_type>("\2", [] {});',
        out,
    )
