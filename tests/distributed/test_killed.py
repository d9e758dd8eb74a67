"""A run in which a process dies: started again, it goes on from its checkpoint as if nothing had happened."""

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
rank = dist.get_rank()
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
    if dies and rank == 1 and step == 26:
        os._exit(3)
if rank == 0:
    recorder.close()
    torch.save({"model": model.state_dict(), "stats": optimizer.clipping_stats()}, folder / "end.pt")
dist.destroy_process_group()
"""


def run(folder, how):
    (folder / "train.py").write_text(SCRIPT)
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run([*command, str(folder / "train.py"), str(folder), how], capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_run_that_is_started_again_ends_as_the_unbroken_one(tmp_path):
    broken, whole = tmp_path / "broken", tmp_path / "whole"
    for folder in (broken, whole):
        folder.mkdir()
    died = run(broken, "dies")
    assert died.returncode != 0
    assert "exitcode  : 3" in died.stderr
    assert not (broken / "end.pt").exists()
    for folder in (broken, whole):
        done = run(folder, "lives")
        assert done.returncode == 0, done.stderr[-3000:]
    one, other = (torch.load(folder / "end.pt", weights_only=True) for folder in (broken, whole))
    for value, wanted in zip(one["model"].values(), other["model"].values(), strict=True):
        assert torch.equal(value, wanted)
    assert one["stats"] == other["stats"]
    assert one["stats"]["skipped_steps"] > 0
    assert (broken / "norms.csv").read_text() == (whole / "norms.csv").read_text()
