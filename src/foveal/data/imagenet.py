"""The classes of the ImageNet challenge of 2012, which pretrained networks tell apart."""

from __future__ import annotations

from importlib import resources


def imagenet_classes() -> tuple[str, ...]:
    """Names of the 1,000 classes in their usual order, that of their WordNet identifiers; each once.

    ``data/imagenet/README.md`` names the source and its licence.
    """
    table = (resources.files("foveal.data") / "imagenet" / "classes.tsv").read_text(encoding="utf-8")
    return tuple(line.partition("\t")[2] for line in table.splitlines())
