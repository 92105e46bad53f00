"""What in torch can reach the libraries that trim.py replaces by stubs, found without running it.

    python stub_callers.py SITE_PACKAGES        (minutes; needs binutils)

Every direct call, jump and address taken in torch's libraries is read from their machine code, every function in a
table (a class's virtual functions, a registration) from their relocations. From the stubbed functions the callers are
followed backwards to where nothing calls any more: operators (`wrapper_BACKEND_NAME`), static initialisers, and the
rest, mostly classes and functions that other libraries export. A call through a pointer counts for whoever takes the
address: too many callers are found rather than too few.

An initialiser is shown with the way from it to the library, because it runs whenever torch is imported: registering an
operator, or the destructor of an empty cache, is harmless; a call would not be.
"""

from __future__ import annotations

import bisect
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from trim import SERVE_STUBBED, STUBBED, dynamic_symbols, matches

HEAD = re.compile(r"^([0-9a-f]+) <(.+)>:$")
JUMP = re.compile(r"\t(?:call|j[a-z]+) +([0-9a-f]+) <([^>]+)>$")
REFERENCE = re.compile(r"# ([0-9a-f]+) <")
OPERATOR = re.compile(r"wrapper_[A-Z]\w+")
Callers = dict[str, set[str]]


def main(site: Path) -> None:
    """Print the callers of each library."""
    stubs = STUBBED | SERVE_STUBBED
    callers: Callers = defaultdict(set)
    for name in sorted(set[str]().union(*stubs.values())):
        add_callers(matches(site, f"torch/lib/{name}")[0], callers)
    for stub in stubs:
        (library,) = matches(site, f"nvidia/**/{stub}.so.*")
        functions = {symbol.partition("@")[0] for symbol in dynamic_symbols(library, "--defined-only")}
        report(stub, *follow({name for name in functions if not name.startswith("_Z")}, callers))


def add_callers(library: Path, callers: Callers) -> None:
    """Add to `callers` who refers to each function of `library` or imported by it. Tables are named `table NAME`."""
    names, tables, aliases = symbol_table(library)

    def named(address: str, name: str) -> str:
        """One name for what has several: the one of its address, or of what a jump table for imports leads to."""
        plain = name.partition("@")[0]
        return names.get(int(address, 16)) or names.get(aliases.get(plain, 0)) or plain

    slots: dict[int, str] = {}  # address of a pointer -> what it points at
    for line in output("readelf", "-rW", library):
        words = line.split()
        if len(words) < 4 or not words[2].startswith("R_X86_64_"):
            continue
        slot, target = int(words[0], 16), named("0", words[4]) if len(words) > 4 else named(words[3], "")
        if not target:
            continue
        slots[slot] = target
        place = bisect.bisect_right(tables, slot) - 1
        if place >= 0 and words[2] in ("R_X86_64_64", "R_X86_64_RELATIVE"):
            callers[target].add(names[tables[place]])
    current = ""
    for line in output("objdump", "-d", "--no-show-raw-insn", library):
        if head := HEAD.match(line):
            current = named(head[1], head[2])
        elif jump := JUMP.search(line):
            callers[named(jump[1], jump[2])].add(current)
        elif reference := REFERENCE.search(line):
            address = int(reference[1], 16)
            if target := slots.get(address) or names.get(address):
                callers[target].add(current)


def symbol_table(library: Path) -> tuple[dict[int, str], list[int], dict[str, int]]:
    """What `library` defines: address -> name, the addresses of tables in order, name -> address."""
    names: dict[int, str] = {}
    tables: set[int] = set()
    aliases: dict[str, int] = {}
    for line in output("readelf", "-sW", library):
        words = line.split()
        if len(words) > 7 and words[3] in ("FUNC", "OBJECT") and words[6] != "UND":
            address, name = int(words[1], 16), words[7].partition("@")[0]
            if words[3] == "OBJECT":
                tables.add(address)
                name = f"table {name}"
            names[address] = name
            aliases[name] = address
    return names, sorted(tables), aliases


def follow(functions: set[str], callers: Callers) -> tuple[dict[str, str], set[str]]:
    """Everything that reaches `functions`, with the next step on the way there; and of it, where the search ended."""
    step: dict[str, str] = {}
    ends: set[str] = set()
    todo = sorted(functions)
    while todo:
        function = todo.pop()
        found = callers.get(function, set()) - {function}
        if not found and function in step:
            ends.add(function)
        for caller in sorted(found - step.keys() - functions):
            step[caller] = function
            if caller.startswith("_GLOBAL__sub_I") or OPERATOR.search(caller):
                ends.add(caller)
            else:
                todo.append(caller)
    return step, ends


def report(stub: str, step: dict[str, str], ends: set[str]) -> None:
    """Print what `follow` found."""
    plain = dict(zip(step, demangled(step), strict=True))
    operators = {found[0] for end in ends if (found := OPERATOR.search(plain[end]))}
    print(f"{stub}: reached by {len(step)} functions and tables")
    print("  operators:", *sorted(operators))
    for start in sorted(end for end in ends if end.startswith("_GLOBAL__sub_I")):
        way = [start]
        while way[-1] in step:
            way.append(step[way[-1]])
        print("  initialiser:", " -> ".join(without_arguments(plain.get(function, function)) for function in way))
    rest = {plain[end] for end in ends if not (end.startswith("_GLOBAL__sub_I") or OPERATOR.search(plain[end]))}
    print("  other:", *sorted({without_arguments(name) for name in rest}), sep="\n    ")


def demangled(names: Iterable[str]) -> list[str]:
    """C++ names as they are written."""
    done = subprocess.run(["c++filt"], input="\n".join(names), check=True, capture_output=True, text=True)
    return done.stdout.splitlines()


def without_arguments(name: str) -> str:
    return name.replace("(anonymous namespace)::", "").partition("(")[0]


def output(*command: str | Path) -> Iterator[str]:
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None  # it was asked for
        for line in program.stdout:
            yield line.rstrip()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
