"""What makes a model servable: its signature and state pairs, the lift, the self-test, and running it."""

import os

# When it is loaded, ONNX Runtime reads whether it may call its maker; else it keeps an id of the machine, and does.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from recurra.models.config import ModelConfig
from recurra.models.placement import Stray
from recurra.models.pool import Pool
from recurra.models.pool_program import PoolProgram
from recurra.models.program import Program
from recurra.models.provider import Choice, choose
from recurra.models.refusal import ModelRefused
from recurra.models.repository import Model, find, load, wanted
from recurra.models.selftest import SelfTest
from recurra.models.signature import Signature, StateSpec, TensorSpec
from recurra.models.start import Start

__all__ = [
    "Choice",
    "Model",
    "ModelConfig",
    "ModelRefused",
    "Pool",
    "PoolProgram",
    "Program",
    "SelfTest",
    "Signature",
    "Start",
    "StateSpec",
    "Stray",
    "TensorSpec",
    "choose",
    "find",
    "load",
    "wanted",
]
