"""The threads of PyTorch: kernels run on them, as many as `torch.set_num_threads` says."""

from __future__ import annotations

from pathlib import Path

import torch

from isostep.engines.threads import Crew

_LIBRARIES = sorted((Path(torch.__file__).parent / "lib").glob("*torch_cpu.*"))
CREW = Crew(next(iter(_LIBRARIES), None), torch.get_num_threads, "torch.get_num_threads()")
