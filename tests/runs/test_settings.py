"""Settings are compared by dotted keys."""

from mlfinetune.runs.settings import flatten_keys, leave_out


def test_a_nested_config_becomes_flat() -> None:
    """MLflow's parameters have no levels."""
    assert flatten_keys({"a": {"b": {"c": 1}, "d": [2]}, "e": None}) == {
        "a.b.c": 1,
        "a.d": [2],
        "e": None,
    }


def test_keys_are_left_out_with_those_below() -> None:
    """A key that merely begins alike stays."""
    flat = {"eval": 1, "eval.ap": 2, "evaluated": 3, "train.eval": 4}
    assert leave_out(flat, ["eval"]) == {"evaluated": 3, "train.eval": 4}
