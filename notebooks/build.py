"""Executes the notebooks: ``NN_name.py`` (percent script, the source) becomes ``NN_name.ipynb`` with its outputs.

python notebooks/build.py [NAME ...]    execute them and write the .ipynb beside the scripts
python notebooks/build.py --check       execute them elsewhere; fail if one does not run clean or is stale
python notebooks/build.py --data PATH --out FOLDER [NAME ...]    execute them on MNIST, the .ipynb into FOLDER

Everything in an .ipynb but the outputs follows from its script: ids of cells, metadata, no times of execution. So a
second run changes outputs alone, and a notebook whose script has changed since is found by comparing the two.

A cell that draws says in its header what the picture shows, ``# %% alt="..."``, for readers who do not see it. What a
notebook says in words is checked against its numbers by ``words.py`` beside it, in a last cell that is not published.
"""

import argparse
import asyncio
import contextlib
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat
import psutil  # type: ignore[import-untyped, unused-ignore]
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from jupyter_client.provisioning.local_provisioner import LocalProvisioner
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbformat import NotebookNode

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parent))

from avalanche_contrastive.bench.files import write_text  # noqa: E402
from notebooks.compare import (  # noqa: E402
    METADATA,
    PICTURE,
    code_cells,
    other_texts,
    read_script,
    stale,
    texts,
    unclean,
)

LIMIT = 90.0  # processor seconds of one notebook: five of them in under 4 minutes on two cores
DATA_LIMIT = 600.0  # the same on larger data
DATA = "NOTEBOOK_DATA"  # the variable that the notebooks read
STOP = 900.0  # seconds after which a notebook hangs, however busy the machine is
WORDS = "words.py"  # its wrong(name, namespace) gives the statements that do not fit the numbers
# What other libraries say on their own account, on some machines and at some times only.
FOREIGN = (
    r"[^\n]*: SyntaxWarning: [^\n]*\n(?:  [^\n]*\n?)?",  # Avalanche's escapes, when Python compiles it
    r"[^\n]*replay\.py:\d+: DeprecationWarning: [^\n]*\n(?:  [^\n]*\n?)?",  # Avalanche's replay calls its own `update`
    r"[^\n]*Matplotlib is building the font cache[^\n]*\n?",  # its first use on a machine
)
# tqdm misses its widgets; Avalanche misses a logger, but the notebooks read what `eval` returns.
SILENT = ("IProgress not found", "No loggers specified")
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


@dataclass
class Outcome:
    """What an execution gave.

    Args:
        name: of the notebook.
        notebook: executed, as far as it went.
        problems: one line or more each.
        wrong: what the notebook says and its numbers do not.
        processor: seconds of processor time, of the notebook and the processes that it started.
        elapsed: seconds by the clock.
    """

    name: str
    notebook: NotebookNode
    problems: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    processor: float = 0.0
    elapsed: float = 0.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Build or check; 0 when all is well, 1 when not, 2 for a wrong command line."""
    parsed = _parser().parse_args(arguments)
    try:
        sources = find(parsed.folder, parsed.names)
        _check_out(parsed)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    problems: list[str] = []

    def finish(outcome: Outcome) -> None:
        problems.extend(f"{outcome.name}: {problem}" for problem in _finish(outcome, parsed))

    try:
        asyncio.run(_execute_all(sources, parsed.jobs, parsed.data, finish))
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130
    for problem in problems:
        print(f"\n{problem}", file=sys.stderr)
    verb = "checked" if parsed.check else "built"
    print(f"\n{len(sources)} notebooks {verb}: {f'{len(problems)} problems' if problems else 'all well'}")
    return 1 if problems else 0


def _check_out(parsed: argparse.Namespace) -> None:
    """Make the folder for the notebooks.

    Raises:
        ValueError: what is committed would be written or checked on other data than the digits.
    """
    if parsed.check and (parsed.data or parsed.out):
        raise ValueError("--check takes no --data and no --out: it is about the notebooks beside the scripts")
    if parsed.data and (parsed.out is None or parsed.out.resolve() in (parsed.folder.resolve(), FOLDER)):
        raise ValueError("--data needs --out, another folder: the notebooks beside the scripts are of the digits")
    if parsed.out is not None:
        parsed.out.mkdir(parents=True, exist_ok=True)


def _finish(outcome: Outcome, parsed: argparse.Namespace) -> list[str]:
    """Say how an execution went, write or check its notebook, and give all problems."""
    path = (parsed.out or parsed.folder) / f"{outcome.name}.ipynb"
    limit = parsed.limit if parsed.limit is not None else DATA_LIMIT if parsed.data else LIMIT
    found = [*outcome.problems, *_too_long(outcome, limit)]
    if outcome.wrong and not parsed.data:
        found.append(f"says what its numbers do not: {'; '.join(outcome.wrong)}")
    if parsed.check:
        found += stale(path.with_suffix(".py"), path, None if outcome.problems else outcome.notebook)
    elif not outcome.problems:
        write_text(path, nbformat.writes(outcome.notebook) + "\n")
    times = f"{outcome.processor:.0f} s of processor time, {outcome.elapsed:.0f} s elapsed"
    print(f"{outcome.name}: {times}{'; FAILED' if found else ''}", flush=True)
    if outcome.wrong and parsed.data:
        print(f"note: {outcome.name}: written for the digits, and not true of these data: {'; '.join(outcome.wrong)}")
    if parsed.check and not found and (numbers := other_texts(outcome.notebook, path)):
        print(f"note: {outcome.name}: cells {numbers} print other text than committed, as on other machines")
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python notebooks/build.py", description="Execute the percent scripts and write the notebooks."
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="such as 01_quick_start; default: all")
    parser.add_argument(
        "--check", action="store_true", help="write nothing; fail if a notebook does not run clean or is stale"
    )
    parser.add_argument("--jobs", type=int, choices=(1, 2), default=2, help="at a time (default: %(default)s)")
    parser.add_argument(
        "--limit",
        type=float,
        metavar="SECONDS",
        help=f"processor time that each may take (default: {LIMIT:g}, with --data {DATA_LIMIT:g})",
    )
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where they are (default: beside this script)")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where the .ipynb go (default: beside the scripts)")
    parser.add_argument(
        "--data",
        metavar="PATH",
        help=f"a folder with MNIST/raw, for those that take other data than the digits; needs --out. {DATA} in the "
        "environment means nothing here, so that nobody's setting gets into what is committed",
    )
    return parser


def find(folder: Path, names: Sequence[str] = ()) -> list[Path]:
    """The scripts of these notebooks, or all.

    Raises:
        ValueError: one is not there.
    """
    known = {path.stem: path for path in sorted(folder.glob("[0-9][0-9]_*.py"))}
    wanted = [Path(name).stem for name in names] or list(known)
    missing = [name for name in wanted if name not in known]
    if missing or not known:
        raise ValueError(f"{folder}: no notebook {', '.join(missing)}. Known: {', '.join(known) or 'none'}")
    return [known[name] for name in wanted]


async def _execute_all(sources: Sequence[Path], jobs: int, data: str | None, finish: Callable[[Outcome], None]) -> None:
    turn = asyncio.Semaphore(jobs)

    async def one(source: Path) -> None:
        async with turn:
            finish(await execute(source, data=data, stop=2 * STOP if data else STOP))

    await asyncio.gather(*(one(source) for source in sources))


async def execute(source: Path, *, data: str | None = None, stop: float = STOP) -> Outcome:
    """Run a script as a notebook in a fresh kernel of this Python, in the script's folder.

    Args:
        source: the percent script.
        data: path of other data than the digits.
        stop: seconds after which it is stopped.
    """
    notebook = read_script(source)
    outcome = Outcome(source.stem, notebook)
    if (source.parent / WORDS).is_file():
        check = f"from words import wrong\nprint(*wrong({source.stem!r}, globals()), sep='\\n')"
        notebook.cells.append(nbformat.v4.new_code_cell(check))
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        manager = _manager(scratch)

        def measure(**_: Any) -> None:
            assert isinstance(manager.provisioner, LocalProvisioner)
            spent = psutil.Process(manager.provisioner.pid).cpu_times()
            outcome.processor = spent.user + spent.system + spent.children_user + spent.children_system

        client = NotebookClient(
            notebook,
            km=manager,
            timeout=None,
            record_timing=False,
            shutdown_kernel="immediate",
            coalesce_streams=True,
            on_notebook_start=_let_go_of_signals,
            on_cell_executed=measure,
        )
        running = client.async_execute(cwd=str(source.parent), env=_environment(scratch, data), cleanup_kc=True)
        try:
            await asyncio.wait_for(running, stop)
        except CellExecutionError as error:
            outcome.problems.append(f"does not run:\n{COLOURS.sub('', str(error)).strip()}")
        except (DeadKernelError, TimeoutError):  # nbclient may raise the former where it was stopped, too
            hangs = time.monotonic() - began >= stop
            died = "its process ended; was there not enough memory?"
            outcome.problems.append(f"hangs: stopped after {stop:.0f} s" if hangs else died)
    outcome.elapsed = time.monotonic() - began
    notebook.metadata = nbformat.from_dict(METADATA)  # the kernel has put its version there
    _remove_foreign(notebook)
    if (source.parent / WORDS).is_file():
        outcome.wrong = [line for _, text in texts(notebook.cells.pop()) for line in text.split("\n") if line]
    _name_pictures(notebook)
    outcome.problems += unclean(notebook, source.parent)
    return outcome


def _manager(scratch: str) -> AsyncKernelManager:
    """Of a kernel of this Python, with its files in that folder."""
    return AsyncKernelManager(
        kernel_name="python3",
        # No folders to look in: "python3" is then this Python, whatever is registered under that name.
        kernel_spec_manager=KernelSpecManager(kernel_dirs=[]),
        connection_file=str(Path(scratch) / "kernel.json"),
        transport="tcp" if os.name == "nt" else "ipc",  # a socket in the folder: nobody else can listen
    )


def _let_go_of_signals(**_: Any) -> None:
    """Undo nbclient's handlers, which end one kernel and go on: Ctrl-C is to end this program and all kernels."""
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError):  # Windows has no handlers in loops
            asyncio.get_running_loop().remove_signal_handler(number)


def _environment(scratch: str, data: str | None) -> dict[str, str]:
    """This process', without what would make outputs differ from one user to the next."""
    kept = {key: value for key, value in os.environ.items() if key != DATA}
    if data:
        kept[DATA] = str(Path(data).expanduser().resolve())  # the kernel runs in another folder
    return kept | {
        "CUDA_VISIBLE_DEVICES": "",
        "IPYTHONDIR": scratch,  # nobody's start-up files
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "OMP_NUM_THREADS": "1",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # the kernel's debugger warns otherwise
        "PYTHONHASHSEED": "0",
        "PYTHONWARNINGS": ",".join(f"ignore:{start}" for start in SILENT),
    }


def _remove_foreign(notebook: NotebookNode) -> None:
    for cell in code_cells(notebook):
        for output in cell.outputs:
            if output.output_type == "stream" and output.name == "stderr":
                for pattern in FOREIGN:
                    output.text = re.sub(pattern, "", output.text)
        cell.outputs = [o for o in cell.outputs if o.output_type != "stream" or o.text.strip()]


def _name_pictures(notebook: NotebookNode) -> None:
    """Say what a picture shows where Jupyter, nbconvert and GitHub look for it."""
    for cell in code_cells(notebook):
        for output in cell.outputs:
            if "alt" in cell.metadata and PICTURE in output.get("data", {}):
                output.metadata[PICTURE] = {"alt": cell.metadata["alt"]}


def _too_long(outcome: Outcome, limit: float) -> list[str]:
    if outcome.processor <= limit:
        return []
    return [f"takes {outcome.processor:.0f} s of processor time; the limit is {limit:g} s"]


if __name__ == "__main__":
    sys.exit(main())
