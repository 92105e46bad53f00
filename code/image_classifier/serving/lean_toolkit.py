"""SageMaker's inference toolkit without what it imports for what is never done here.

It wants boto3 for pip from CodeArtifact, and numpy and scipy for handlers of its own. With nothing in their place the
server starts sooner, and an image can do without them.
"""

from __future__ import annotations

import sys
from types import ModuleType

for _name in ("boto3", "sagemaker_inference.default_handler_service"):
    sys.modules.setdefault(_name, ModuleType(_name))

from sagemaker_inference import environment, model_server  # noqa: E402  # after the above

__all__ = ["environment", "model_server"]
