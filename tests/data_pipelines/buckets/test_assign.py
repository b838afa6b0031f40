import numpy as np
import pytest

from data_pipelines.buckets.assign import RowRuns, choose_canvas

SQUARE, WIDE, SMALL = (64, 64), (48, 96), (32, 32)


def choose(size: tuple[int, int], *canvases: tuple[int, int], upsample: bool = False) -> tuple[str, ...] | str:
    views = {f"{h}x{w}": (("video", 0, 0, h, w),) for h, w in canvases}
    areas = {f"{h}x{w}": h * w for h, w in canvases}
    return choose_canvas((("video", *size),), views, areas, upsample=upsample)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((64, 64), "64x64"),  # its own size is not enlarged
        ((480, 480), "64x64"),  # of two squares, the larger
        ((60, 60), "32x32"),  # the larger square would enlarge it
        ((480, 854), "48x96"),  # nearest aspect
        ((47, 96), "32x32"),  # the wide canvas is one row too high
        ((854, 480), "64x64"),  # upright: square is nearer than wide, and the larger of them
    ],
)
def test_canvas_is_the_largest_of_the_nearest_aspect_that_enlarges_nothing(
    size: tuple[int, int], expected: str
) -> None:
    assert choose(size, SQUARE, WIDE, SMALL) == (expected,)


def test_camera_smaller_than_every_bucket_is_unfit_unless_it_may_be_enlarged() -> None:
    reason = choose((24, 40), SQUARE, WIDE, SMALL)
    assert isinstance(reason, str)
    assert "video of 24x40" in reason
    assert choose((24, 24), SQUARE, WIDE, SMALL, upsample=True) == ("32x32",)
    assert choose((20, 40), SQUARE, WIDE, SMALL, upsample=True) == ("48x96",)


def test_every_view_must_fit() -> None:
    views = {"large": (("a", 0, 0, 32, 32), ("b", 0, 32, 32, 32)), "small": (("a", 0, 0, 16, 16), ("b", 0, 16, 16, 16))}
    areas = {"large": 32 * 64, "small": 16 * 32}
    assert choose_canvas((("a", 32, 32), ("b", 32, 32)), views, areas, upsample=False) == ("large",)
    assert choose_canvas((("a", 32, 32), ("b", 31, 32)), views, areas, upsample=False) == ("small",)
    assert choose_canvas((("a", 32, 32),), views, areas, upsample=False) == ("large",)  # b is missing: black


def test_runs_of_rows_are_joined_and_located() -> None:
    rows = RowRuns([(0, 2), (2, 3), (7, 0), (9, 1), (12, 2)])
    assert len(rows) == 8
    np.testing.assert_array_equal(rows.locate(np.arange(8)), [0, 1, 2, 3, 4, 9, 12, 13])
    assert rows.locate(5) == 9
    assert len(RowRuns([])) == 0
