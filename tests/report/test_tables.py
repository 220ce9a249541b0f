"""The text of tables."""

from multas_ray.report.tables import by_source, class_table, metric_table, table_text

METRICS = {"det/AP": 20.0, "det/AP/cat": 30.0, "seg/IoU/cat": 50.0, "score": 70.0, "step": 10, "loss/total": 1.0}


def test_a_table_has_a_column_for_every_key_and_empty_cells_for_missing_values() -> None:
    rows = [{"name": "a", "small": 0.01234, "large": 12.345}, {"name": "b", "count": 3, "small": None}]
    assert table_text(rows) == (["name", "small", "large", "count"], [["a", "0.0123", "12.35", ""], ["b", "", "", "3"]])
    assert table_text([]) == ([], [])


def test_metrics_over_all_classes_and_by_class_have_a_table_each() -> None:
    columns = {"final": METRICS, "best": {"det/AP": 21.0, "det/AP/dog": 9.0}}
    assert metric_table(columns) == [
        {"metric": "det/AP", "final": 20.0, "best": 21.0},
        {"metric": "score", "final": 70.0, "best": ""},
        {"metric": "step", "final": 10, "best": ""},
    ]
    assert class_table(columns) == [
        {"class": "cat", "det/AP final": 30.0, "seg/IoU final": 50.0},
        {"class": "dog", "det/AP best": 9.0},
    ]


def test_images_in_which_a_class_was_looked_for_stand_beside_its_score() -> None:
    metrics = {"det/AP/cat": 30.0, "det/images/cat": 5.0, "det/images/dog": 0.0}
    assert class_table({"val": metrics}) == [
        {"class": "cat", "det/AP val": 30.0, "det/images val": 5},
        {"class": "dog", "det/images val": 0},
    ]


def test_metrics_of_several_data_sets_are_told_apart() -> None:
    metrics = METRICS | {"street/det/AP": 1.0, "street/det/AP/a/b": 2.0, "scenes/seg/mIoU": 3.0, "time/step_s": 1.0}
    assert by_source(metrics) == {"street": {"det/AP": 1.0, "det/AP/a/b": 2.0}, "scenes": {"seg/mIoU": 3.0}}
