"""A cell survives what data sets are like."""

import pyarrow as pa

from pipeline_lib.metrics.cells import evaluate
from pipeline_lib.records import Cell, predictions_schema


def test_a_class_without_test_images_has_no_accuracy():
    """As in Birdsnap, whose images vanish from the web: the cell is written and read again, the class is empty."""
    tuned = pa.FixedSizeListArray.from_arrays(pa.array([0, 0], pa.int32()), 1)
    columns = [["a", "b"], [0, 1], [0, 1], [1, 1], tuned]
    schema = predictions_schema(1)
    table = pa.table([pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)], schema)
    spec = {
        **{"dataset": "birds", "task": "own", "pool": "birds", "strategy": "basic", "clip_filter": False, "loss": "ce"},
        **{"class_names": ["x", "y", "z"], "images_per_class": 4, "seeds": [0], "split": "test"},
        **{"bootstrap_resamples": 100, "generator": "g", "encoder_name": "e", "encoder": "f", "predictions": "p"},
    }
    made = evaluate(spec, table, 8)
    cell = Cell.model_validate_json(made.model_dump_json())
    assert cell == made
    assert cell.zero_shot_per_class == {"x": 0.0, "y": 100.0, "z": None}
    assert cell.tuned_per_class == {"x": 100.0, "y": 0.0, "z": None}
