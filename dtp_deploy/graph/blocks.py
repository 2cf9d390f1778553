"""Finding residual blocks: additions y = x + f(x) of a value and a branch that starts from that same value.

They are found on the graph that `torch.export` captures, whose nodes know the modules that they come from. A branch
counts if it ends in the output of a module of its own: then replacing its modules is all that removing it takes.
"""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.fx import Node

from dtp_deploy.errors import GraphError
from dtp_deploy.graph.frozen import check_patterns, why_frozen
from dtp_deploy.graph.groups import ResidualBlock, is_inside
from dtp_deploy.modules import Inputs, as_inputs, capture, shapes_of

_ADDITIONS = (torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor)


def find_blocks(
    model: nn.Module, inputs: Tensor | Inputs, *, keep: Sequence[str] = (), only: Sequence[str] = ()
) -> tuple[ResidualBlock, ...]:
    """The residual blocks of a model, those that cannot be removed as a whole with the reason.

    A block that holds no tensors is none: there is nothing to remove.

    Args:
        model: captured once, in evaluation mode; not changed.
        inputs: an example of what it is called with, batch first.
        keep: patterns of layers that stay as they are, as for `find_groups`: a block with one of them stays.
        only: patterns of the only layers that may be removed: a block goes only if all of its layers are named.

    Raises:
        GraphError: the model cannot be captured.
        UsageError: a pattern matches no layer.
    """
    check_patterns(model, keep, only)
    graph = _Graph(model, as_inputs(inputs))
    found = [_block(graph, branch) for branch in graph.branches()]
    blocks = [block for block in found if block is not None]
    count = Counter(block.name for block in blocks)
    named = [replace(block, name=block.modules[-1]) if count[block.name] > 1 else block for block in blocks]
    return tuple(_by_hand(block, model, keep, only) for block in named)


@dataclass(frozen=True)
class _Branch:
    """What lies between a value and the addition to it.

    Attributes:
        start: the value, x.
        end: what is added to it, f(x).
        path: the nodes that lie between, in order; `end` is the last.
        own: the nodes that nothing outside of the branch uses, those on the path and what only they need.
    """

    start: Node
    end: Node
    path: tuple[Node, ...]
    own: frozenset[Node]


class _Graph:
    """The captured model: its nodes, and the modules that they come from."""

    def __init__(self, model: nn.Module, inputs: Inputs) -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                program = capture(model, inputs)
        except Exception as error:  # torch.export raises errors of its many classes
            raise GraphError(
                f"The residual blocks of {type(model).__name__} could not be found, because torch.export cannot "
                f"capture it with inputs of shape {shapes_of(inputs)} ({type(error).__name__}: "
                f"{(str(error).strip().splitlines() or [''])[0]}). Leave --allow-depth out, or change that part."
            ) from error
        signature = program.graph_signature
        self.model = model
        self.tensor_of = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}  # placeholder -> tensor
        self.nodes = [node for node in program.graph.nodes if node.op != "output"]
        self.outputs = set(program.graph.output_node().all_input_nodes)
        self.place = {node: place for place, node in enumerate(self.nodes)}
        self.nodes_of: dict[str, set[Node]] = defaultdict(set)
        self.calls_of: dict[str, set[str]] = defaultdict(set)
        for node in self.nodes:
            for call, (path, _) in node.meta.get("nn_module_stack", {}).items():
                self.calls_of[path].add(call)
                if node.users:
                    self.nodes_of[path].add(node)

    def branches(self) -> Iterator[_Branch]:
        """One for every addition of a value to something that was made of it."""
        for node in self.nodes:
            operands = [one for one in node.args if isinstance(one, Node)]
            if node.target not in _ADDITIONS or len(operands) != 2 or node.kwargs:
                continue
            for start, end in (operands, operands[::-1]):
                above = self._ancestors(end)
                if start in above and len({one.meta["val"].shape for one in (start, end, node)}) == 1:
                    yield self._branch(start, end, node, above)

    def modules_of(self, node: Node) -> list[str]:
        """The modules that a node is in, but for the model itself, the outermost first."""
        return [path for path, _ in node.meta.get("nn_module_stack", {}).values() if path]

    def _ancestors(self, node: Node) -> set[Node]:
        found: set[Node] = set()
        left = list(node.all_input_nodes)
        while left:
            one = left.pop()
            if one not in found:
                found.add(one)
                left += one.all_input_nodes
        return found

    def _branch(self, start: Node, end: Node, addition: Node, above: set[Node]) -> _Branch:
        between = self.nodes[: self.place[end] + 1]
        below = {start}
        for node in between[self.place[start] + 1 :]:
            if not below.isdisjoint(node.all_input_nodes):
                below.add(node)
        own: set[Node] = {end} if set(end.users) == {addition} and end not in self.outputs else set()
        for node in reversed(between):
            needed = node in above and node is not start and node.op == "call_function"
            if needed and own.issuperset(node.users) and node not in self.outputs:
                own.add(node)
        path = tuple(node for node in between if node in below and node is not start and (node in above or node is end))
        return _Branch(start, end, path, frozenset(own))


def _block(graph: _Graph, branch: _Branch) -> ResidualBlock | None:
    """The block of a branch; None if it holds no tensors."""
    last = _last_module(graph, branch)
    modules = [module for node in branch.path for module in _whole_modules(graph, branch, node, last)[:1]]
    modules = [module for module in dict.fromkeys(modules) if module != last and _holds_tensors(graph.model, module)]
    tensors = {
        graph.tensor_of[one.name]: one
        for node in branch.path
        for one in node.all_input_nodes
        if one.name in graph.tensor_of
    }
    if not tensors:
        return None
    if last is None:
        inner = graph.modules_of(branch.end)
        parts = modules or [inner[-1] if inner else branch.end.name]
        return ResidualBlock(_name(parts), tuple(parts), _why_no_last(graph, branch))
    reason = None
    if not branch.own.issuperset(branch.path):
        reason = "a part of its branch is used elsewhere too"
    for name, placeholder in tensors.items():
        shared = not branch.own.issuperset(placeholder.users)
        inside = is_inside(name, [*modules, last])
        if inside and shared:
            reason = reason or f"its tensor '{name}' is used elsewhere too"
        elif not inside and not shared:
            reason = reason or f"its branch has the tensor '{name}', which is in no layer of its own"
    parts = [*modules, last]
    return ResidualBlock(_name(parts), tuple(parts), reason)


def _last_module(graph: _Graph, branch: _Branch) -> str | None:
    """The outermost module of the branch whose only output is the branch's; None if there is none."""
    for module in graph.modules_of(branch.end):
        nodes = graph.nodes_of[module]
        given = {node for node in nodes if not nodes.issuperset(node.users)}
        if branch.own.issuperset(nodes) and given == {branch.end}:
            return module
    return None


def _why_no_last(graph: _Graph, branch: _Branch) -> str:
    if branch.end not in branch.own:
        return "the output of its branch is used elsewhere too"
    inner = graph.modules_of(branch.end)
    if inner and len(graph.calls_of[inner[-1]]) > 1:
        return f"'{inner[-1]}' is called more than once"
    return f"its branch ends in an operation ({branch.end.name}) that is no module's output"


def _whole_modules(graph: _Graph, branch: _Branch, node: Node, last: str | None) -> list[str]:
    """The modules around a node that lie in the branch with all of their nodes, the outermost first."""
    return [
        module
        for module in graph.modules_of(node)
        if branch.own.issuperset(graph.nodes_of[module]) and not (last or "").startswith(f"{module}.")
    ]


def _holds_tensors(model: nn.Module, module: str) -> bool:
    return bool(model.get_submodule(module).state_dict())


def _name(modules: Sequence[str]) -> str:
    """The module around all of these; the last of them where that is the model itself.

    >>> _name(["layer1.0.conv1", "layer1.0.bn2"]), _name(["conv1", "bn1"])
    ('layer1.0', 'bn1')
    """
    parents = [module.split(".")[:-1] for module in modules]
    common = []
    for parts in zip(*parents, strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    return ".".join(common) or modules[-1]


def _by_hand(block: ResidualBlock, model: nn.Module, keep: Sequence[str], only: Sequence[str]) -> ResidualBlock:
    """The block, kept if the user's patterns say so."""
    if block.kept_because is not None:
        return block
    inside = [(name, module) for name, module in model.named_modules() if block.holds(name)]
    written = [name for name, module in inside if list(module.parameters(recurse=False))]
    return replace(block, kept_because=why_frozen([name for name, _ in inside], written, keep, only))
