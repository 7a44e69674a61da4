"""Write `wallet/client/aio/`, the asynchronous twin of the wallet's client, from the synchronous sources.

python -m sandbox.async_client            writes it
python -m sandbox.async_client --check    exits 1 and names what differs

One source and a twin made by replacing tokens, as httpcore and psycopg do: what is mended in one is mended in both. In
the client's classes a method that sends becomes `async def` and every call of it is awaited; one that only builds or
signs stays as it is; a list that comes page by page becomes an asynchronous iterator. Everything else of a module
(functions, exceptions, constants) is imported from the synchronous one, so there is one of each.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CLIENT = Path(__file__).resolve().parent.parent / "wallet" / "client"
TWIN = CLIENT / "aio"
PACKAGE = "wallet.client"
_SENDING_OF_HTTP = {"get", "post", "request", "close"}
_RENAMED = {
    "ServiceClient": "AsyncServiceClient",
    "Iterator": "AsyncIterator",
    "BaseTransport": "AsyncBaseTransport",
    "close": "aclose",
    "__enter__": "__aenter__",
    "__exit__": "__aexit__",
}
_PHRASES = {"Sync client of one wallet service.": "Async client of one wallet service."}
_HEADS = {
    "": '''"""Asynchronous twin of `wallet.client`, made by `python -m sandbox.async_client`: change that one.

async with AsyncWalletClient(url, signer=signer) as client:
    view = await client.get_wallet(wallet)
    async for line in client.history(wallet):
        ...
"""''',
}
_HEAD = '"""Asynchronous twin of `{module}`, made by `python -m sandbox.async_client`: change that one."""'


class UnknownShape(ValueError):
    """The synchronous source does what cannot be turned: say it more simply there, or teach this module."""


@dataclass(frozen=True, slots=True)
class _Module:
    name: str
    """"" is the package itself."""
    source: bytes
    tree: ast.Module

    @property
    def dotted(self) -> str:
        return f"{PACKAGE}.{self.name}" if self.name else PACKAGE

    @property
    def clients(self) -> list[ast.ClassDef]:
        return [item for item in self.tree.body if isinstance(item, ast.ClassDef) and _has_http(item)]


def documents() -> dict[Path, str]:
    """Every file of the twin, formatted."""
    modules = _modules()
    methods = {
        item.name: item
        for module in modules
        for client in module.clients
        for item in client.body
        if isinstance(item, ast.FunctionDef)
    }
    sending = _sending(methods)
    classes = {client.name for module in modules for client in module.clients}
    return {
        TWIN / (f"{module.name}.py" if module.name else "__init__.py"): _formatted(
            _Turn(module, methods, sending, classes).text(), TWIN / f"{module.name or '__init__'}.py"
        )
        for module in modules
    }


def outdated() -> list[str]:
    """Files of the twin that are not what the sources say, and files that should not be there."""
    made = documents()
    wrong = {path for path, text in made.items() if not path.exists() or path.read_text(encoding="utf-8") != text}
    return sorted(path.name for path in wrong | (set(TWIN.glob("*.py")) - set(made)))


def _modules() -> list[_Module]:
    paths = [CLIENT / "__init__.py", *sorted(path for path in CLIENT.glob("*.py") if path.name != "__init__.py")]
    found = []
    for path in paths:
        source = path.read_bytes()
        name = "" if path.name == "__init__.py" else path.stem
        module = _Module(name, source, ast.parse(source))
        if module.clients:
            found.append(module)
    return found


def _has_http(item: ast.ClassDef) -> bool:
    """Whether a class is (a part of) a client: it has, or makes, `self._http`."""
    return any(
        (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == "_http")
        or (isinstance(node, ast.Attribute) and node.attr == "_http")
        for node in ast.walk(item)
    )


def _of_self(node: ast.AST) -> str | None:
    """x of `self.x`."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self":
        return node.attr
    return None


def _is_sending_call(node: ast.AST, sending: set[str]) -> bool:
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
        return False
    if _of_self(node.func.value) == "_http":
        return node.func.attr in _SENDING_OF_HTTP
    return _of_self(node.func) in sending


def _is_iterator(method: ast.FunctionDef) -> bool:
    returns = method.returns
    return isinstance(returns, ast.Subscript) and isinstance(returns.value, ast.Name) and returns.value.id == "Iterator"


def _sending(methods: dict[str, ast.FunctionDef]) -> set[str]:
    """The methods that send, by themselves or through another; an iterator is not called with await."""
    sending: set[str] = {"__enter__"}
    while True:
        more = {
            name
            for name, method in methods.items()
            if name not in sending
            and not _is_iterator(method)
            and any(_is_sending_call(node, sending) for node in ast.walk(method))
        }
        if not more:
            return sending
        sending |= more


@dataclass(slots=True)
class _Turn:
    """One module turned: edits by position in the text of its client classes, so that comments stay."""

    module: _Module
    methods: dict[str, ast.FunctionDef]
    sending: set[str]
    classes: set[str]

    def text(self) -> str:
        head = _HEADS.get(self.module.name) or _HEAD.format(module=self.module.dotted)
        bodies = "\n\n\n".join(self._turned(client) for client in self.module.clients)
        return "\n\n".join([head, "from __future__ import annotations", *self._imports(), bodies]) + "\n"

    def _imports(self) -> list[str]:
        """The module's own imports, and what it defines beside its clients: what is not used is taken out later."""
        lines = ["from collections.abc import AsyncIterator, Awaitable"]
        defined: list[str] = []
        for item in self.module.tree.body:
            if isinstance(item, ast.Import):
                lines.append(ast.unparse(item))
            elif isinstance(item, ast.ImportFrom) and item.module != "__future__":
                lines += self._import_from(item)
            elif isinstance(item, ast.FunctionDef | ast.ClassDef) and item.name not in self.classes:
                defined.append(item.name)
            elif isinstance(item, ast.Assign):
                defined += [target.id for target in item.targets if isinstance(target, ast.Name)]
        return [*lines, *(f"from {self.module.dotted} import {name}" for name in defined)]

    def _import_from(self, item: ast.ImportFrom) -> Iterator[str]:
        for alias in item.names:
            if alias.asname is not None:  # a re-export: the synchronous module's
                continue
            name, module = alias.name, item.module or ""
            if name in self.classes:
                yield f"from {module.replace(PACKAGE, PACKAGE + '.aio', 1)} import Async{name}"
            elif name != "Iterator":
                yield f"from {module} import {_RENAMED.get(name, name)}"

    def _turned(self, client: ast.ClassDef) -> str:
        lines = self.module.source.splitlines(keepends=True)
        starts = [0]
        for line in lines:
            starts.append(starts[-1] + len(line))

        def begin(node: ast.expr | ast.stmt) -> int:
            return starts[node.lineno - 1] + node.col_offset

        def end(node: ast.expr | ast.stmt) -> int:
            if node.end_lineno is None or node.end_col_offset is None:
                raise UnknownShape("a node without an end")
            return starts[node.end_lineno - 1] + node.end_col_offset

        edits: list[tuple[int, int, str]] = []
        parents = {child: node for node in ast.walk(client) for child in ast.iter_child_nodes(node)}
        edits.append(
            (begin(client) + len("class "), begin(client) + len(f"class {client.name}"), f"Async{client.name}")
        )
        for node in ast.walk(client):
            if isinstance(node, ast.FunctionDef):
                edits += self._method_edits(node, begin(node))
            elif isinstance(node, ast.Name):
                new = f"Async{node.id}" if node.id in self.classes else _RENAMED.get(node.id)
                if new:
                    edits.append((begin(node), end(node), new))
            elif isinstance(node, ast.Attribute) and node.attr in _RENAMED:
                edits.append((end(node) - len(node.attr), end(node), _RENAMED[node.attr]))
            elif isinstance(node, ast.YieldFrom):
                indent = " " * parents[node].col_offset  # type: ignore[attr-defined]
                edits.append((begin(node), begin(node.value), "for item in "))
                edits.append((end(node), end(node), f":\n{indent}    yield item"))
            elif isinstance(node, ast.AnnAssign):
                edits += self._declaration_edits(node, begin, end)
            if _is_sending_call(node, self.sending):
                if not isinstance(node, ast.Call):
                    raise UnknownShape("not a call")
                is_inner = isinstance(parents[node], ast.Attribute | ast.Subscript)
                edits.append((begin(node), begin(node), "(await " if is_inner else "await "))
                if is_inner:
                    edits.append((end(node), end(node), ")"))
            elif isinstance(node, ast.comprehension) and self._is_paged(node, parents):
                # `for x in pages`: the word stands before the target.
                before = self.module.source.rindex(b"for", 0, begin(node.target))
                edits.append((before, before, "async "))
        text = self.module.source
        for first, last, new in sorted(edits, reverse=True):
            text = text[:first] + new.encode() + text[last:]
        grown = len(text) - len(self.module.source)
        turned = text[begin(client) : end(client) + grown].decode()
        for old, phrase in _PHRASES.items():
            turned = turned.replace(old, phrase)
        return turned

    def _method_edits(self, method: ast.FunctionDef, begin: int) -> Iterator[tuple[int, int, str]]:
        makes_pages = any(isinstance(node, ast.Yield | ast.YieldFrom) for node in ast.walk(method))
        name = _RENAMED.get(method.name, method.name)
        word = "async def" if method.name in self.sending or makes_pages else "def"
        yield begin, begin + len(f"def {method.name}"), f"{word} {name}"

    def _declaration_edits(self, node: ast.AnnAssign, begin: object, end: object) -> Iterator[tuple[int, int, str]]:
        """`_post: Callable[[...], Any]` of a mixin: what it returns is awaited."""
        if not isinstance(node.target, ast.Name) or node.target.id not in self.sending:
            return
        annotation = node.annotation
        if not isinstance(annotation, ast.Subscript) or not isinstance(annotation.slice, ast.Tuple):
            raise UnknownShape(f"{node.target.id} is declared as no Callable")
        if not callable(begin) or not callable(end):
            raise UnknownShape("positions")
        result = annotation.slice.elts[-1]
        yield begin(result), begin(result), "Awaitable["
        yield end(result), end(result), "]"

    def _is_paged(self, loop: ast.comprehension, parents: dict[ast.AST, ast.AST]) -> bool:
        """Whether a comprehension goes over what another of the client's iterators yields."""
        node: ast.AST = loop
        while not isinstance(node, ast.FunctionDef):
            node = parents[node]
        paged = {name for name, method in self.methods.items() if _is_iterator(method)}
        names = {
            target.id
            for item in ast.walk(node)
            if isinstance(item, ast.Assign) and isinstance(item.value, ast.Call) and _of_self(item.value.func) in paged
            for target in item.targets
            if isinstance(target, ast.Name)
        }
        over = loop.iter
        return (isinstance(over, ast.Call) and _of_self(over.func) in paged) or (
            isinstance(over, ast.Name) and over.id in names
        )


def _formatted(text: str, path: Path) -> str:
    """Sorted, without imports that nothing uses. By the name of an ordinary module, wherever the twin is: the linter
    never removes imports of an __init__.py, and knows what is the project's own by the place."""
    name = str(CLIENT / "client.py")
    for command in (
        ["check", "--quiet", "--fix", "--select", "F401,I", "--stdin-filename", name, "-"],
        ["format", "--quiet", "--stdin-filename", name, "-"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command], input=text, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise UnknownShape(f"{path.name}: {done.stderr or done.stdout}")
        text = done.stdout
    return text


def main() -> None:
    if "--check" in sys.argv[1:]:
        wrong = outdated()
        if wrong:
            sys.stderr.write(f"out of date: wallet/client/aio/{', '.join(wrong)}; run `make openapi` and commit\n")
            raise SystemExit(1)
        return
    TWIN.mkdir(exist_ok=True)
    made = documents()
    for path in set(TWIN.glob("*.py")) - set(made):
        path.unlink()
    for path, text in made.items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
