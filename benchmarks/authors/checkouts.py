"""The authors' repositories: which files of them are run, and how their modules are imported where there is no GPU."""

import hashlib
import importlib
import io
import subprocess
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn

__all__ = ["CHECKOUTS", "Checkout", "CheckoutError", "Source", "no_gpu_needed"]


class CheckoutError(ValueError):
    """A folder that is not the checkout it is given as."""


@dataclass(frozen=True)
class Source:
    """A public repository, at the commit that was compared, and its files that are run."""

    option: str
    repository: str
    commit: str
    files: tuple[str, ...]
    root: str = ""  # of its modules


CHECKOUTS = {
    source.option: source
    for source in (
        Source(
            "co2l",
            "chaht01/Co2L",
            "3af7064",
            (
                *("losses_negative_only.py", "util.py", "datasets.py", "main.py", "main_domain.py"),
                *("main_ce_buffer.py", "main_ce_buffer_domain.py", "main_linear_buffer.py"),
                *("networks/mlp.py", "networks/resnet_big.py"),
            ),
        ),
        Source(
            "ssil",
            "hongjoon0805/SS-IL-Official",
            "8c32381",
            (
                *("trainer/ssil.py", "trainer/trainer_factory.py"),
                *("data_handler/incremental_loader.py", "data_handler/dataset.py"),
            ),
        ),
        Source(
            "csd",
            "NiccoBiondi/ContrastiveSupervisedDistillation",
            "94d74f9",
            ("losses.py", "resnet.py", "trainer/plugins.py", "metric/recall_at_k.py", "metric/nearest_neighbor.py"),
        ),
        Source(
            "cl2r",
            "NiccoBiondi/CompatibleLifelongRepresentation",
            "be8bbf0",
            ("cl2r/metrics.py", "cl2r/eval.py"),
            root="src",
        ),
        Source(
            "iamcl2r",
            "miccunifi/iamcl2r",
            "1f16188",
            ("iamcl2r/compatibility_metrics.py", "iamcl2r/performance_metrics.py"),
            root="src",
        ),
        Source("cores", "NiccoBiondi/cores-compatibility", "1da991c", ("cores/metrics.py",), root="src"),
    )
}


class Checkout:
    """A repository on this machine.

    Args:
        option: key of ``CHECKOUTS``.
        folder: of the checkout.

    Raises:
        CheckoutError: it lacks files that are run.
    """

    def __init__(self, option: str, folder: Path) -> None:
        self.source, self.folder = CHECKOUTS[option], folder.resolve()
        self.root = self.folder / self.source.root
        lacking = [name for name in self.source.files if not (self.root / name).is_file()]
        if lacking:
            raise CheckoutError(
                f"--{option} {folder}: this must be a checkout of {self.source.repository}, but it lacks "
                f"{', '.join(lacking)}. Get it by: git clone https://github.com/{self.source.repository} "
                f"&& git -C {self.source.repository.split('/')[1]} checkout {self.source.commit}"
            )

    @contextmanager
    def modules(self, *names: str, stubs: Sequence[str] = (), shown: Mapping[str, str] | None = None) -> Iterator[Any]:
        """Its modules, imported for the length of the block and forgotten afterwards.

        Packages are taken without their ``__init__``: those load data sets and loggers that no comparison needs.

        Args:
            names: such as "trainer.ssil".
            stubs: modules that these import and nothing here uses, or that today's libraries lack; anything that is
                asked of them is a stand-in.
            shown: modules by package whose names the package's ``__init__`` would show.
        """
        tops = {name.split("/")[0].removesuffix(".py") for name in self.source.files}
        ours = {*tops, *stubs}
        hidden = {key: module for key, module in sys.modules.items() if key in ours or key.split(".")[0] in tops}
        for key in hidden:
            del sys.modules[key]
        sys.modules.update({name: _stub(name) for name in stubs})
        for top in tops:
            if (self.root / top).is_dir():
                sys.modules[top] = package = types.ModuleType(top)
                package.__path__ = [str(self.root / top)]
        sys.path.insert(0, str(self.root))
        try:
            for package_name, module in (shown or {}).items():
                vars(sys.modules[package_name]).update(vars(importlib.import_module(module)))
            loaded = [importlib.import_module(name) for name in names]
            yield loaded if len(loaded) > 1 else loaded[0]
        finally:
            sys.path.remove(str(self.root))
            for key in [key for key in sys.modules if key in ours or key.split(".")[0] in tops]:
                del sys.modules[key]
            sys.modules.update(hidden)

    def provenance(self) -> dict[str, Any]:
        """Where the code is from: the commit that is checked out, if git knows, and git's hashes of the files."""
        command = ["git", "-C", str(self.folder), "rev-parse", "--show-toplevel", "HEAD"]
        answer = subprocess.run(command, capture_output=True, text=True).stdout.split("\n")
        is_own = answer[0] != "" and Path(answer[0]) == self.folder
        blobs = {name: _git_hash((self.root / name).read_bytes()) for name in self.source.files}
        return {
            "repository": f"https://github.com/{self.source.repository}",
            "commit": self.source.commit,
            "checked_out": answer[1] if is_own else None,
            "files": blobs,
        }


def _git_hash(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _stub(name: str) -> types.ModuleType:
    """A module that has whatever is asked of it."""

    def anything(attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        return type(attribute, (mock.MagicMock,), {})

    module = types.ModuleType(name)
    module.__getattr__ = anything  # type: ignore[method-assign]
    return module


@contextmanager
def no_gpu_needed(*, pretend: bool = False) -> Iterator[None]:
    """The authors' code runs on the processor, and what it prints is not shown.

    Args:
        pretend: a GPU is said to be there: Co2L's domain script tells domains apart on a GPU only.
    """

    def stay(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self

    with ExitStack() as stack:
        stack.enter_context(mock.patch("torch.cuda.is_available", return_value=pretend))
        for movable in (torch.Tensor, nn.Module):
            stack.enter_context(mock.patch.object(movable, "cuda", stay))
        for silenced in (redirect_stdout, redirect_stderr):
            stack.enter_context(silenced(io.StringIO()))
        yield
