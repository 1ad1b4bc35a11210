"""The model that MLflow loads and serves: videos in, labels, features, values or people's actions out.

MLflow copies this file beside the weights and runs it when the model is loaded (models from code), with the
copy of the package that was registered with it on the path.
"""

from typing import Any

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PythonModel, PythonModelContext


class Refused(MlflowException):
    """A request that cannot be answered, in a sentence (HTTP 400)."""

    def __init__(self, sentence: str) -> None:
        self.sentence = sentence
        super().__init__(sentence, error_code=1000)  # INVALID_PARAMETER_VALUE

    @property
    def message(self) -> str:
        """The sentence. MLflow's server would put the whole request, a video maybe, in front of it."""
        return self.sentence

    @message.setter
    def message(self, text: str) -> None:
        pass


class VideoModel(PythonModel):
    """A registered checkpoint.

    `mlflow.pyfunc.load_model(uri, model_config={"segments": 5, "crops": 3})` averages a classifier over more
    views of each video than the one it takes by default; `max_mib` limits a video that comes in a request.
    """

    def load_context(self, context: PythonModelContext) -> None:
        """Load the weights once, on the GPU where there is one."""
        import json
        from pathlib import Path

        import torch

        from vmae.core.config import from_dict
        from vmae.core.video.config import DataConfig
        from vmae.core.weights.checkpoint import load_model
        from vmae.experiments.served import Answering

        device = "cuda" if torch.cuda.is_available() else "cpu"
        model, meta = load_model(context.artifacts["checkpoint"])
        model.to(device).eval()
        facts = json.loads(Path(context.artifacts["facts"]).read_text())
        given = context.model_config or {}
        views = {k: v for k, v in given.items() if k in ("segments", "crops")}
        data = from_dict(DataConfig, {**facts["data"], **views})
        limit = {k: float(v) for k, v in given.items() if k == "max_mib"}
        self.answering = Answering(model, meta, data, facts["labels"], device=device, **limit)

    # No return type: MLflow warns of every dict whose values differ in type.
    def predict(  # type: ignore[no-untyped-def]
        self, context: PythonModelContext, model_input: list[Any], params: dict[str, Any] | None = None
    ):
        """A list with one dict for each item, in their order (see `vmae.experiments.served.Answering`).

        Raises MlflowException with a sentence for what cannot be answered.
        """
        from vmae.core.errors import VmaeError

        try:
            return self.answering.answer(list(model_input))
        except VmaeError as e:
            raise Refused(str(e)) from e


mlflow.models.set_model(VideoModel())
