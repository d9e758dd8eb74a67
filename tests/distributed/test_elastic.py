"""``torchrun --max-restarts``: a run in which a process dies goes on from its checkpoint as if nothing had happened."""

import subprocess
import sys

import pytest
import torch

SCRIPT = """
import os, sys, torch
import torch.distributed as dist
from pathlib import Path
from torch.nn.parallel import DistributedDataParallel
from torch_clipped import ClippedAdamW, NormRecorder

folder, dies = Path(sys.argv[1]), sys.argv[2] == "dies"
dist.init_process_group("gloo")
rank, first_try = dist.get_rank(), os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
torch.manual_seed(0)
torch.set_num_threads(1)
model = DistributedDataParallel(torch.nn.Linear(4, 1))
optimizer = ClippedAdamW(model.parameters(), lr=0.1, clipping_type="zscore", clipping_level=1.0, clipping_action="skip")
begin = 0
if (folder / "checkpoint.pt").exists():
    saved = torch.load(folder / "checkpoint.pt", weights_only=True)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    begin = saved["step"]
recorder = NormRecorder(optimizer, folder / "norms.csv", resume=True) if rank == 0 else None
for step in range(begin, 40):
    inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(100 * rank + step))
    optimizer.zero_grad()
    (model(inputs) - inputs.sum(1, keepdim=True)).square().mean().mul(1 + step % 5).backward()
    optimizer.step()
    if step % 10 == 9:
        dist.barrier()
        if rank == 0:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            torch.save(state, folder / "unfinished.pt")
            os.replace(folder / "unfinished.pt", folder / "checkpoint.pt")
        dist.barrier()
    if dies and first_try and rank == 1 and step == 26:
        os._exit(3)
if rank == 0:
    recorder.close()
    stats, restarts = optimizer.clipping_stats(), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    torch.save({"model": model.state_dict(), "stats": stats, "restarts": restarts}, folder / "end.pt")
dist.destroy_process_group()
"""


def run(folder, how):
    folder.mkdir()
    (folder / "train.py").write_text(SCRIPT)
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["--max-restarts", "5", "--monitor-interval", "0.1", str(folder / "train.py"), str(folder), how]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(folder / "end.pt", weights_only=True), (folder / "norms.csv").read_text()


@pytest.mark.slow
def test_restarted_run_ends_as_the_unbroken_one(tmp_path):
    (end, norms), (whole, whole_norms) = run(tmp_path / "broken", "dies"), run(tmp_path / "whole", "lives")
    assert end["restarts"] > whole["restarts"] == 0  # more than once where gloo does not find the new processes at once
    for one, other in zip(end["model"].values(), whole["model"].values(), strict=True):
        assert torch.equal(one, other)
    assert end["stats"] == whole["stats"]
    assert end["stats"]["skipped_steps"] > 0
    assert norms == whole_norms
