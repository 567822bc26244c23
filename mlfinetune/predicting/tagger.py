"""A tagger for pictures: the door of `predict`, and of Python.

batches of decoded pictures -> predict_batches -> Predictions
"""

from collections.abc import Iterable, Iterator

from mlfinetune.data.batches.batch import Batch
from mlfinetune.metrics.logits import sigmoid
from mlfinetune.metrics.types import Prediction
from mlfinetune.predicting.backend import Backend
from mlfinetune.runtime.device import oom_as_device_error


class Tagger:
    """Multi-label tagger, ready to predict.

    Attributes:
        backend: computes; it holds what its file says.
    """

    def __init__(self, backend: Backend) -> None:
        """Predict with a backend of `open_backend`."""
        self.backend = backend

    def predict_batches(
        self, batches: Iterable[tuple[list[str], Batch]]
    ) -> Iterator[list[Prediction]]:
        """Yield the predictions of each batch, one for each name, in order.

        Args:
            batches: the names of pictures, and the pictures; indices are places among the names.

        Raises:
            DeviceError: the device has too little memory.
        """
        for names, batch in batches:
            yield self._predict_batch(names, batch)

    def _predict_batch(self, names: list[str], batch: Batch) -> list[Prediction]:
        """Return one Prediction for each name; a picture that failed has its reason."""
        rows: dict[int, Prediction] = {
            failure.index: Prediction(names[failure.index], None, failure.reason)
            for failure in batch.failures
        }
        if len(batch.indices):
            with oom_as_device_error():
                logits = self.backend.compute_logits(batch.images).numpy()
            probabilities = sigmoid(self.backend.decision.calibrate(logits))
            for index, row in zip(batch.indices.tolist(), probabilities, strict=True):
                rows[index] = Prediction(names[index], row)
        return [rows[index] for index in range(len(names))]
