"""Compute the losses of a language model's tokens without ever holding the logits of them all.

The network runs up to its output layer. Hidden states in front of a supervised token are taken from there, and output
layer and cross-entropy run over chunks of them. The loss of a token depends on its own row of hidden states alone, so
the gradient of each row is computed at once, while the chunk's logits are there; backward only scales it. No logits are
kept, and nothing is computed twice.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from hellora.model.normalise import text_config
from hellora.model.policies import forward_replaced

CHUNK_BYTES = 32 * 2**20  # of a chunk's logits in float32; with their gradients, a chunk holds three times as much
TRACED = 2  # chunks of a step that is traced for what it holds: all others hold the same
LARGEST_MARK = 50.0  # logits of a trial; more than any soft cap lets through
ROUNDED = 0.01  # of it: what a model does besides rounding moves some logit by more
Change = Callable[[Tensor], Tensor]
Losses = Callable[[Tensor, Tensor], Tensor]  # of rows (rows, d) and targets (rows,)


def chunk_rows(classes: int) -> int:
    """Return how many tokens make a chunk, for a vocabulary of so many classes."""
    return max(1, CHUNK_BYTES // (4 * classes))


class OutputLayer:
    """An output layer of a network makes logits of hidden states; what the network does to them then is known, too.

    `chunked` says whether logits can be made apart from the network, chunk by chunk; None: it was not tried yet. The
    first pass tries it: a mark in the place of the logits has to come out of the network as the config says.
    """

    def __init__(self) -> None:
        self.chunked: bool | None = None

    def token_losses(self, net: Any, inputs: dict[str, Any], supervised: Tensor, targets: Tensor) -> Tensor:
        """Run one forward pass of the network, and return the loss of each supervised token, (rows,), in float32.

        `supervised` (batch, places) says at which of the first places a token is predicted that has a target; `targets`
        (rows,) has these. The last place of a model that predicts its own next token has none.
        """
        places = supervised.shape[1]
        layer = layer_of(net) if self.chunked is not False else None
        rows = None if layer is None else self.hidden_before(net, layer, inputs, supervised)
        if layer is None or rows is None:
            logits = net(**inputs).logits[:, :places][supervised]
            return cross_entropy(logits.float(), targets, reduction="none")
        return chunked_losses(layer, change_of(net), rows, targets)

    def hidden_before(self, net: Any, layer: nn.Module, inputs: dict[str, Any], supervised: Tensor) -> Tensor | None:
        """Run the network up to its output layer, and return the hidden states before supervised tokens, (rows, d).

        None: what the layer is given, or what becomes of its logits, is not known.
        """
        caught: list[Tensor] = []
        marks: list[Tensor] = []

        def catching(_layer: Any) -> Callable[..., Tensor]:
            def forward(hidden: Tensor) -> Tensor:
                caught.append(hidden)
                marks.append(mark_of(layer, hidden))
                return marks[-1]

            return forward

        try:
            with forward_replaced([layer], catching):
                logits = net(**inputs).logits
        except Exception:  # whatever a model's code raises of logits that are fewer
            if self.chunked:
                raise
            self.chunked = False
            return None
        count, places = supervised.shape
        if len(caught) != 1 or caught[0].shape[:2] not in ((count, places), (count, places + 1)):
            self.chunked = False
        elif self.chunked is None and not isinstance(logits, FakeTensor):
            self.chunked = is_as_said(change_of(net), logits, marks[0])
        return None if self.chunked is False else caught[0][:, :places][supervised]


def layer_of(net: Any) -> nn.Module | None:
    """Return the layer that makes a network's logits; None where it does not say."""
    try:
        layer = net.get_output_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    return layer if isinstance(layer, nn.Module) and classes_of(layer) else None


def classes_of(layer: nn.Module) -> int:
    """Count the classes of an output layer; 0 where it is no linear one."""
    return int(getattr(layer, "out_features", 0))


def mark_of(layer: nn.Module, hidden: Tensor) -> Tensor:
    """Make logits that stand for those of a batch, (batch, 1, classes), and tell what is done to them."""
    row = torch.linspace(-LARGEST_MARK, LARGEST_MARK, classes_of(layer), device=hidden.device)
    return row.expand(len(hidden), 1, -1).clone()


def change_of(net: Any) -> Change | None:
    """Return what a network says that becomes of its logits; None: nothing."""
    if isinstance(bias := getattr(net, "final_logits_bias", None), Tensor):  # of BART and its kin
        return lambda logits: logits + bias
    config = text_config(net.config)
    cap, times, over = (
        getattr(config, name, None) for name in ("final_logit_softcapping", "logit_scale", "logits_scaling")
    )
    if isinstance(cap, float | int) and cap:
        return lambda logits: torch.tanh(logits / cap) * cap
    factor = times if isinstance(times, float) else 1 / over if isinstance(over, float | int) and over else 1.0
    return None if factor == 1 else lambda logits: logits * factor


def is_as_said(change: Change | None, logits: Tensor, mark: Tensor) -> bool:
    """Tell whether a mark has become what `change` makes of it, but for rounding."""
    if logits.shape != mark.shape:
        return False
    if logits is mark and mark._version == 0 and change is None:  # nothing to look at, as in most models
        return True
    expected = torch.linspace(-LARGEST_MARK, LARGEST_MARK, mark.shape[-1], device=mark.device)
    expected = expected if change is None else change(expected)
    moved = (logits.detach().float() - expected).abs().max()
    return bool(moved <= ROUNDED * expected.abs().max())


def chunked_losses(layer: nn.Module, change: Change | None, rows: Tensor, targets: Tensor) -> Tensor:
    """Return the loss of each row of hidden states, (rows,), in float32; no more than a chunk has logits at a time."""

    def losses(part: Tensor, of_part: Tensor) -> Tensor:
        logits: Tensor = layer(part)
        return cross_entropy((logits if change is None else change(logits)).float(), of_part, reduction="none")

    size = chunk_rows(classes_of(layer))
    layer_trains = torch.is_grad_enabled() and any(weight.requires_grad for weight in layer.parameters())
    if torch.is_grad_enabled() and rows.requires_grad and not layer_trains:
        found: Tensor = ChunkedLosses.apply(rows, targets, losses, size)  # type: ignore[no-untyped-call]
        return found
    # A layer that trains gets its own gradient in backward, for which each chunk is run again.
    again = partial(checkpoint, losses, use_reentrant=False, preserve_rng_state=False)
    parts = zip(torch.split(rows, size), torch.split(targets, size), strict=True)
    return torch.cat([(again if layer_trains else losses)(part, of_part) for part, of_part in parts])


class ChunkedLosses(torch.autograd.Function):
    """ChunkedLosses computes `losses` of rows (rows, d), `size` rows at a time, and keeps the gradient of each row."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, targets: Tensor, losses: Losses, size: int) -> Tensor:
        found = torch.empty(len(rows), device=rows.device)
        gradients = torch.empty_like(rows)
        # What a chunk keeps is used at once, so that no policy has to make it smaller.
        with torch.enable_grad(), saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor):
            starts = range(0, len(rows), size)
            for start in starts[:TRACED] if isinstance(rows, FakeTensor) else starts:
                part = slice(start, start + size)
                of_part = rows[part].detach().requires_grad_()
                each = losses(of_part, targets[part])
                (gradients[part],) = torch.autograd.grad(each.sum(), of_part)
                found[part] = each.detach()
                del each  # with it goes the graph of this chunk, before the next one has one
        ctx.save_for_backward(gradients)
        return found

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (gradients,) = ctx.saved_tensors
        return gradients * gradient[:, None].to(gradients.dtype), None, None, None
