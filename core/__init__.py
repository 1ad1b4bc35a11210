"""The method: video, masks, model, losses, checkpoints. Never imports Ray, MLflow, Streamlit or click."""
