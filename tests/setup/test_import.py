"""What importing the package costs and needs, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("timm", "mmcv", "mmengine", "mmseg", "mmdet", "torchvision", "matplotlib", "safetensors", "scipy", "sklearn")

# The environment without some packages, as an import hook sees it.
WITHOUT = """
import sys
class Without:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {packages!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Without())
"""


def python(code: str) -> str:
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_import_is_light() -> None:
    out = python(f"""
import time, torch
start = time.process_time()
import adpe
adpe.create_model, adpe.load_checkpoint, adpe.register_with_timm, adpe.Adversary
print(time.process_time() - start)
import sys
print([name for name in {HEAVY!r} if name in sys.modules])
""")
    seconds, heavy = out.splitlines()
    assert float(seconds) < 0.5
    assert heavy == "[]"


def test_torch_is_enough_to_train_and_to_read() -> None:
    """Everything optional is absent: the model runs, and what needs a package says which in one sentence."""
    out = python(
        WITHOUT.format(packages=set(HEAVY))
        + """
import adpe, torch, os, tempfile
model = adpe.create_model("adpe_vit_tiny_patch4", img_size=16, depth=1, decoder_depth=1, adversary="coordinate")
model(torch.zeros(2, 3, 16, 16)).backward()
path = os.path.join(tempfile.mkdtemp(), "model.pth")
torch.save(model.state_dict(), path)
print(adpe.load_checkpoint(model, path, verbose=False).coverage)
from adpe.errors import UserError, require
calls = [
    adpe.register_with_timm,
    lambda: adpe.save_checkpoint({}, path),
    lambda: require("mmseg", "requirements/mm.txt"),
]
for call in calls:
    try:
        call()
    except UserError as error:
        print(error)
"""
    )
    sentence = "{} is not installed: run `make setup`, or `pip install -r requirements/{}.txt`."
    assert out.splitlines() == [
        "100.0",
        sentence.format("timm", "runtime"),
        sentence.format("safetensors", "runtime"),
        sentence.format("mmseg", "mm"),
    ]


def test_a_broken_package_keeps_its_own_error(tmp_path) -> None:
    (tmp_path / "broken_package.py").write_text("import a_dependency_that_is_missing\n")
    out = python(f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
from adpe.errors import require
try:
    require("broken_package", "requirements/mm.txt")
except ModuleNotFoundError as error:
    print(error.name)
""")
    assert out.strip() == "a_dependency_that_is_missing"


def test_unknown_attributes_are_refused() -> None:
    import adpe

    try:
        adpe.create_modell  # noqa: B018
    except AttributeError as error:
        assert "create_modell" in str(error)
    else:
        raise AssertionError("adpe.create_modell exists")
