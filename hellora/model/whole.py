"""What of a model trains whole, beside its pairs: a head, and the modules that `model.modules_to_save` names.

A tensor that stands in several places of a network, as an embedding does that is the output layer, too, is one tensor:
it has the name of its first place, trains once, is counted once, and is put into all of its places.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from hellora.core.errors import InputError
from hellora.model.settings import ModelSettings
from hellora.model.targets import NUMBERED

Places = Mapping[str, tuple[tuple[nn.Module, str], ...]]  # by name: each root, and the parameter's name in it


def saved_modules(net: nn.Module, settings: ModelSettings) -> tuple[str, ...]:
    """Return the modules of the network that train whole because the settings name them, by the ending of their names.

    Raises:
        InputError: there is none of such a name, or it is in a block, or has blocks in it.
    """
    found: list[str] = []
    for wanted in settings.modules_to_save:
        named = [
            name
            for name, module in net.named_modules()
            if (name == wanted or name.endswith(f".{wanted}")) and any(True for _ in module.parameters())
        ]
        if not named or any(has_blocks(net, name) for name in named):
            why = f"no module is named {wanted!r}" if not named else f"{wanted!r} is of blocks, which have layers"
            raise InputError(f"model.modules_to_save: {why}: choose among {', '.join(outside(net))}")
        found += named
    return tuple(name for name in dict.fromkeys(found) if not any(name.startswith(f"{other}.") for other in found))


def has_blocks(net: nn.Module, name: str) -> bool:
    """Return True if a module is in a block, or a block is in it."""
    inside = (f"{name}.{more}." for more, _ in net.get_submodule(name).named_modules())
    return bool(NUMBERED.match(f"{name}.")) or any(NUMBERED.match(each) for each in inside)


def outside(net: nn.Module) -> list[str]:
    """Name the modules outside the blocks that have parameters of their own."""
    owners = (name for name, module in net.named_modules() if any(True for _ in module.parameters(recurse=False)))
    return [name for name in owners if name and not NUMBERED.match(f"{name}.")]


def places_of(net: nn.Module, head: nn.Module | None, modules: Sequence[str]) -> Places:
    """Return where each parameter of a head of hellora's own, and of these modules of the network, stands."""
    found: dict[str, tuple[tuple[nn.Module, str], ...]] = {}
    if head is not None:
        found |= {name: ((head, name),) for name, _ in head.named_parameters()}
    everywhere = list(net.named_parameters(remove_duplicate=False))
    inside = tuple(f"{name}." for name in modules)
    chosen = {id(parameter) for name, parameter in everywhere if name.startswith(inside)}
    first: dict[int, str] = {}
    for name, parameter in everywhere:
        if id(parameter) in chosen:
            canonical = first.setdefault(id(parameter), name)
            found[canonical] = (*found.get(canonical, ()), (net, name))
    return found


def stands_below(net: nn.Module, modules: Sequence[str]) -> bool:
    """Return True if one of these modules comes before the blocks, so that its gradient goes through all of them.

    A module comes where it is registered; of a parameter that is tied the first place counts.
    """
    names = [name for name, _ in net.named_parameters(remove_duplicate=False)]
    before = names[: next((i for i, name in enumerate(names) if NUMBERED.match(name)), len(names))]
    return not set(before).isdisjoint(places_of(net, None, modules))


def copies(places: Places, root: nn.Module, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the values of what stands in `root`, by every name that it has there, each a tensor of its own."""
    return {name: value.clone() for key, value in values.items() for owner, name in places[key] if owner is root}
