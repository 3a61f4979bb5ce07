"""Starting from other weights: reading them, matching names with the network's, and saying what fitted."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor, nn

from foveal.checkpoints.layout import read_checkpoint, read_manifest
from foveal.checkpoints.pretrained import PRETRAINED
from foveal.checkpoints.pytorch_file import read_state_dict
from foveal.checkpoints.tensor_file import read_tensor_file
from foveal.checkpoints.tensorflow_import import (
    Training,
    find_name_map,
    import_tensors,
    import_training,
    is_tensorflow,
)
from foveal.checkpoints.untrusted import open_for_reading
from foveal.errors import CheckpointError, RecipeError, suggestion
from foveal.models.timm import PREFIX as TIMM
from foveal.models.timm import read_timm_weights
from foveal.run_folder import RunFolder
from foveal.tensorflow.checkpoint import Checkpoint

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from foveal.recipe.schema import Init

_WRAPPERS: Final = ("module.", "_orig_mod.")  # of DataParallel, and of torch.compile
_OPTIONAL: Final = "num_batches_tracked"  # batch norm counts with it, and computes nothing from it
_AVERAGED: Final = " (averaged weights)"
_RENAME: Final = "rename its tensors with --init-map (init.map)"


@dataclass(frozen=True)
class InitialWeights:
    """Weights as they were read, not yet matched with any network.

    Attributes:
        tensors: on the host, by their names in the file, of any dtype.
        origin: where they are from, for messages.
        sha256: of the file that was read; of averaged weights, of ``model.safetensors`` and
            ``ema.safetensors`` in one. Hexadecimal.
        notes: what was done to get at them, a line each.
        training: of a TensorFlow checkpoint that may be gone on from: the rest of what it says.
        remedy: what can be done where names do not fit.
    """

    tensors: Mapping[str, Tensor]
    origin: str
    sha256: str
    notes: tuple[str, ...] = ()
    training: Training | None = None
    remedy: str = _RENAME

    def averaged(self) -> InitialWeights:
        """The averages in place of the weights that have some, and nothing to go on with."""
        if self.training is None or not self.training.averages:
            return replace(self, training=None)
        tensors, origin = {**self.tensors, **self.training.averages}, self.origin + _AVERAGED
        return replace(self, tensors=tensors, origin=origin, training=None)


@dataclass(frozen=True)
class TransferReport:
    """What became of the weights a network was to start from.

    Attributes:
        origin: where they are from.
        loaded: names of the network's tensors that were loaded.
        skipped: those that keep their first values though the file may have them, and why.
        missing: those that keep their first values because the file has nothing of that name.
        unused: the file's tensors, under its own names, that the network has no place for.
        notes: what was done to the file's names.
    """

    origin: str
    loaded: tuple[str, ...]
    skipped: Mapping[str, str]
    missing: tuple[str, ...]
    unused: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def lines(self) -> Iterator[str]:
        """For people."""
        yield f"starting from {self.origin}: loaded {len(self.loaded)} tensors ({_listed(self.loaded)})"
        yield from (f"  {note}" for note in self.notes)
        for reason in dict.fromkeys(self.skipped.values()):
            names = [name for name, why in self.skipped.items() if why == reason]
            yield f"  skipped, first values kept: {_listed(names, 20)}: {reason}"
        if self.missing:
            yield f"  missing from the file, first values kept: {_listed(self.missing, 20)}"
        if self.unused:
            yield f"  unused tensors of the file: {_listed(self.unused, 20)}"


def load_initial(init: Init, model: str) -> InitialWeights:
    """Read the weights that a recipe's ``init`` names; of a run or a folder, its newest checkpoint.

    Args:
        init: the recipe's table.
        model: the name of the network that they are for, which has a name map for TensorFlow's checkpoints.

    Raises:
        RunError: the run has no checkpoint.
        RecipeError: ``init`` asks for what such a file does not have.
        CheckpointError: they cannot be read, or are not those of ``init.sha256``, if that is set.
    """
    if is_named(name := str(init.path)):
        initial = _read_pretrained(name, init)
    elif _is_ours(init.path):
        initial = _read_folder(init.path, init.weights)
    elif is_tensorflow(init.path):
        initial = _read_tensorflow(init, model)
    elif init.path.is_dir():
        raise CheckpointError(
            f"{init.path}: neither a run (no recipe.toml), nor a checkpoint (no model.safetensors), "
            "nor one of TensorFlow's (no .index file)"
        )
    else:
        initial = _read_file(init)
    if init.sha256 not in (None, initial.sha256):
        raise CheckpointError(
            f"{initial.origin}: is not the file that the run was begun with (its SHA-256 is "
            f"{initial.sha256:.12}..., not {init.sha256:.12}...): put that one back, name it with init.path, "
            "or start anew with --fresh"
        )
    return initial


def fits(model: nn.Module, initial: InitialWeights, init: Init) -> bool:
    """Whether every tensor of a network would be loaded."""
    return not init.skip and all(
        name in initial.tensors and initial.tensors[name].shape == value.shape
        for name, value in model.state_dict().items()
        if isinstance(value, Tensor) and not name.endswith(_OPTIONAL)
    )


def transfer(model: nn.Module, initial: InitialWeights, init: Init, num_classes: int) -> TransferReport:
    """Load weights into the tensors of ``model`` that have their names; nothing is changed before an error.

    The classifier's tensors, whose first dimension is ``num_classes``, are skipped where the file's differ in
    that dimension only. Floating dtypes are converted to the network's.

    Raises:
        RecipeError: a map or a skip matches no name, or maps give two tensors one name.
        CheckpointError: a tensor of the network is not in the file or has another shape (unless
            ``init.partial``); none fits at all; one has a dtype or values that cannot be used.
    """
    own = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    origins, notes = _renamed(initial, init.map, own)
    kept = {name for expression in init.skip for name in _matches(expression, "init.skip", own, "network")}
    chosen: dict[str, Tensor] = {}
    skipped = {name: "init.skip" for name in own if name in kept}
    misshapen: dict[str, str] = {}
    missing: list[str] = []
    for name in (name for name in own if name not in kept):
        if name not in origins:
            if not name.endswith(_OPTIONAL):
                missing.append(name)
            continue
        value, shape = initial.tensors[origins[name]], own[name].shape
        if value.shape == shape:
            chosen[name] = _converted(initial, origins[name], own[name].dtype)
        elif shape[:1] == (num_classes,) and value.ndim and value.shape[1:] == shape[1:]:
            skipped[name] = f"the file's head has {len(value)} outputs, here there are {num_classes}"
        else:
            misshapen[name] = f"{list(value.shape)} in the file, {list(shape)} in the network"
    unused = tuple(origin for name, origin in origins.items() if name not in own)
    if not chosen or ((missing or misshapen) and not init.partial):
        raise CheckpointError(_refusal(initial, missing, misshapen, unused, nothing=not chosen))
    with torch.no_grad():
        for name, value in chosen.items():
            own[name].copy_(value)
    return TransferReport(
        initial.origin, tuple(chosen), skipped | misshapen, tuple(missing), unused, (*initial.notes, *notes)
    )


# ---- reading


def is_named(name: str) -> bool:
    """Whether weights are meant that come with a network, and not a file: a pretrained model's, or timm's."""
    return name in PRETRAINED or name.startswith(TIMM)


def _is_ours(path: Path) -> bool:
    return RunFolder(path).exists() or (path / "model.safetensors").exists()


def _read_folder(path: Path, weights: str) -> InitialWeights:
    """The weights of a run or of one checkpoint."""
    run = RunFolder(path)
    if run.exists():
        averaged = weights == "ema" or (weights == "auto" and run.recipe().ema is not None)
        stored = run.load_checkpoint("latest", ("model", "ema") if averaged else ("model",))
    else:
        averaged = weights == "ema" or (weights == "auto" and "ema" in read_manifest(path).parts)
        stored = read_checkpoint(path, ("model", "ema") if averaged else ("model",))
    tensors = {**stored.tensors["model"], **stored.tensors.get("ema", {})}
    origin = f"{stored.folder}{_AVERAGED if averaged else ''}"
    return InitialWeights(
        tensors, origin, _sha256(stored.folder / f"{part}.safetensors" for part in stored.tensors)
    )


def _read_pretrained(name: str, init: Init) -> InitialWeights:
    """The weights that a package carries."""
    _refuse_averages(init)
    if name.startswith(TIMM):
        tensors, sha256 = read_timm_weights(name)
        return InitialWeights(tensors, name, sha256)
    pretrained = PRETRAINED[name]
    path = pretrained.path()
    return InitialWeights(pretrained.read(), name, _sha256([path]), (f"read from {path}",))


def _read_file(init: Init) -> InitialWeights:
    """The weights in a file."""
    path = init.path
    notes: tuple[str, ...] = ()
    _refuse_averages(init)
    if path.suffix == ".safetensors":
        tensors = read_tensor_file(path)
    else:
        tensors, keys = read_state_dict(path)
        notes = tuple(f"taken from the file's {key!r}" for key in keys)
    return InitialWeights(tensors, str(path), _sha256([path]), notes)


def _refuse_averages(init: Init) -> None:
    if init.weights == "ema":
        raise CheckpointError(f"{init.path}: init.weights = 'ema' is for runs and checkpoints: leave it out")


def _read_tensorflow(init: Init, model: str) -> InitialWeights:
    """The weights of a TensorFlow checkpoint, and what is needed to go on from it."""
    if init.map:
        raise RecipeError("init.map: to name the variables of a TensorFlow checkpoint, use init.names")
    names = find_name_map(model, init.names)
    checkpoint = Checkpoint(init.path)
    resume = init.resume and init.weights != "ema" and checkpoint.global_step is not None
    ema = init.weights == "ema" or (init.weights == "auto" and bool(checkpoint.averages) and not resume)
    imported = import_tensors(checkpoint, names, ema=ema)
    unused = f"variables without a place in the name map: {_listed(imported.unused)}"
    return InitialWeights(
        imported.tensors,
        f"{checkpoint.path}{_AVERAGED if ema else ''}",
        _sha256([*checkpoint.files(), *([init.names] if init.names else ())]),
        (unused,) if imported.unused else (),
        import_training(checkpoint, names) if resume else None,
        "name its variables with --init-names (init.names)",
    )


def _sha256(paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with open_for_reading(path) as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


# ---- matching


def _renamed(
    initial: InitialWeights, renamings: Sequence[str], own: Collection[str]
) -> tuple[dict[str, str], list[str]]:
    """The file's names by what they are called in the network, and what was done to them all."""
    names, notes = list(initial.tensors), []
    while prefix := next((prefix for prefix in _WRAPPERS if _is_wrapped(prefix, names, own)), None):
        names = [name.removeprefix(prefix) for name in names]
        notes.append(f"taken off all of the file's names: {prefix!r}")
    for renaming in renamings:
        expression, _, replacement = renaming.partition("=")
        _matches(expression, "init.map", names, "file")
        names = [re.sub(expression, replacement, name) for name in names]
    pairs = list(zip(names, initial.tensors, strict=True))
    name, times = Counter(names).most_common(1)[0] if names else ("", 0)
    if times > 1:
        same = _listed([origin for new, origin in pairs if new == name])
        raise RecipeError(f"init.map makes {_listed([name])} of {times} tensors of {initial.origin}: {same}")
    return dict(pairs), notes


def _is_wrapped(prefix: str, names: Sequence[str], own: Collection[str]) -> bool:
    """Whether all names begin so because of how they were saved, and not because the network's do."""
    wrapped = bool(names) and all(name.startswith(prefix) for name in names)
    return wrapped and not any(name.startswith(prefix) for name in own)


def _matches(expression: str, field: str, names: Iterable[str], whose: str) -> list[str]:
    """The names that an expression is found in; to be found in none is a mistake."""
    found = [name for name in names if re.search(expression, name)]
    if not found:
        hint = suggestion(expression, {name.partition(".")[0] for name in names if name.isprintable()})
        raise RecipeError(f"{field}: {expression!r} is found in no tensor's name in the {whose}: {hint:.300}")
    return found


def _converted(initial: InitialWeights, name: str, dtype: torch.dtype) -> Tensor:
    """A tensor of the file in the network's dtype, if it can be that without a change of meaning."""
    value = initial.tensors[name]
    if value.dtype != dtype and not (value.is_floating_point() and dtype.is_floating_point):
        raise CheckpointError(
            f"{initial.origin}: {_listed([name])} is of {value.dtype}, the network's of {dtype}: "
            "leave it out with --init-skip (init.skip)"
        )
    value = value.to(dtype)
    if not value.isfinite().all():
        raise CheckpointError(
            f"{initial.origin}: {_listed([name])} is not finite in {dtype}: use another file"
        )
    return value


def _refusal(
    initial: InitialWeights,
    missing: Collection[str],
    misshapen: Mapping[str, str],
    unused: Collection[str],
    *,
    nothing: bool,
) -> str:
    """Why weights do not fit, and what can be done."""
    reasons = []
    if nothing:
        reasons.append("none of its tensors can be loaded into this network")
    if missing:
        reasons.append(f"it lacks {_listed(missing)}")
    if misshapen:
        reasons.append(_listed([f"{name} is {why}" for name, why in misshapen.items()]))
    if unused:
        reasons.append(f"it has {_listed(unused)}, which the network does not")
    remedies = initial.remedy
    if not nothing:
        remedies += ", leave out some with --init-skip (init.skip), or accept this with --init-partial"
    return f"{initial.origin}: {'; '.join(reasons)}: {remedies}"


def _listed(names: Collection[str], limit: int = 4) -> str:
    """The first few, each on one line whatever it holds."""
    shown = [name if name.isprintable() else repr(name) for name in list(names)[:limit]]
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(text if len(text) <= 200 else f"{text[:200]}..." for text in shown) + more
