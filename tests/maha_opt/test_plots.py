"""Summaries and the picture made of them."""

import csv
import math
from dataclasses import asdict

import pytest

from maha_opt.cells import Cell
from maha_opt.summary import rates, read_csv, summarise

mpl = pytest.importorskip("matplotlib")
mpl.use("Agg")
import matplotlib.image  # noqa: E402
import matplotlib.pyplot as plt  # noqa: E402

from maha_opt.plots import accuracy_against_time, save_picture  # noqa: E402

RATE = {"convex": 0.9, "nash": 0.95}


def ok(kind, solver, error, micros, seed=0, steps=None, **values):
    gradient = "unrolled" if steps else "implicit"
    return Cell(
        kind, solver, gradient, steps, seed, problems=10, covered=10, smooth=10, seconds_per_problem=micros * 1e-6,
        error_weights_max=error, error_weights_mean=error, error_gradient_q=error, unconverged=0, **values,
    )  # fmt: skip


def table():
    cells = []
    for kind in ("convex", "nash"):
        for seed in range(3):
            cells += [
                ok(kind, "cvxpylayers", None, 2000, seed),
                ok(kind, "pivot", 1e-11, 2 + seed, seed),
                ok(kind, "best_response:sweep=gauss_seidel", 1e-9, 300, seed),
                *(ok(kind, "projected_gradient", RATE[kind] ** k, 3 * k, seed, k) for k in (5, 20, 80)),
            ]
            cells.append(Cell(kind, "softmax", "implicit", None, seed, "not run", reason="takes the Simplex only"))
            cells.append(Cell(kind, "scipy", "implicit", None, seed, "failed", reason="ValueError: no", traceback="…"))
    return [asdict(cell) for cell in cells]


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def test_seeds_are_combined():
    rows = summarise(table())
    assert [row.solver for row in rows if row.kind == "nash"][:2] == ["cvxpylayers", "pivot"]
    pivot = next(row for row in rows if row.solver == "pivot")
    assert pivot.statuses == ("ok",) * 3
    assert pivot.values["problems"] == 30
    assert pivot.values["seconds_per_problem"] == pytest.approx(3e-6)
    softmax = next(row for row in rows if row.solver == "softmax")
    assert not softmax.measured
    assert softmax.reasons == ("takes the Simplex only",)
    assert "error_weights_max" not in softmax.values


def test_the_worst_seed_counts_and_nan_is_worst():
    rows = summarise(asdict(ok("convex", "pivot", error, 1, seed)) for seed, error in enumerate((1e-9, 1e-3, 1e-6)))
    assert rows[0].values["error_weights_max"] == 1e-3
    rows = summarise(asdict(ok("convex", "pivot", error, 1)) for error in (1e-9, math.nan, 1e-6))
    assert math.isnan(rows[0].values["error_weights_max"])


def test_rates_are_geometric_means_over_the_steps_the_reference_can_judge():
    found = {(rate.kind, rate.solver): rate for rate in rates(table())}
    assert set(found) == {(kind, "projected_gradient") for kind in RATE}
    for kind, factor in RATE.items():
        rate = found[kind, "projected_gradient"]
        assert (rate.first, rate.last, rate.seeds) == (5, 80, 3)
        assert rate.weights == pytest.approx((factor,) * 3)
        assert rate.gradient == pytest.approx((factor,) * 3)
    fast = [asdict(ok("convex", "projected_gradient", 0.5**k, k, steps=k)) for k in (5, 20, 80)]
    assert rates(fast)[0].last == 20


def test_a_csv_file_says_the_same(tmp_path):
    file = tmp_path / "results.csv"
    records = table()
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, records[0])
        writer.writeheader()
        writer.writerows(records)
    assert summarise(read_csv(file)) == summarise(records)
    assert rates(read_csv(file)) == rates(records)
    assert len(accuracy_against_time(file)) == 2


def test_there_is_a_panel_for_each_kind_with_units_on_its_axes():
    axes = accuracy_against_time(table())
    assert [axis.get_title() for axis in axes] == ["convex problems", "nash problems"]
    for axis in axes:
        assert (axis.get_xscale(), axis.get_yscale()) == ("log", "log")
        assert "µs" in axis.get_xlabel()
    assert "error of the weights" in axes[0].get_ylabel()
    labels = [text.get_text() for text in axes[0].figure.legends[0].get_texts()]
    assert "pivot" in labels
    assert "cvxpylayers (reference)" in labels
    assert {text.get_text() for text in axes[0].texts} == {"5", "20", "80"}


def test_points_lie_where_the_table_says():
    axis = accuracy_against_time([record for record in table() if record["kind"] == "nash"])[0]
    drawn = [tuple(zip(*line.get_data(), strict=True)) for line in axis.lines]
    curve = tuple((pytest.approx(3 * k), pytest.approx(RATE["nash"] ** k)) for k in (5, 20, 80))
    assert curve in drawn
    assert ((pytest.approx(3), pytest.approx(1e-11)),) in drawn
    assert [pytest.approx(2000)] * 2 in [list(line.get_xdata()) for line in axis.lines]  # the reference's time


def test_it_draws_on_given_axes():
    axes = plt.subplots(1, 2)[1]
    assert accuracy_against_time(table(), axes) == list(axes)
    assert all(axis.get_legend() is not None for axis in axes)
    one = plt.subplots()[1]
    convex = [record for record in table() if record["kind"] == "convex"]
    assert accuracy_against_time(convex, one) == [one]
    with pytest.raises(ValueError, match="convex, nash"):
        accuracy_against_time(table(), one)


def test_a_data_frame_will_do():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(table())
    drawn, expected = accuracy_against_time(frame), accuracy_against_time(table())
    for axis, other in zip(drawn, expected, strict=True):
        assert [line.get_xydata().tolist() for line in axis.lines] == [
            line.get_xydata().tolist() for line in other.lines
        ]


def test_nothing_to_draw_is_an_error():
    with pytest.raises(ValueError, match="nothing to draw"):
        accuracy_against_time([record for record in table() if record["solver"] in ("softmax", "cvxpylayers")])


def test_the_picture_is_not_blank(tmp_path):
    path = tmp_path / "accuracy.png"
    save_picture(table(), path)
    pixels = matplotlib.image.imread(path)
    assert pixels.shape[0] >= 600
    assert pixels.shape[1] >= 1200
    assert 0.01 < (pixels[..., :3].mean(-1) < 0.95).mean() < 0.5
    assert not plt.get_fignums()
