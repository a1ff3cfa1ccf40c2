"""TaskExpert: features assembled anew at every token, and remembered from layer to layer (Ye and Xu, ICCV 2023).

The order is that of its Sec. 3.3. Letters: B samples, T tasks, L modules, K experts a module, E width of the backbone's
map, e of an expert's hidden layer, D of a task's features, h of a gate's hidden layers. Features of all tasks travel as
one tensor ``(B, T, D, H, W)``, the experts' answers as ``(B, K, D, H, W)``, gates as ``(B, T, K, H, W)``; behind the K
gates of every module but the first stands the memory's. Chapters 10 and 11.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from itertools import pairwise
from typing import Any, ClassVar, Literal, NamedTuple, cast, get_args

import torch
from torch import Tensor, nn

from mlore_edu.checks import check_choice, check_switches, check_whole
from mlore_edu.decoders.base import DecoderOutput, MapShape
from mlore_edu.decoders.moe import top_k_mask
from mlore_edu.decoders.per_task import PerTaskBatchNorm2d, PerTaskConv2d, resize_tasks
from mlore_edu.errors import UserError
from mlore_edu.tasks import TaskSet

GateKind = Literal["context", "pointwise", "linear"]


class ExpertNetworks(nn.Module):
    """K experts, each Linear–BatchNorm–ReLU–Linear on every token (Eq. 1), as one convolution and one grouped one.

    Parameters
    ----------
    in_channels, hidden, channels
        E, e and D.
    experts
        K.
    """

    def __init__(self, in_channels: int, experts: int, hidden: int, channels: int) -> None:
        super().__init__()
        self.expand = PerTaskConv2d(experts, in_channels, hidden)  # one for each expert, here
        self.norm = PerTaskBatchNorm2d(experts, hidden)
        self.project = PerTaskConv2d(experts, hidden, channels)

    def forward(self, features: Tensor) -> Tensor:
        """Turn ``(B, E, H, W)`` into every expert's answer ``(B, K, D, H, W)``."""
        hidden = self.norm(self.expand(features)).relu()  # (B, K, e, H, W)
        return cast(Tensor, self.project(hidden))  # (B, K, D, H, W)


class TaskGates(nn.Module):
    """The gating networks of all tasks: how much every token of every task wants of each expert (CONV of Eq. 3).

    Parameters
    ----------
    in_channels, hidden
        E and h.
    tasks, outputs
        T, and the number of experts, the memory included.
    kind
        ``"context"``: three 3×3 convolutions with ReLU between them, so that a token sees the 7×7 around it;
        ``"pointwise"``: three 1×1, as deep but blind to the neighbours; ``"linear"``: one 1×1, as in earlier mixtures.
    """

    def __init__(self, in_channels: int, tasks: int, outputs: int, hidden: int, kind: GateKind = "context") -> None:
        super().__init__()
        between, kernel = [] if kind == "linear" else [hidden, hidden], 3 if kind == "context" else 1
        widths = pairwise([in_channels, *between, outputs])
        self.layers = nn.ModuleList(PerTaskConv2d(tasks, before, after, kernel) for before, after in widths)

    def forward(self, features: Tensor) -> Tensor:
        """Turn ``(B, E, H, W)`` into logits ``(B, T, outputs, H, W)``."""
        scores = self.layers[0](features)  # (B, T, h, H, W)
        for layer in self.layers[1:]:
            scores = layer(scores.relu())
        return cast(Tensor, scores)


def choose(logits: Tensor, active: int | None = None, *, renormalise: bool = False) -> Tensor:
    """Gates of every token: a softmax over the experts, of which the largest stay (Sec. 3.3.4).

    Parameters
    ----------
    logits
        ``(B, T, K, H, W)``.
    active
        How many stay; all where not given ("dense").
    renormalise
        Whether those that stay are made to sum to 1 again; the paper's text only weighs them.

    Returns
    -------
    Tensor
        ``(B, T, K, H, W)``.

    Raises
    ------
    UserError
        Where ``active`` is not a whole number from 1 to K.

    Notes
    -----
    Source: TaskExpert, Eq. 3 and "Alternative sparse activation of experts". Chapter 10.
    """
    gates = logits.softmax(dim=2)  # (B, T, K, H, W)
    if active is None:
        return gates
    gates = gates * top_k_mask(logits.movedim(2, -1), active).movedim(-1, 2)
    return gates / gates.sum(dim=2, keepdim=True) if renormalise else gates


class Assembled(NamedTuple):
    """What a module gives.

    Attributes
    ----------
    decoded, memory
        F^l and M^l, ``(B, T, D, H, W)``.
    gates
        ``(B, T, K, H, W)``, or K + 1 where there is a memory to read; None where nothing is gated.
    """

    decoded: Tensor
    memory: Tensor
    gates: Tensor | None


class MMoEModule(nn.Module):
    """Memorial mixture of experts: decompose the backbone's feature, assemble the tasks', write them to the memory.

    Parameters
    ----------
    tasks, in_channels, channels
        T, E and D.
    experts, expert_width, gate_width, gate, mixture, active, renormalise
        See :class:`TaskExpertDecoder`.
    memory
        Whether the memory of the modules before is read, and kept with a learned momentum; without, features are added.
    momentum
        What the momentum starts from; None in the first module, which has no memory to read.

    Notes
    -----
    Source: TaskExpert, Sec. 3.3, Eqs. 1 to 4. Chapter 10 builds the assembly, chapter 11 the memory.
    """

    def __init__(
        self,
        tasks: int,
        in_channels: int,
        channels: int,
        *,
        experts: int,
        expert_width: int,
        gate_width: int,
        gate: GateKind = "context",
        mixture: bool = True,
        memory: bool = True,
        momentum: float | None = None,
        active: int | None = None,
        renormalise: bool = False,
    ) -> None:
        super().__init__()
        self.count, self.active, self.renormalise = experts, active, renormalise
        self.experts = ExpertNetworks(in_channels, experts, expert_width, channels)
        self.gates = self.momentum = None
        if memory and momentum is not None:
            self.momentum = nn.Parameter(torch.full((tasks,), momentum))  # alpha^(l,t)
        if mixture:
            outputs = experts + (self.momentum is not None)  # the memory is one more expert
            self.gates = TaskGates(in_channels, tasks, outputs, gate_width, gate)

    def forward(self, features: Tensor, memory: Tensor | None) -> Assembled:
        """Assemble the tasks' features from a map of the backbone and the memory of the modules before.

        Parameters
        ----------
        features
            X^l, ``(B, E, H, W)``.
        memory
            M^(l-1), ``(B, T, D, H, W)``; None in the first module.
        """
        answers = self.experts(features)  # R^l: (B, K, D, H, W)
        gates = None
        decoded = answers  # Table 1's Baseline: the t-th expert is task t's
        if self.gates is not None:
            logits = self.gates(features)  # (B, T, K [+ 1], H, W)
            gates = choose(logits, self.active, renormalise=self.renormalise)  # G^l
            decoded = torch.einsum("btkhw,bkdhw->btdhw", gates[:, :, : self.count], answers)  # Eq. 4
        if memory is None:
            return Assembled(decoded, decoded, gates)
        if self.momentum is None:  # the layers' features are added, as the Baseline's
            return Assembled(decoded, decoded + memory, gates)
        if gates is not None:
            decoded = decoded + gates[:, :, self.count :] * memory
        return Assembled(decoded, decoded + self.momentum[:, None, None, None] * memory, gates)  # Eq. 2


class TaskExpertDecoder(nn.Module):
    """TaskExpert: a module on every map of the backbone, and for each task a memory that passes through all of them.

    A ViT's maps are visited in the order of its layers, a pyramid's from the coarsest to the finest. The memory takes
    each map's size in turn; after the last module it is the task's feature.

    Parameters
    ----------
    tasks
        Tasks to make features for.
    maps
        Shapes of the backbone's maps.
    channels
        Width D.
    modules
        L. :func:`~mlore_edu.model.build_model` spreads so many modules evenly along a ViT; on other backbones there is
        one for each map.
    experts
        K of a module; as many as tasks where not given.
    expert_width, gate_width
        e and h; D, and a quarter of D, where not given. The paper names neither.
    gate
        ``"context"``, ``"pointwise"`` or ``"linear"``, see :class:`TaskGates`.
    mixture
        False: every task has its own expert and no gates (Table 1, row Baseline; it has no memory either).
    memory
        False: the layers' features are added up (Table 1, rows without Mem).
    momentum_start
        The memory's momentum before training; with 1 the memory starts as the sum of the layers' features.
    active
        Experts a token uses for each task, the memory among them; all where not given (Fig. 8: 1, 2, dense).
    renormalise
        Whether the gates of the active experts sum to 1.
    plain_maps
        Number of leading maps that get one 1×1 convolution per task instead of a module, added at the end: 1 for
        ``vit_nano``, whose first map is the stem's.

    Raises
    ------
    UserError
        For an option out of its range.

    Notes
    -----
    Source: TaskExpert, Sec. 3. No code was ever released: what the paper leaves open is listed in chapter 11.
    """

    head_activation: ClassVar[Literal["relu"]] = "relu"  # Sec. 3.4

    def __init__(
        self,
        tasks: TaskSet,
        maps: Sequence[MapShape],
        channels: int,
        *,
        modules: int | None = None,
        experts: int | None = None,
        expert_width: int | None = None,
        gate_width: int | None = None,
        gate: GateKind = "context",
        mixture: bool = True,
        memory: bool = True,
        momentum_start: float = 1.0,
        active: int | None = None,
        renormalise: bool = False,
        plain_maps: int = 0,
    ) -> None:
        super().__init__()
        count = len(tasks)
        settings: dict[str, Any] = {
            "experts": count if experts is None else experts,
            "expert_width": channels if expert_width is None else expert_width,
            "gate_width": max(1, channels // 4) if gate_width is None else gate_width,
        }
        check_whole(1, **settings)
        check_switches(mixture=mixture, memory=memory, renormalise=renormalise)
        _check_gates(gate, active, settings["experts"])
        if not mixture and (memory or settings["experts"] != count):
            raise UserError("Without a mixture each task has one expert and no memory; give memory=False, no experts.")
        if type(momentum_start) not in (int, float) or not -torch.inf < momentum_start < torch.inf:
            raise UserError(f"momentum_start is {momentum_start!r}; give a number.")
        if type(plain_maps) is not int or not 0 <= plain_maps < len(maps):
            raise UserError(f"plain_maps is {plain_maps!r}; give a number from 0 to {len(maps) - 1}.")
        if modules not in (None, len(maps) - plain_maps):
            raise UserError(
                f"modules is {modules}, but there are {len(maps) - plain_maps} maps for them; leave it out."
            )
        settings |= {"gate": gate, "mixture": mixture, "memory": memory, "active": active, "renormalise": renormalise}
        self.task_names, self.channels = tasks.names, channels
        self.size = max((shape.height, shape.width) for shape in maps)
        self.plain = nn.ModuleList(PerTaskConv2d(count, shape.channels, channels) for shape in maps[:plain_maps])
        self.order = sorted(range(plain_maps, len(maps)), key=lambda index: maps[index].height * maps[index].width)
        momenta = [None] + [float(momentum_start)] * (len(self.order) - 1)
        self.modules_in_order = nn.ModuleList(
            MMoEModule(count, maps[index].channels, channels, momentum=momentum, **settings)
            for index, momentum in zip(self.order, momenta)
        )

    def forward(self, maps: Sequence[Tensor]) -> DecoderOutput:
        """Turn the backbone's maps into one map ``(B, D, h, w)`` per task, at the size of the largest map."""
        memory, routing = None, {}
        for number, (index, module) in enumerate(zip(self.order, self.modules_in_order), 1):
            features = maps[index]  # (B, E, h, w)
            if memory is not None:
                memory = resize_tasks(memory, (features.shape[-2], features.shape[-1]))  # (B, T, D, h, w)
            assembled = cast(Assembled, module(features, memory))
            memory = assembled.memory  # (B, T, D, h, w)
            if assembled.gates is not None:
                routing[f"module {number}"] = assembled.gates  # (B, T, K [+ 1], h, w)
        shares = [resize_tasks(cast(Tensor, memory), self.size)]
        shares += [resize_tasks(plain(feature_map), self.size) for plain, feature_map in zip(self.plain, maps)]
        total = reduce(torch.add, shares)  # (B, T, D, H, W)
        features_by_task = dict(zip(self.task_names, total.unbind(1), strict=True))
        return DecoderOutput(features_by_task, maps[0].new_zeros(()), routing)

    @staticmethod
    def preset(backbone: str, tasks: TaskSet, options: Mapping[str, Any]) -> dict[str, Any]:
        """Options that go with a backbone, and the blocks of a ViT after which there is a module."""
        family, _, size = backbone.partition("_")
        if size not in SIZES or family == "swin":
            return {}
        depth, modules, preset = SIZES[size]
        chosen = options.get("modules")
        chosen = modules if chosen is None else chosen
        if type(chosen) is not int or not 1 <= chosen <= depth:
            raise UserError(f"modules is {chosen!r}; give a number from 1 to {depth}, the layers of {backbone}.")
        blocks = tuple(round(depth * number / chosen) for number in range(1, chosen + 1))
        return {"blocks": blocks, **preset}


SIZES: dict[str, tuple[int, int, dict[str, Any]]] = {
    "small": (12, 12, {"channels": 448, "expert_width": 256, "gate_width": 48}),
    "base": (12, 12, {"channels": 768, "expert_width": 768, "gate_width": 288}),
    "large": (24, 12, {"channels": 448, "expert_width": 448, "gate_width": 112}),
    "nano": (3, 3, {"channels": 32, "expert_width": 32, "gate_width": 8, "plain_maps": 1}),
    "nano_12": (12, 12, {"channels": 32, "expert_width": 32, "gate_width": 8, "plain_maps": 1}),
}
"""By size of the ViT: its layers, its modules, and widths that give the paper's parameters and FLOPs (chapter 11)."""


def _check_gates(gate: str, active: int | None, experts: int) -> None:
    check_choice("gate", gate, get_args(GateKind))
    if active is not None and (type(active) is not int or not 1 <= active <= experts):
        raise UserError(f"active is {active!r}; give a number from 1 to {experts}, the experts, or leave it out.")
