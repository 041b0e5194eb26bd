"""The tuning methods, one file each.

A new method is a new file with a subclass of `ChatMethod`, named in `AnyMethod`. The recipe's
schema, `--help` and the checks then know it. The report also needs its name in
`report/strings/common.json` and an explanation; CONTRIBUTING.md shows the whole change.
"""

from __future__ import annotations

from tarazu.chat.methods.base import Base
from tarazu.chat.methods.dora import DoRA
from tarazu.chat.methods.first_last_layers import Layers
from tarazu.chat.methods.loha import LoHa
from tarazu.chat.methods.lora import LoRA
from tarazu.chat.methods.p_tuning import PTuning
from tarazu.chat.methods.prefix_tuning import PrefixTuning
from tarazu.chat.methods.prompt_tuning import PromptTuning
from tarazu.chat.methods.rslora import RsLoRA

AnyMethod = Base | PromptTuning | PrefixTuning | PTuning | LoRA | RsLoRA | DoRA | LoHa | Layers
