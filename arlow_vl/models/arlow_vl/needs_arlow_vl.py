# Copyright 2026 The Arlow-VL authors. Licensed under the Apache License, Version 2.0.
"""Stands in a vision-language model's folder for its code, which is the package arlow-vl."""

import arlow_vl  # noqa: F401 - without the package, transformers stops here and names it

raise ImportError("the classes of this folder are in the package arlow-vl; `import arlow_vl` before the Auto classes")
