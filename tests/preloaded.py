"""What takes seconds to import and is not ours: a process that is forked from one that has it starts at once."""

import lightning.pytorch  # noqa: F401
import timm  # noqa: F401
import torch  # noqa: F401
import transformers.modeling_utils  # noqa: F401
