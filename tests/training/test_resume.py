"""Changes of settings and data are named, whatever version wrote the state."""

from mlfinetune.config import Config
from mlfinetune.training.resume import collect_settings, list_changes


def settings(**pos_weight: float) -> dict[str, object]:
    """Return the settings of a run with these weights of labels."""
    loss = {"pos_weight": pos_weight or None}
    return collect_settings(Config.model_validate({"data": {"train": "."}, "loss": loss}))


def test_a_weight_of_a_label_that_changed_is_named() -> None:
    """Alone, and not as the whole mapping; `data` in its name makes it no data."""
    before, now = settings(red=2, sky=1), settings(red=3, **{"my data": 4})
    assert list_changes(before, now) == [
        "loss.pos_weight.my data: not set before, 4.0 now",
        "loss.pos_weight.red: 2.0 before, 3.0 now",
        "loss.pos_weight.sky: 1.0 before, not set now",
    ]
    assert list_changes(settings(), settings(red=3)) == [
        "loss.pos_weight.red: not set before, 3.0 now"
    ]
    assert list_changes({"training data": "a"}, {"training data": "b"}) == [
        "training data: other names, labels or targets than before"
    ]


def test_a_state_of_an_older_version_is_the_same_run() -> None:
    """It has mappings whole, and lacks the settings that came later."""
    now = settings(red=3)
    older = {key: value for key, value in now.items() if not key.startswith("loss.pos_weight")}
    older |= {"loss.pos_weight": {"red": 3.0}, "data.rename_labels": {}}
    del older["train.ema"]
    assert list_changes(older, now) == []
    assert list_changes(settings(), settings()) == []
