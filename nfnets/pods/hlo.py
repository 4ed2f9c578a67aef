"""Parses compiled HLO: the operations, how often they run, and their estimated cost.

XLA's TPU compiler annotates each operation with the clock cycles that it estimates. Loops
count as often as they run, branches of a conditional as often as `branch_shares` says.
"""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import math
import re

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
_ARRAY = re.compile(r"\b(pred|bf16|[sufc]\d+|f8\w+)\[([\d,]*)\](\{[^}]*\})?")
_ON_CHIP = re.compile(r"S\([1-9]")
_TABLE = re.compile(r"^(\d+) (.*)$")
_DTYPE_BYTES = {"pred": 1, "bf16": 2}

# Operations that only name memory.
_FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all")

# The share of executions of each branch of a conditional, which has this `op_name`.
BranchShares = Callable[[str, int], Sequence[float]]


@dataclasses.dataclass(frozen=True)
class Operation:
    """An operation of a program, or a fusion of several.

    Attributes:
      name: unique in its program.
      opcode: such as `fusion`, `convolution`, `all-reduce`.
      result: (dtype, shape) of each array of the result.
      repeats: how often it is executed; branches count with their shares.
      cycles: estimated for all repeats; 0 where the compiler gives no estimate.
      traffic: bytes of operands and results in the device's main memory, for all repeats;
        an operand of which a part is used counts as a whole.
      scope: JAX's name of the operation with the scopes around it.
      frame: number of the source location, see `Program.source`.
      fused: operations inside of a fusion, none of them with an estimate of its own.
      text: everything that follows the opcode.
    """

    name: str
    opcode: str
    result: tuple[tuple[str, tuple[int, ...]], ...]
    repeats: float
    cycles: float
    traffic: float
    scope: str
    frame: str | None
    fused: "tuple[Operation, ...]"
    text: str

    @property
    def elements(self) -> int:
        """Number of scalars of the result."""
        return sum(math.prod(shape) for _, shape in self.result)

    @property
    def num_bytes(self) -> int:
        """Size of the result."""
        return sum(dtype_bytes(dtype) * math.prod(shape) for dtype, shape in self.result)

    def parts(self) -> "Iterator[Operation]":
        """Yields the operation and those that are fused into it."""
        yield self
        yield from self.fused


def dtype_bytes(dtype: str) -> int:
    """Returns the size of one scalar of an HLO type such as `bf16`."""
    if dtype.startswith("f8"):
        return 1
    return _DTYPE_BYTES.get(dtype) or int(dtype[1:]) // 8


def mean_of_branches(scope: str, count: int) -> Sequence[float]:
    """The `BranchShares` under which all branches are equally frequent."""
    del scope
    return [1 / count] * count


class Program:
    """A compiled program; `text` is its HLO."""

    def __init__(self, text: str) -> None:
        """Reads the text of `jax.stages.Compiled.as_text`."""
        self.text = text
        self._lines: dict[str, list[str]] = {}
        self._tables: dict[str, dict[str, str]] = {}
        self._entry = ""
        lines: list[str] | None = None
        table: dict[str, str] | None = None
        for line in text.splitlines():
            if start := _COMPUTATION.match(line):
                lines = self._lines.setdefault(start[2], [])
                self._entry = start[2] if start[1] else self._entry
            elif line.startswith("}"):
                lines = None
            elif lines is not None:
                lines.append(line)
            elif row := _TABLE.match(line):
                if table is not None:
                    table[row[1]] = row[2]
            elif line.isalpha():
                table = self._tables.setdefault(line, {})

    def operations(
        self, branch_shares: BranchShares = mean_of_branches
    ) -> Iterator[Operation]:
        """Yields the executed operations, in the order of the text."""
        yield from self._walk(self._entry, 1.0, branch_shares)

    def source(self, operation: Operation) -> list[str]:
        """Returns the call stack of an operation, `file:line function`, innermost first."""
        stack = []
        frame = operation.frame
        frames = self._tables.get("StackFrames", {})
        while frame in frames:
            place = self._tables["FileLocations"][_field(frames[frame], "file_location_id")]
            file = self._tables["FileNames"][_field(place, "file_name_id")].strip('"')
            function = self._tables["FunctionNames"][_field(place, "function_name_id")]
            line = _field(place, "line")
            stack.append(f"{file}:{line} {function.strip(chr(34))}")
            parent = _field(frames[frame], "parent_frame_id")
            frame = None if parent == frame else parent
        return stack

    def _walk(
        self, computation: str, repeats: float, shares: BranchShares
    ) -> Iterator[Operation]:
        sizes: dict[str, int] = {}
        for line in self._lines[computation]:
            operation = self._parse(line, repeats, sizes)
            if operation is None:
                continue
            text = operation.text
            match operation.opcode:
                case "while":
                    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', text)
                    condition = _called(text, "condition")[0]
                    trips = int(known[1]) if known else self._trips(condition)
                    yield from self._walk(_called(text, "body")[0], repeats * trips, shares)
                case "conditional":
                    branches = _called(text, "branch_computations") or [
                        *_called(text, "true_computation"),
                        *_called(text, "false_computation"),
                    ]
                    weights = shares(operation.scope, len(branches))
                    for branch, weight in zip(branches, weights, strict=True):
                        yield from self._walk(branch, repeats * weight, shares)
                case "call":
                    yield from self._walk(_called(text, "to_apply")[0], repeats, shares)
                case _:
                    yield operation

    def _parse(self, line: str, repeats: float, sizes: dict[str, int]) -> Operation | None:
        """Reads an instruction; `sizes` has the bytes of those before it in memory."""
        match = _INSTRUCTION.match(line)
        if match is None:
            return None
        name, result, opcode, text = match.groups()
        arrays = [
            (dtype, tuple(int(n) for n in dims.split(",") if n), layout)
            for dtype, dims, layout in _ARRAY.findall(result)
        ]
        sizes[name] = sum(
            dtype_bytes(dtype) * math.prod(shape)
            for dtype, shape, layout in arrays
            if not _ON_CHIP.search(layout)
        )
        operands = re.findall(r"%([\w.\-]+)", text.partition("), ")[0])
        traffic = sizes[name] + sum(sizes.get(operand, 0) for operand in operands)
        cycles = re.search(r'"estimated_cycles":"(\d+)"', text)
        scope = re.search(r'op_name="([^"]*)"', text)
        frame = re.search(r"stack_frame_id=(\d+)", text)
        fused: list[Operation] = []
        if opcode == "fusion":
            inner = self._lines[_called(text, "calls")[0]]
            for part in (self._parse(line, repeats, {}) for line in inner):
                fused += [] if part is None else part.parts()
        return Operation(
            name=name,
            opcode=opcode,
            result=tuple((dtype, shape) for dtype, shape, _ in arrays),
            repeats=repeats,
            cycles=repeats * int(cycles[1]) if cycles else 0.0,
            traffic=0.0 if opcode in _FREE else repeats * traffic,
            scope=scope[1] if scope else "",
            frame=frame[1] if frame else None,
            fused=tuple(fused),
            text=text,
        )

    def _trips(self, condition: str) -> int:
        """Returns how often a loop runs whose counter goes from 0 to a constant; else 1."""
        constants = {}
        for line in self._lines[condition]:
            if match := re.match(r"^\s+%?([\w.\-]+) = s32\[\]\S* constant\((\d+)\)", line):
                constants[match[1]] = int(match[2])
        for line in self._lines[condition]:
            compare = re.search(r"compare\(%?[\w.\-]+, %?([\w.\-]+)\), direction=LT", line)
            if compare and compare[1] in constants:
                return constants[compare[1]]
        return 1


def _called(text: str, attribute: str) -> list[str]:
    """Returns the computations that an attribute such as `calls` names."""
    match = re.search(rf"\b{attribute}=(\{{[^}}]*\}}|%?[\w.\-]+)", text)
    return re.findall(r"[\w.\-]+", match[1]) if match else []


def _field(row: str, name: str) -> str:
    match = re.search(rf"\b{name}=(\d+)", row)
    return match[1] if match else ""
