"""Check the machine code of the Triton kernels, compiled ahead of time without a GPU."""

from __future__ import annotations

from typing import Any

import pytest
from support.triton_compile import Report, compile_all
from support.triton_variants import SHAPES, SLOW, VARIANTS, formulas_named

pytest.importorskip("fastkd.backends.triton.launch", exc_type=ImportError)

import triton

# Triton's compiler before 3.8 spills up to this many bytes, but only in calls with metrics or records.
OLD = tuple(int(part) for part in triton.__version__.split(".")[:2]) < (3, 8)
SPILLED = {"metrics": 72, "statistics": 8}


@pytest.fixture(scope="module")
def compiled() -> Report:
    return compile_all("usual")


@pytest.fixture(scope="module")
def shapes() -> Report:
    return compile_all("shapes")


def fits(usage: dict[str, Any], spills: int = 0) -> None:
    assert usage["spills"] <= spills
    assert usage["registers"] <= usage["allowed"]
    assert usage["shared"] <= 2048  # used only for reductions across threads


@pytest.mark.parametrize(
    ("target", "name"), [(target, name) for target in VARIANTS for name in VARIANTS[target]]
)
def test_fits_registers(compiled: Report, target: str, name: str) -> None:
    if target not in compiled:
        pytest.skip(f"this Triton cannot link for {target}")
    fits(compiled[target][name], SPILLED.get(name, 0) if OLD else 0)


@pytest.mark.slow
@pytest.mark.parametrize(("target", "name"), [(target, name) for target in SLOW for name in SLOW[target]])
def test_every_shape_fits(shapes: Report, target: str, name: str) -> None:
    if target not in shapes:
        pytest.skip(f"this Triton cannot link for {target}")
    fits(shapes[target][name])


def sweeps(usage: dict[str, Any], divergence: str) -> list[dict[str, float]]:
    """The loops over whole tiles, one for each sweep, in order."""
    found: list[dict[str, float]] = usage["tiles"]
    assert len(found) == (3 if formulas_named(divergence).has_sums else 2), usage["loops"]
    return found


# Upper bounds for the instructions per column in each sweep, a little above the present counts. With its four
# schedulers a multiprocessor issues 128 a clock.
BUDGETS = {
    "forward_kl-bf16": (16.5, 16.5),
    "forward_kl-fp32": (15.5, 15.0),
    "tvd-bf16": (12.5, 16.5, 21.5),
    "tvd-fp32": (11.5, 15.0, 19.5),
    "symmetric_jsd-bf16": (12.5, 34.0, 37.5),
    "symmetric_jsd-fp32": (11.5, 32.0, 34.5),
}


@pytest.mark.parametrize("name", BUDGETS)
def test_instructions_per_column(compiled: Report, name: str) -> None:
    divergence, _, kind = name.partition("-")
    size = 4 if kind == "fp32" else 2
    for index, (sweep, most) in enumerate(
        zip(sweeps(compiled["sm_90"][name], divergence), BUDGETS[name], strict=True)
    ):
        assert sweep["all"] <= most
        # One exponential for each side; JSD's reciprocal is a third special function.
        assert sweep["special"] == (3 if divergence == "symmetric_jsd" and index > 0 else 2)
        assert sweep["loads"] == 2 * sweep["columns"] * size / 16
        assert sweep["narrow loads"] == sweep["narrow stores"] == 0
        last = index == len(BUDGETS[name]) - 1
        assert sweep["stores"] == (sweep["columns"] * size / 16 if last else 0)
        assert sweep["loads before use"] >= 2  # both sides' loads are issued before either is used


def moves_16_bytes(usage: dict[str, Any]) -> None:
    """Assert that the first sweep and the last, which alone stores, access whole tiles 16 bytes at a time."""
    tiles = usage["tiles"]
    assert len(tiles) >= 2 and tiles[-1]["stores"] > 0
    assert all(tile["narrow loads"] == tile["narrow stores"] == 0 for tile in (tiles[0], tiles[-1]))


def test_16_byte_accesses(compiled: Report) -> None:
    for target, name in (
        ("sm_90", "forward_kl-loaded"),
        ("sm_90", "jsd-loaded"),
        ("sm_80", "forward_kl-bf16"),
    ):
        moves_16_bytes(compiled[target][name])
    if "gfx942" in compiled:
        assert compiled["gfx942"]["forward_kl-bf16"]["wide loads"] > 0


def test_16_byte_accesses_in_rows_of_an_odd_vocabulary(compiled: Report) -> None:
    """Rows of an odd vocabulary begin between 16-byte boundaries, but 16 bytes are accessed at a time."""
    moves_16_bytes(compiled["sm_90"]["odd vocabulary"])


@pytest.mark.slow
@pytest.mark.parametrize(("target", "name"), [(t, n) for t in ("sm_80", "sm_90") for n in SHAPES])
def test_16_byte_accesses_of_every_shape(shapes: Report, target: str, name: str) -> None:
    moves_16_bytes(shapes[target][name])


def test_batch_sizes_select_no_variant() -> None:
    """No argument that depends on the batch is a compile-time constant or specialised."""
    from fastkd.backends.triton.host import alignment
    from fastkd.backends.triton.kernel import UNSPECIALISED, dense_rows_kernel

    names = dense_rows_kernel.arg_names
    assert "rows" not in names and set(UNSPECIALISED) <= set(names)
    if hasattr(dense_rows_kernel, "params"):  # an interpreted kernel has none
        assert {p.name for p in dense_rows_kernel.params if p.do_not_specialize} == set(UNSPECIALISED)
    for columns in (50_257, 128_256):
        for width in (4, 8):
            # One row (stride 0), many rows, and the rows of a (batch, length, columns) tensor.
            found = [
                alignment(width, columns, dict.fromkeys(("_S", "_T"), strides))
                for strides in ((0, 0, 1), (0, columns, 1), (7 * columns, columns, 1))
            ]
            assert found == [{"PHASED": columns == 50_257, "WIDE_S": True, "WIDE_T": True}] * 3


def test_a_teacher_that_begins_elsewhere_is_not_wide() -> None:
    """Rows at other distances from a 16-byte boundary than the student's get no wide accesses."""
    from fastkd.backends.triton.host import alignment

    found = alignment(8, 50_257, {"_S": (0, 50_257, 1), "_T": (0, 50_304, 1), "_GS": (0, 50_257, 2)})
    assert found == {"PHASED": True, "WIDE_S": True, "WIDE_T": False, "WIDE_GS": False}
    found = alignment(8, 151_936, {"_S": (0, 151_936, 1), "_T": (0, 152_064, 1)})
    assert found == {"PHASED": False, "WIDE_S": True, "WIDE_T": True}
