"""The time of training steps by kind of work, from a profiler's trace and a table of names.

An op (CPU) has the kind of the outermost op around it that the table knows: a reorder inside a convolution counts as
convolution. A kernel (CUDA) has the kind that its name tells, or else the kind of the op that launched it. Ops and
kernels that the table does not know are `unclassified`, and are listed by name.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

STEM, DEPTHWISE, POINTWISE, NORM = "stem", "depthwise", "pointwise", "BN and ReLU"
BLOCK, SEPARABLE = "depthwise block", "separable block"
HEAD, OPTIMIZER, AUGMENTATION, COPIES = "head and loss", "optimizer", "augmentation", "casts and copies"
FRAMEWORK, PYTHON, IDLE, UNCLASSIFIED = "framework", "Python", "idle", "unclassified"

KINDS = {
    BLOCK: "BN, ReLU, depthwise, BN, ReLU as one op",
    SEPARABLE: "the same with the pointwise convolution",
    DEPTHWISE: "convolutions, on CUDA those fused with BN and ReLU too",
    POINTWISE: "1x1 convolutions",
    NORM: "batch statistics, normalising, ReLU, running statistics",
    STEM: "the first convolution",
    HEAD: "pooling, linear layer, loss, counting the correct",
    OPTIMIZER: "update of the weights",
    AUGMENTATION: "crop, flip, normalise, mix",
    COPIES: "between dtypes and memory formats",
    FRAMEWORK: "bookkeeping of autograd and torch.compile, views, allocation",
    PYTHON: "between ops",
    IDLE: "the device waits",
    UNCLASSIFIED: "what the table of names does not know",
}
"""Every kind and what it is, in the order in which they are shown."""

COLOURS = {
    BLOCK: "#D55E00",
    SEPARABLE: "#8C2D04",
    DEPTHWISE: "#D55E00",
    POINTWISE: "#0072B2",
    NORM: "#009E73",
    STEM: "#E69F00",
    HEAD: "#CC79A7",
    OPTIMIZER: "#56B4E9",
    AUGMENTATION: "#7A7A00",
    COPIES: "#882255",
    FRAMEWORK: "#999999",
    PYTHON: "#BBBBBB",
    IDLE: "#DDDDDD",
    UNCLASSIFIED: "#000000",
}
"""The colours of the kinds in pictures. Most are of Okabe and Ito, which every colour vision can tell apart."""

STEP, MAKE_BATCH = "training step", "make batch"
"""Names of the two ranges that a trace must hold: each step and, inside the step, the making of its batch."""

Dims = Sequence[Any]


@dataclass(frozen=True)
class Shapes:
    """Tells apart ops of the same name by the shapes of their inputs.

    Attributes:
        batch_size: the number of images in a batch.
        num_classes: the number of logits of an image; it tells the head's product from a pointwise product.
    """

    batch_size: int
    num_classes: int

    def convolution(self, dims: Dims) -> str | None:
        """The kind of a convolution, in either direction."""
        tensors = _tensors(dims)
        weights = [i for i, d in enumerate(tensors) if i and len(d) == 4 and d[2] == d[3] and d[2] in (1, 3)]
        if not weights:
            return None
        x, (_, channels, height, _) = tensors[weights[-1] - 1], tensors[weights[-1]]
        return POINTWISE if height == 1 else DEPTHWISE if channels < x[1] else STEM

    def product(self, dims: Dims) -> str | None:
        """The kind of a linear layer or a matrix product, in either direction."""
        tensors = _tensors(dims)
        if [self.num_classes] in tensors:  # a bias
            return HEAD
        if tensors and sorted(tensors[0]) == sorted((self.batch_size, self.num_classes)):  # gradients of the logits
            return HEAD
        return POINTWISE if tensors else None

    def small(self, dims: Dims) -> str | None:
        """The kind of arithmetic: the head, if no input is larger than the logits."""
        tensors = _tensors(dims)
        return HEAD if all(math.prod(d) <= self.batch_size * self.num_classes for d in tensors) else None


_Rule = tuple[str, str | Callable[[Shapes, Dims], "str | None"]]

OPS: tuple[_Rule, ...] = (
    (r"Optimizer\..*|aten::_(fused_(sgd|adam|adamw)|amp_.*)_", OPTIMIZER),
    (rf"{MAKE_BATCH}|fastcifar::_?(augment|training_batch).*", AUGMENTATION),
    (r"fastcifar::_?depthwise_block(_backward)?(_into)?", BLOCK),
    (r"fastcifar::_?separable_blocks?(_backward)?", SEPARABLE),
    (r"fastcifar::_?(dwconv3x3|dwconv3x3_affine_relu)(_backward)?", DEPTHWISE),
    (r"fastcifar::(_?batch_norm_relu(_backward)?|update_statistics)", NORM),
    (r"fastcifar::_?stem(_backward)?", STEM),
    (r"fastcifar::.*(sgd|optimizer|update_weights|advance_step).*", OPTIMIZER),
    (r"fastcifar::.*(loss|head|classifier|cross_entropy|pool).*", HEAD),
    (r"aten::(.*convolution.*|conv2d|_conv_depthwise2d)", Shapes.convolution),
    (r"aten::(linear|matmul|mm|addmm|bmm|mkldnn_linear.*)", Shapes.product),
    (r"aten::(.*batch_norm.*|relu_?|threshold_backward|clamp_min_?)", NORM),
    (r"aten::(adaptive_)?avg_pool2d(_backward)?|aten::.*(cross_entropy|softmax|nll_loss).*|aten::argmax", HEAD),
    (r"aten::(_to_copy|_foreach_copy_|copy_|clone|contiguous|_reshape_copy|cat|stack|pad)", COPIES),
    (
        r"aten::(add|sub|rsub|mul|div|neg|sum|eq|ne|lerp|where|(masked_)?fill|bitwise_not|gather|ones_like|zeros?|ge|le"
        r"|zeros_like|scatter|max|exp|full|scalar_tensor|item|_local_scalar_dense)_?",
        Shapes.small,
    ),
)
"""Pattern of the whole name of an op or range -> its kind, or a function that finds it. The first match counts."""

CASTS = re.compile(r"aten::_to_copy")
"""Casts keep their own kind, also where autocast puts them inside a convolution or a product."""

BOOKKEEPING = re.compile(
    r"autograd::.*|torch::autograd::.*|.*Backward\w*|detach_?|torch::jit::.*|Torch-Compiled Region.*|CompiledFunction"
    r"|aten::(to|view|reshape|permute|transpose|t|as_strided|detach|expand|select|slice|flatten|unsqueeze|squeeze|empty"
    r"|_unsafe_view|_reshape_alias|unbind|narrow|alias|view_as|numel|promote_types|result_type|lift_fresh|chunk|split"
    r"|empty_like|empty_strided|new_empty|new_empty_strided|resize|resolve_conj|resolve_neg|expand_as|_has_compatible.*"
    r"|set)_?|_Copied|_Linear|_EqualBlocks|_Chain|_Network|fastcifar::_set_own_threads|TorchDynamo.*"
    r"|## Call CompiledFxGraph .*|AOTDispatcher.*|Pregraph.*|.*ProfilerStep.*"
)
"""Names of the framework's own work. The ops inside have kinds of their own."""

_GENERATED = r"(triton|cpp_fused|graph_\d+_cpp_fused)_?\w*"

OWN_KERNELS: tuple[tuple[str, str], ...] = (
    (r"fastcifar::.*stem_", STEM),
    (r"fastcifar::.*(dwconv3x3|grad_w_kernel)", DEPTHWISE),
    (r"fastcifar::.*(pointwise|sum_rows)", POINTWISE),
    (r"fastcifar::.*(sgd|optimizer|update_weights|advance_step)", OPTIMIZER),
    (r"fastcifar::.*(loss|classifier|cross_entropy|pool)", HEAD),
    (r"fastcifar::.*(norm|moments|merge|whole_gradient|statistics)", NORM),
    (r"fastcifar::.*(augment|training_batch)", AUGMENTATION),
)
"""Parts of the names of the extension's kernels -> kind. They count before the op, which may launch several kinds."""

KERNELS: tuple[tuple[str, str], ...] = (
    (r"multi_tensor_apply.*copy", COPIES),
    (r"multi_tensor_apply", OPTIMIZER),
    (r"(conv2d|dgrad2d|wgrad2d)_(grouped|c1_k1)|conv_?depthwise|depthwise", DEPTHWISE),
    (rf"{_GENERATED}(log_softmax|nll_loss|argmax|avg_pool|mean_pool)", HEAD),
    (rf"{_GENERATED}(batch_norm|relu|threshold|var_mean|rsqrt)", NORM),
    (rf"{_GENERATED}(convolution|mm)", POINTWISE),
    (rf"{_GENERATED}(index|flip|constant_pad|remainder|bitwise|uint8)", AUGMENTATION),
    (rf"{_GENERATED}(to_copy|clone|copy)", COPIES),
    (r"batch_?norm|bn_(fw|bw)|clamp_min|threshold|relu", NORM),
    (r"softmax|nll_loss|avg_pool|argmax", HEAD),
    (r"nchw|nhwc.*(to|2)|(to|2)nhwc|memcpy|memset|direct_copy|copy_kernel|catarray", COPIES),
    (r"gemm|nvjet|cutlass|xmma|cublas|fprop|dgrad|wgrad|splitk", POINTWISE),
)
"""Parts of the lower-case names of other kernels -> kind. They count where no op is known, as in a replayed graph.

There a library's products of stem and head count as pointwise, because their names are the same."""


@dataclass
class Cost:
    """The cost of a kind or of a name.

    Attributes:
        ms: milliseconds in a step.
        calls: calls in a step, counted as ops or kernels.
    """

    ms: float = 0.0
    calls: float = 0.0


@dataclass
class Breakdown:
    """Where the time of the profiled steps went.

    Attributes:
        step_ms: milliseconds of a profiled step, from its start to its end.
        num_steps: the number of profiled steps.
        on_device: whether kernels were timed (CUDA), and not ops (CPU).
        kinds: kind -> cost of a step. The milliseconds add up to `step_ms`.
        names: (kind, name) -> cost of a step. The names are of the outermost known ops (CPU) or of kernels (CUDA).
    """

    step_ms: float
    num_steps: int
    on_device: bool
    kinds: dict[str, Cost] = field(default_factory=lambda: defaultdict(Cost))
    names: dict[tuple[str, str], Cost] = field(default_factory=lambda: defaultdict(Cost))

    def add(self, kind: str, name: str, microseconds: float, calls: int) -> None:
        """Adds an op or kernel.

        Args:
            kind: its kind.
            name: its name.
            microseconds: its time in all profiled steps.
            calls: its calls in all profiled steps.
        """
        for cost in (self.kinds[kind], self.names[kind, name]):
            cost.ms += microseconds / 1e3 / self.num_steps
            cost.calls += calls / self.num_steps

    @property
    def calls(self) -> float:
        """The number of kernels (CUDA), or of outermost ops that do work (CPU), in a step."""
        return sum(cost.calls for kind, cost in self.kinds.items() if kind not in (FRAMEWORK, PYTHON, IDLE))


@dataclass
class _Event:
    """A range of time on one thread of the host.

    Attributes:
        name: the name of the op or range.
        start: in microseconds.
        end: in microseconds.
        own: microseconds that were not spent in ranges inside this one.
        parent: the range around this one; None if there is none.
        kind: the kind of work; None if the table does not know it.
        origin: the outermost range that this one has its kind from.
        in_step: whether it belongs to a training step.
    """

    name: str
    start: float
    end: float
    own: float
    parent: _Event | None
    kind: str | None
    origin: _Event | None
    in_step: bool


def breakdown(trace: Mapping[str, Any], shapes: Shapes) -> Breakdown:
    """What the steps in a trace spent their time on.

    Args:
        trace: a Chrome trace of torch.profiler, recorded with shapes.
        shapes: tells apart ops of the same name.

    Returns:
        The time by kind and by name.

    Raises:
        ValueError: the trace holds no range called `STEP`.
    """
    events = [e for e in trace["traceEvents"] if e.get("ph") == "X"]
    host, launches = _host_tree(events, shapes)
    steps = [e for e in host if e.name == STEP]
    if not steps:
        raise ValueError(f"the trace holds no range called {STEP!r}")
    kernels = [e for e in events if e.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")]
    if kernels:
        return _of_kernels(kernels, launches, len(steps))
    result = Breakdown(sum(s.end - s.start for s in steps) / 1e3 / len(steps), len(steps), on_device=False)
    for event in host:
        if event.in_step:
            kind = event.kind or UNCLASSIFIED
            name = event.origin.name if event.origin else event.name
            result.add(kind, name, event.own, calls=int(event.origin is event))
    return result


def _host_tree(events: Iterable[Mapping[str, Any]], shapes: Shapes) -> tuple[list[_Event], dict[int, _Event]]:
    """All events of the host with their kinds; and the events that launched device work, by correlation number."""
    categories = ("cpu_op", "user_annotation", "cuda_runtime", "cuda_driver")
    threads: dict[Any, list[Mapping[str, Any]]] = defaultdict(list)
    for raw in events:
        if raw.get("cat") in categories:
            threads[raw.get("tid")].append(raw)
    found: list[_Event] = []
    launches: dict[int, _Event] = {}
    for thread in threads.values():
        stack: list[_Event] = []  # the ranges that are open, the outermost first
        for raw in sorted(thread, key=lambda e: (e["ts"], -e["dur"])):
            start, end = float(raw["ts"]), float(raw["ts"]) + float(raw["dur"])
            while stack and stack[-1].end <= start:
                stack.pop()
            parent = stack[-1] if stack else None
            event = _event(raw["name"], start, end, parent, raw.get("args", {}).get("Input Dims", ()), shapes)
            if parent is not None:
                parent.own -= end - start
            stack.append(event)
            found.append(event)
            if raw["cat"] in ("cuda_runtime", "cuda_driver") and "correlation" in raw.get("args", {}):
                launches[raw["args"]["correlation"]] = event
    return found, launches


def _event(name: str, start: float, end: float, parent: _Event | None, dims: Dims, shapes: Shapes) -> _Event:
    in_step = name == STEP or (parent is not None and parent.in_step)
    event = _Event(name, start, end, end - start, parent, None, None, in_step)
    inherited = parent.kind if parent is not None and parent.kind not in (None, FRAMEWORK, PYTHON) else None
    is_cast = inherited not in (AUGMENTATION, OPTIMIZER, COPIES) and CASTS.fullmatch(name) is not None
    if name == STEP:
        event.kind = PYTHON
    elif inherited is not None and not is_cast and parent is not None:
        event.kind, event.origin = inherited, parent.origin
    else:
        event.kind, event.origin = kind_of_op(name, dims, shapes), event
    return event


def kind_of_op(name: str, dims: Dims, shapes: Shapes) -> str | None:
    """The kind of an op or range.

    Args:
        name: the name of the op or range.
        dims: the dimensions of its inputs, as the trace has them.
        shapes: tells apart ops of the same name.

    Returns:
        The kind; None if the tables do not know the op.
    """
    for pattern, kind in OPS:
        if re.fullmatch(pattern, name):
            found = kind if isinstance(kind, str) else kind(shapes, dims)
            if found is not None:
                return found
    if generated := re.fullmatch(_GENERATED, name):
        return _named(generated[0], KERNELS)
    return FRAMEWORK if BOOKKEEPING.fullmatch(name) else None


def _of_kernels(kernels: Sequence[Mapping[str, Any]], launches: Mapping[int, _Event], num_steps: int) -> Breakdown:
    first, last = min(k["ts"] for k in kernels), max(k["ts"] + k["dur"] for k in kernels)
    result = Breakdown((last - first) / 1e3 / num_steps, num_steps, on_device=True)
    busy, end = 0.0, -math.inf
    for kernel in sorted(kernels, key=lambda k: k["ts"]):
        launch = launches.get(kernel.get("args", {}).get("correlation"))
        begin, finish = max(kernel["ts"], end), kernel["ts"] + kernel["dur"]
        alone = max(0.0, finish - begin)  # if two kernels overlap, only what the second one adds
        busy, end = busy + alone, max(end, finish)
        result.add(kind_of_kernel(kernel["name"], launch.kind if launch else None), _short(kernel["name"]), alone, 1)
    result.add(IDLE, IDLE, last - first - busy, 0)
    return result


def kind_of_kernel(name: str, of_op: str | None = None) -> str:
    """The kind of a kernel.

    Args:
        name: the kernel's name. If it is a kernel of the extension, its name decides.
        of_op: the kind of the op that launched it; it decides for other kernels. If it is not known, the name decides.
    """
    known = of_op if of_op not in (None, FRAMEWORK, PYTHON, UNCLASSIFIED) else None
    return _named(name, OWN_KERNELS) or known or _named(name.lower(), KERNELS) or UNCLASSIFIED


def _named(name: str, table: Iterable[tuple[str, str]]) -> str | None:
    return next((kind for pattern, kind in table if re.search(pattern, name)), None)


def _short(name: str) -> str:
    """A kernel's name without return type, template arguments and parameters."""
    name = re.sub(r"^void ", "", name)
    while (shorter := re.sub(r"<[^<>]*>|\([^()]*\)", "", name)) != name:
        name = shorter
    return name.replace("at::native::", "").strip() or "(anonymous)"


def _tensors(dims: Dims) -> list[list[int]]:
    """The shapes in an op's `Input Dims`, where a list of tensors stands as a list of shapes."""
    found: list[list[int]] = []
    for value in dims:
        if value and isinstance(value[0], list):
            found += _tensors(value)
        elif isinstance(value, list) and value:
            found.append(value)
    return found
