"""The model that MLflow loads: a list of video paths in, labels or features out.

MLflow copies this file beside the weights and runs it when the model is loaded (models from code), with the
copy of the package that was registered with it on the path.
"""

from typing import Any

import mlflow
from mlflow.pyfunc import PythonModel, PythonModelContext


class VideoModel(PythonModel):
    """A registered checkpoint.

    `mlflow.pyfunc.load_model(uri, model_config={"segments": 5, "crops": 3})` averages a classifier over more
    views of each video than the one it takes by default.
    """

    def load_context(self, context: PythonModelContext) -> None:
        """Load the weights once, on the GPU where there is one."""
        import json
        from pathlib import Path

        import torch

        from vmae.core.config import from_dict
        from vmae.core.video.config import DataConfig
        from vmae.core.weights.checkpoint import load_model

        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model, _ = load_model(context.artifacts["checkpoint"])
        self.model.to(self.device).eval()
        facts = json.loads(Path(context.artifacts["facts"]).read_text())
        self.names: list[str] | None = facts["labels"]
        views = {k: v for k, v in (context.model_config or {}).items() if k in ("segments", "crops")}
        self.data = from_dict(DataConfig, {**facts["data"], **views})

    # No return type: MLflow warns of every dict whose values differ in type.
    def predict(  # type: ignore[no-untyped-def]
        self, context: PythonModelContext, model_input: list[str], params: dict[str, Any] | None = None
    ):
        """A list with one dict for each path, in their order.

        A classifier gives `path`, `label`, `name` (where the classes have names), `probability` of that
        class and `probabilities` of all; a pre-trained model `path` and `features` (mean over tokens, D
        numbers). VideoError names a video that cannot be read.
        """
        import numpy as np

        from vmae.core.measure.evaluate import evaluate
        from vmae.core.measure.probe import extract_features
        from vmae.core.model.classifier import VideoClassifier
        from vmae.core.video.clips import ClipDataset
        from vmae.core.video.samples import Sample

        paths = [str(p) for p in np.asarray(model_input, dtype=object).reshape(-1)]
        samples = [Sample(path=p, label=0) for p in paths]
        if not isinstance(self.model, VideoClassifier):
            dataset = ClipDataset(samples, self.data, "val")
            found = extract_features(self.model, dataset, batch_size=8, device=self.device)
            return [{"path": p, "features": x.tolist()} for p, x in zip(found.paths, found.x, strict=True)]
        dataset = ClipDataset(samples, self.data, "test")
        result = evaluate(
            self.model, dataset, num_classes=self.model.num_classes, batch_size=1, device=self.device
        )
        rows = []
        for p in result.predictions:
            assert p.probs is not None
            label = int(p.probs.argmax())
            row: dict[str, Any] = {"path": p.path, "label": label, "probability": float(p.probs[label])}
            if self.names is not None:
                row["name"] = self.names[label]
            rows.append({**row, "probabilities": p.probs.tolist()})
        return rows


mlflow.models.set_model(VideoModel())
