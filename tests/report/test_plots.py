"""What the figures show: their panels, curves, bars and names; and that a figure becomes a picture."""

import io

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from multas_ray.report import plots, sweep_plots

png = plots.png


@pytest.fixture(autouse=True)
def figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every function here returns its figure in the place of the bytes that are made of it, having made them."""

    def drawn(figure: Figure) -> Figure:
        picture = np.asarray(Image.open(io.BytesIO(png(figure))).convert("L"))
        assert picture.shape == tuple((figure.get_size_inches() * figure.dpi).astype(int)[::-1])
        return figure

    monkeypatch.setattr(plots, "png", drawn)
    monkeypatch.setattr(sweep_plots, "png", drawn)


def curves(axis: Axes) -> dict[str, list[tuple[float, float]]]:
    """The points of each named line."""
    lines = [line for line in axis.get_lines() if not str(line.get_label()).startswith("_")]
    return {line.get_label(): list(zip(*line.get_data(), strict=True)) for line in lines}


def panels(figure: Figure) -> dict[str, Axes]:
    """The axes by their titles; those without are switched off."""
    shown = {axis.get_title(loc="left"): axis for axis in figure.axes if axis.axison}
    assert len(shown) == sum(axis.axison for axis in figure.axes)
    return shown


def key(figure: Figure) -> list[str]:
    """The names in a figure's key."""
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def bars(axis: Axes) -> dict[str, list[tuple[str, float]]]:
    """The bars of each run: class and height."""
    classes = [label.get_text() for label in axis.get_xticklabels()]
    found = {}
    for container in axis.containers:
        middles = [bar.get_x() + bar.get_width() / 2 for bar in container]
        names = [classes[int(np.argmin(np.abs(axis.get_xticks() - middle)))] for middle in middles]
        found[container.get_label()] = list(zip(names, [bar.get_height() for bar in container], strict=True))
    return found


def test_a_picture_shows_what_is_drawn() -> None:
    figure = Figure(figsize=(2, 1), dpi=100)
    blank = np.asarray(Image.open(io.BytesIO(png(figure))).convert("L"))
    assert blank.shape == (100, 200)
    assert (blank == 255).all()
    figure.subplots().plot([0, 1], [0, 1], color="black")
    assert (np.asarray(Image.open(io.BytesIO(png(figure))).convert("L")) < 50).any()


def test_learning_curves_have_a_panel_a_metric_and_a_curve_a_run() -> None:
    one = [
        {"step": 1, "loss/seg": 2.0, "loss/total": 3.0, "lr": 0.001},
        {"step": 1, "det/AP": 10.0, "seg/IoU/cat": 5.0},
        {"step": 2, "loss/total": 1.0, "loss/seg": 0.5},
        {"step": 2, "det/AP": 30.0},
    ]
    two = [{"step": 2, "loss/total": 4.0, "loss/kd_det": 1.0}]
    figure = plots.learning_curves({"one": one, "$two^$": two, "three": []})
    found = panels(figure)
    assert list(found) == ["det/AP [%]", "loss/total", "loss/seg", "loss/kd_det", "learning rate"]
    assert curves(found["det/AP [%]"]) == {"one": [(1, 10), (2, 30)]}
    assert curves(found["loss/total"]) == {"one": [(1, 3), (2, 1)], "$two^$": [(2, 4)]}
    assert curves(found["loss/kd_det"]) == {"$two^$": [(2, 1)]}
    assert curves(found["learning rate"]) == {"one": [(1, 0.001)]}
    assert key(figure) == ["one", "$two^$"], "what has a curve"
    colours = {line.get_label(): line.get_color() for line in found["loss/total"].get_lines()}
    assert colours["one"] != colours["$two^$"]
    assert colours["one"] == found["det/AP [%]"].get_lines()[0].get_color()
    assert all(axis.get_ylim()[0] == 0 for axis in found.values())


@pytest.mark.parametrize("runs", [{}, {"one": []}], ids=["no run", "no step"])
def test_learning_curves_of_nothing_are_empty(runs: dict) -> None:
    figure = plots.learning_curves(runs)
    assert all(curves(axis) == {} for axis in figure.axes)
    assert key(figure) == []


def test_the_mean_curve_of_runs_is_drawn_where_all_of_them_were_evaluated() -> None:
    runs = [[{"step": 1, "det/AP": 10.0}, {"step": 2, "det/AP": 20.0}], [{"step": 2, "det/AP": 30.0}]]
    found = panels(plots.mean_curves({"kd": runs, "none": []}))
    assert {title: curves(axis) for title, axis in found.items()} == {"det/AP [%]": {"kd": [(2, 25)]}}


def test_class_bars_have_a_panel_a_task_and_a_bar_a_run() -> None:
    one = {"det/AP/cat": 20.0, "det/AP/dog": 40.0, "det/AP": 30.0, "seg/IoU/cat": 50.0}
    figure = plots.class_bars({"one": one, "$seg^$ only": {"seg/IoU/$^$": 3.0}})
    found = {title: bars(axis) for title, axis in panels(figure).items()}
    assert list(found) == ["det/AP by class [%]", "seg/IoU by class [%]"]
    assert found["det/AP by class [%]"]["one"] == [("cat", 20), ("dog", 40)]
    np.testing.assert_equal(found["det/AP by class [%]"]["$seg^$ only"], [("cat", np.nan), ("dog", np.nan)])
    np.testing.assert_equal(found["seg/IoU by class [%]"]["$seg^$ only"], [("cat", np.nan), ("$^$", 3)])
    assert key(figure) == ["one", "$seg^$ only"]
    assert not panels(plots.class_bars({}))


def test_class_differences_compare_networks_of_the_same_seed() -> None:
    arms = {"kd": {"det/AP/cat": {1: 33.0}, "det/AP": {1: 9.0}}}
    figure = plots.class_differences(arms, {"det/AP/cat": {0: 10.0, 1: 30.0}}, ["first", "kd"])
    [(title, axis)] = panels(figure).items()
    assert title == "det/AP by class, difference"
    assert bars(axis) == {"kd": [("cat", 3)]}
    assert axis.containers[0][0].get_facecolor() != axis.containers[0][0].get_edgecolor()
    assert figure.axes[0].patches[0].get_facecolor()[:3] == pytest.approx(rgb(plots.COLORS[1])), "the second arm's"


def rgb(colour: str) -> tuple[float, ...]:
    return tuple(int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))


ARMS = {"plain": {"det/AP": [10.0, 12.0, 14.0]}, "kd": {"det/AP": [20.0, 22.0], "seg/mIoU": [50.0]}}


def test_estimates_show_means_intervals_and_seeds() -> None:
    figure = plots.estimates(ARMS, ["det/AP", "seg/mIoU", "score"])
    found = panels(figure)
    assert list(found) == ["det/AP [%]", "seg/mIoU [%]"], "a metric that nobody has is left out"
    axis = found["det/AP [%]"]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["plain", "kd"]
    means = [container.lines[0].get_xdata()[0] for container in axis.containers]
    assert means == [12, 21]
    # Student's t of two degrees of freedom: 4.303 * 2 / sqrt(3).
    segments = axis.containers[0].lines[2][0].get_segments()
    np.testing.assert_allclose(segments[0][:, 0], [12 - 4.969, 12 + 4.969], atol=1e-3)
    dots = [list(line.get_xdata()) for line in axis.get_lines() if line.get_marker() == "."]
    assert dots == [[10, 12, 14], [20, 22]]


def test_a_trade_off_has_the_arms_means_and_lines_at_the_single_tasks() -> None:
    arms = {
        "plain": {"det/AP": {0: 10.0, 1: 14.0}, "seg/mIoU": {0: 40.0, 1: 42.0}},
        "kd": {"det/AP": {0: 20.0, 1: 22.0}, "seg/mIoU": {0: 50.0, 1: 54.0}},
    }
    figure = plots.trade_off(arms, "det/AP", "seg/mIoU", {"det/AP": {0: 15.0, 1: 17.0}}, ["plain", "kd"])
    [axis] = figure.axes
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("det/AP [%]", "seg/mIoU [%]")
    points = {c.get_label(): (c.lines[0].get_xdata()[0], c.lines[0].get_ydata()[0]) for c in axis.containers}
    assert points == {"plain": (12, 41), "kd": (21, 52)}
    dotted = [line for line in axis.get_lines() if line.get_linestyle() == ":"]
    assert [list(line.get_xdata()) for line in dotted] == [[16, 16]], "no network of segmentation alone, no line"
    assert key(figure) == ["plain", "kd"]


def test_scaling_curves_are_one_a_number_of_replicas_beside_the_students_alone() -> None:
    figure = plots.scaling_curves({1: {2: 22.0, 1: 20.0}, 2: {1: 20.0, 2: 40.0}}, alone=21.0)
    [axis] = figure.axes
    assert curves(axis) == {
        "1 replica": [(1, 20), (2, 22)],
        "2 replicas": [(1, 20), (2, 40)],
        "students alone": [(1, 21), (2, 42)],
    }
    assert key(figure) == ["1 replica", "2 replicas", "students alone"]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["1", "2"]
    assert (axis.get_xscale(), axis.get_yscale()) == ("log", "log")


TRIALS = [
    {"parameters": {"optim.lr": 10.0**-power, "distill.det.on": word}, "value": value}
    for power, word, value in ((4, "all", 30.0), (2, "missing", None), (3, "all", 10.0), (2, "missing", 40.0))
]


def test_parallel_coordinates_have_an_axis_a_parameter_and_a_line_a_trial() -> None:
    [axis] = sweep_plots.parallel_coordinates(TRIALS, "score").axes
    assert [label.get_text() for label in axis.get_xticklabels()] == ["optim.lr", "distill.det.on", "score"]
    lines = [list(line.get_ydata()) for line in axis.get_lines() if len(line.get_xdata()) == 3]
    # From the worst to the best; the trial that failed has none.
    np.testing.assert_allclose(lines, [[0.5, 0.25, 0], [0, 0.25, 2 / 3], [1, 0.75, 1]])
    assert {"0.0001", "0.01", "all", "missing", "10", "40"} <= {text.get_text() for text in axis.texts}


def test_the_best_so_far_never_falls() -> None:
    [axis] = sweep_plots.best_so_far(TRIALS, "score").axes
    assert curves(axis) == {"trial": [(1, 30), (3, 10), (4, 40)], "best so far": [(1, 30), (3, 30), (4, 40)]}
    assert axis.get_title(loc="left") == "score"


@pytest.mark.parametrize("draw", [sweep_plots.parallel_coordinates, sweep_plots.best_so_far])
def test_a_search_of_one_trial_has_figures(draw) -> None:
    [axis] = draw(TRIALS[:1], "score").axes
    assert axis.get_lines()
