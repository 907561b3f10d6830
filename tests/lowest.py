"""Install the lowest versions that setup.cfg declares into a fresh environment, and train and resume every method.

``make lowest``. It downloads some gigabytes, takes minutes, and removes the environment at its end.
"""

import configparser
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
SMOKE = """
import tempfile, warnings
from pathlib import Path
from avalanche_contrastive import __version__
from avalanche_contrastive.bench.config import load_row, updated
from avalanche_contrastive.bench.run.execute import execute, versions
from avalanche_contrastive.registry import METHODS

warnings.filterwarnings("ignore")
print(versions())

class Stop(Exception):
    pass

def stop(share, words, milestone=""):
    if words.startswith("experience 4/"):
        raise Stop

for name in METHODS:
    config = updated(load_row(name, "split_digits").config, {"epochs": 2, "train_images": 300}, where=name)
    path = Path(tempfile.mkdtemp(), "run.pt")
    whole = execute(config, 0)
    try:
        execute(config, 0, report=stop, checkpoint=path)
    except Stop:
        assert path.exists(), "no checkpoint was saved"
    shares = []
    resumed = execute(config, 0, report=lambda share, *words: shares.append(share), checkpoint=path)
    assert shares[0] > 0.6, "it did not go on from the checkpoint"
    for key in ("accuracy_matrix", "recall_matrix"):
        assert resumed[key] == whole[key], key
    print(f"{name}: trains and resumes, final accuracy {whole['final_accuracy']:.3f}")
"""


def lowest() -> list[tuple[str, str]]:
    """Every requirement of the package with its lowest version."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    lines = parser["options"]["install_requires"].splitlines()
    return re.findall(r"^([\w-]+) >=([\d.]+)", "\n".join(lines), re.MULTILINE)


def main() -> None:
    """Make the environment, run the smoke test in it, remove it."""
    wanted = [f"{name}=={version}" for name, version in lowest()]
    print(" ".join(wanted), flush=True)
    with tempfile.TemporaryDirectory(prefix="lowest-") as folder:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        python = str(Path(folder, "bin", "python"))
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-cache-dir", *wanted, str(ROOT)], check=True)
        subprocess.run([python, "-c", SMOKE], check=True, cwd=folder)


if __name__ == "__main__":
    main()
