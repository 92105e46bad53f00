"""The training job: channels in, model and metrics out."""
